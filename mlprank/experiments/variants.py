"""Test many pruned variants of one network on a test set in memory, chunk by chunk together.

All variants read the same images, and the first linear layer of most of them is rows of the dense network's: a chunk's product with those
weights, half of the work and more, is computed once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlprank.utils.modules import check_fit, evaluating, sole_tensor

TOP_K = (1, 5)
_CHUNK = 2560


@dataclass(frozen=True)
class Variant:
    """A pruned network and where its narrow tensors come from: kept indices by tensor name and dimension."""

    model: nn.Module
    slices: Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Accuracy:
    """How many of the test images are right."""

    top1: int
    top5: int
    num_images: int


class MemoryTest:
    """A test set in memory, for a network and what is pruned from it.

    Args:
        dense: The dense network; left as it was.
        images: Shape (N, ...), as the network takes them, on its device.
        labels: Shape (N,).

    Attributes:
        dense: The dense network's accuracy.

    Raises:
        ValueError: If the network does not fit the images, or its logits are not finite.
    """

    def __init__(self, dense: nn.Module, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels
        check_fit(dense, images[:2], who="experiment")
        self._first = _first_linear(dense, images[:2])
        (found,) = self.accuracies([Variant(dense, {})])
        if isinstance(found, ValueError):
            raise found
        self.dense = found

    def accuracies(self, variants: Sequence[Variant]) -> list[Accuracy | ValueError]:
        """Test variants together; each gets its counts, or the error that its logits are not finite."""
        counts = torch.zeros(len(variants), len(TOP_K), dtype=torch.int64)
        errors: dict[int, ValueError] = {}
        models = [variant.model for variant in variants]
        with evaluating(*models), torch.inference_mode(), self._shared(variants) as first:
            for start in range(0, len(self._images), _CHUNK):
                images, labels = (part[start : start + _CHUNK] for part in (self._images, self._labels))
                if first is not None:
                    first.read(images)
                for number, model in enumerate(models):
                    if number not in errors:
                        try:
                            counts[number] += _hits(sole_tensor(model(images), who="experiment"), labels).cpu()
                        except ValueError as error:
                            errors[number] = error
        return [
            errors.get(number) or Accuracy(row[0], row[1], len(self._images))
            for number, row in enumerate(counts.tolist())
        ]

    @contextmanager
    def _shared(self, variants: Sequence[Variant]) -> Iterator[_First | None]:
        """Let the variants' first layers read what the dense one gives, where they are rows of it, for the time of a block."""
        if self._first is None:
            yield None
            return
        name, dense = self._first
        first = _First(dense)
        replaced: list[tuple[nn.Module, nn.Module]] = []
        try:
            for variant in variants:
                own = variant.model.get_submodule(name)
                rows = variant.slices.get(f"{name}.weight", {}).get(0)
                rows = torch.arange(dense.out_features, device=dense.weight.device) if rows is None else rows
                if isinstance(own, nn.Linear) and torch.equal(own.weight, dense.weight[rows]):
                    replaced.append((variant.model, own))
                    variant.model.set_submodule(name, _Rows(first, own, rows))
            yield first
        finally:
            for model, own in replaced:
                model.set_submodule(name, own)


class _First:
    """The dense network's first linear layer on the images that are being tested, without its bias: neurons as rows."""

    def __init__(self, dense: nn.Linear) -> None:
        self.dense = dense
        self.values = torch.empty(0)

    def read(self, images: Tensor) -> None:
        """Compute the values of a chunk, shape (n_out, images)."""
        self.values = self.dense.weight @ images.flatten(1).T


class _Rows(nn.Module):
    """In place of a first linear layer: its neurons' rows of what the dense one gave."""

    def __init__(self, first: _First, own: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self._first, self._own, self._rows = first, [own], rows

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs, shape (images, n_out)."""
        values = self._first.values.index_select(0, self._rows)
        bias = self._own[0].bias
        return values.T if bias is None else values.add_(bias[:, None]).T


def _first_linear(network: nn.Module, images: Tensor) -> tuple[str, nn.Linear] | None:
    """The plain linear layer that reads the images as vectors, once, and nothing else does; None where there is none."""
    seen: list[tuple[str, tuple[Any, ...]]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, inputs)))
        for name, module in network.named_modules()
        if type(module) is nn.Linear
    ]
    try:
        with evaluating(network), torch.inference_mode():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    flat = images.flatten(1)
    readers = [name for name, (x, *_) in seen if x.shape == flat.shape and torch.equal(x, flat)]
    if len(readers) != 1 or [name for name, _ in seen].count(readers[0]) != 1:
        return None
    layer = network.get_submodule(readers[0])
    assert isinstance(layer, nn.Linear)
    return readers[0], layer


def _hits(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, " k"]:
    """How many images have their class among the k largest logits, for every k; of equal logits the lower class comes first.

    Raises:
        ValueError: If a logit is not finite, or a label is not a class of the network.
    """
    if not logits.isfinite().all():
        raise ValueError("the pruned network gives logits that are not finite; look at its weights and at the amount")
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"label {int(labels.max())} names no class of a network with {logits.shape[1]} outputs; is the checkpoint one for"
            " another data set?"
        )
    true = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & lower)).sum(1)
    return torch.stack([(rank < k).sum() for k in TOP_K])
