"""Test many pruned variants of one network on a test set in memory, several at a time.

Variants go through the test set chunk by chunk, together, and share what pruning does not change (`mlprank.experiments.sharing`). Where
rounding could turn an image, its batch is run again through the variant alone, in the batches of `mlprank.prune_mlp`: the counts are
those that it would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlprank.costs.metrics import top_k_accuracy
from mlprank.experiments.counting import decide, differ, doubtful_batches
from mlprank.experiments.sharing import Sharing, Variant
from mlprank.graph.records import Graph
from mlprank.utils.modules import check_fit, evaluating, sole_tensor

BATCH_SIZE = 64
"""As in `mlprank.prune_mlp`."""
TOP_K = (1, 5)
_CHUNK = 40 * BATCH_SIZE


@dataclass(frozen=True)
class Accuracy:
    """How many of the test images are right."""

    top1: int
    top5: int
    num_images: int


class MemoryTest:
    """A test set in memory, and a dense network's values on it.

    Args:
        dense: The dense network; left as it was.
        graph: Its graph.
        images: Shape (N, ...), as the network takes them, on its device.
        labels: Shape (N,).

    Attributes:
        dense: The dense network's accuracy.

    Raises:
        ValueError: If the network does not fit the images or its logits are not finite.
    """

    def __init__(self, dense: nn.Module, graph: Graph, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels
        check_fit(dense, images[:2], who="experiment")
        self._sharing = Sharing(dense, graph, num_images=len(images))
        with evaluating(dense), torch.inference_mode():
            with self._sharing.captured():
                logits = torch.cat([_logits(dense, images[chunk]) for chunk in self._chunks()])
            self.dense = self._count(dense, logits)

    def accuracies(self, variants: Sequence[Variant]) -> list[Accuracy | ValueError]:
        """Test variants together; each gets its counts, or the error that its logits are not finite."""
        models = [variant.model for variant in variants]
        parts: dict[int, list[Tensor]] = {number: [] for number in range(len(variants))}
        found: list[Accuracy | ValueError] = []
        with evaluating(*models), torch.inference_mode():
            expected = [_logits(model, self._images[:BATCH_SIZE]) for model in models]
            with self._sharing.swapped(variants) as order:
                for chunk in self._chunks():
                    for number in [number for number in order if number in parts]:
                        logits = _attempt(models[number], self._images[chunk])
                        if logits is None or (chunk.start == 0 and self._is_wrong(logits, expected[number])):
                            del parts[number]
                        else:
                            parts[number].append(logits)
            for number, model in enumerate(models):
                try:
                    found.append(self._count(model, torch.cat(parts[number]) if number in parts else None))
                except ValueError as error:
                    found.append(error)
        return found

    @staticmethod
    def _is_wrong(logits: Tensor, expected: Tensor) -> bool:
        """Whether stand-ins give something else on the first batch; what is not finite is for `decide` to refuse."""
        return bool(expected.isfinite().all()) and differ(expected, logits[: len(expected)])

    def _chunks(self) -> Iterator[slice]:
        for number, start in enumerate(range(0, len(self._images), _CHUNK)):
            self._sharing.clock.chunk = number
            yield slice(start, start + _CHUNK)

    def _count(self, model: nn.Module, logits: Tensor | None) -> Accuracy:
        """Count by the logits; batches with an image in doubt (all, where there are none) are run as one by one they would be."""
        images, labels = torch.split(self._images, BATCH_SIZE), torch.split(self._labels, BATCH_SIZE)
        decided = None if logits is None else decide(logits, self._labels, k=TOP_K)
        again = range(len(images)) if decided is None else doubtful_batches(decided, batch_size=BATCH_SIZE)
        counts = dict.fromkeys(TOP_K, 0)
        if again:
            num_images = sum(len(labels[number]) for number in again)
            shares = top_k_accuracy(model, ((images[number], labels[number]) for number in again), TOP_K)
            counts = {k: round(share * num_images) for k, share in shares.items()}
        if decided is not None:
            sure = torch.ones(len(self._images), dtype=torch.bool, device=self._labels.device)
            for number in again:
                sure[number * BATCH_SIZE : (number + 1) * BATCH_SIZE] = False
            for k, one in zip(TOP_K, decided, strict=True):
                counts[k] += int((one.correct & sure).sum())
        return Accuracy(counts[1], counts[5], len(self._images))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return sole_tensor(model(images), who="experiment").float()


def _attempt(model: nn.Module, images: Tensor) -> Tensor | None:
    """The logits; None where a forward pass does more with the values than the stand-ins foresee."""
    try:
        return _logits(model, images)
    except RuntimeError:
        return None
