"""Calibration data: whatever the caller has, as calls of the network, on its device, that can be read several times."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.graph.program import Inputs

DEFAULT_NUM_SAMPLES = 1024
_BATCHES_COMPARED = 4
"""So many batches are looked at to see which of their sizes differ."""

ToInputs = Callable[[Any], Any]
"""Makes a call of a batch: `(args, kwargs)`, or a tensor, a tuple of arguments or a dict of keyword arguments."""


def own(total: Tensor) -> Tensor:
    """Return the total itself: the sum over one process."""
    return total


class Calibration:
    """Calls of a network on calibration data.

    The source is a batch, an iterable of batches, a DataLoader, or a LightningDataModule, whose
    `calibration_dataloader()`, drawn with `seed`, is read where it has one, otherwise `train_dataloader()`, at most
    1,024 samples of it where `num_samples` says nothing else. A batch is a tensor or a NumPy array of shape (N, ...), a
    dict of keyword arguments, or a tuple of inputs and labels; what it does not say of the call, `inputs` says:
    `inputs=lambda batch: ((batch.ids,), {"mask": batch.mask})`. The `forward` of `model` says how many entries of a
    tuple are inputs. `reduce` sums a tensor over processes.
    """

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device,
        num_samples: int | None = None,
        seed: int = 0,
        reduce: Callable[[Tensor], Tensor] = own,
        inputs: ToInputs | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.device, self.num_samples, self.reduce = device, num_samples, reduce
        self._to_inputs = inputs
        self._signature = None if model is None else inspect.signature(model.forward)
        if hasattr(source, "train_dataloader"):
            self.num_samples = num_samples or DEFAULT_NUM_SAMPLES
            source.prepare_data()
            source.setup("fit")
            drawn = getattr(source, "calibration_dataloader", None)
            source = drawn(num_samples=self.num_samples, seed=seed) if drawn else source.train_dataloader()
        if isinstance(source, (Tensor, Mapping, Inputs)) or type(source).__module__ == "numpy":
            source = [source]
        elif not isinstance(source, Iterable):
            raise TypeError(
                f"calibration: {type(source).__name__} is not a batch, an iterable of batches, a DataLoader or a "
                "LightningDataModule; give one"
            )
        self.batches: Iterable[Any] = list(source) if isinstance(source, Iterator) else source
        self.example = Inputs((), {})  # later the first batch, which all others are compared with
        first = next(iter(self), None)
        if first is None:
            raise ValueError("calibration: the set is empty; give at least one sample")
        self.example = first

    @property
    def varying(self) -> set[tuple[int, int]]:
        """Dimensions besides the first whose size differs between batches: number of the tensor, and dimension."""
        shapes = [[tuple(tensor.shape) for tensor in batch.tensors] for batch in islice(self, _BATCHES_COMPARED)]
        return {
            (number, dim)
            for other in shapes[1:]
            for number, (one, two) in enumerate(zip(shapes[0], other, strict=True))
            for dim in range(1, len(one))
            if one[dim] != two[dim]
        }

    def __iter__(self) -> Iterator[Inputs]:
        """Yield calls until `num_samples` have been read."""
        left = self.num_samples
        for batch in self.batches:
            inputs = self._call(batch).mapped(lambda tensor: tensor.to(self.device))
            inputs = inputs if left is None else inputs[:left]
            for one, other in zip(inputs.tensors, self.example.tensors, strict=False):
                if len(inputs) and (one.dim(), one.dtype) != (other.dim(), other.dtype):
                    raise ValueError(
                        f"calibration: a batch has inputs of shape {tuple(one.shape[1:])} and dtype {one.dtype}, the "
                        f"first one of {tuple(other.shape[1:])} and {other.dtype}; give inputs of one dtype and number "
                        "of dimensions"
                    )
            if len(inputs):
                yield inputs
            if left is not None:
                left -= len(inputs)
                if left <= 0:
                    return

    def _call(self, batch: Any) -> Inputs:
        """The call that a batch means."""
        given = _tensors(batch if self._to_inputs is None else self._to_inputs(batch))
        if isinstance(given, Inputs):
            inputs = given
        elif isinstance(given, Mapping):
            inputs = self._of_mapping(given)
        elif not isinstance(given, (tuple, list)):
            inputs = Inputs((given,), {})
        elif self._to_inputs is None:
            inputs = Inputs(self._of_tuple(given), {})
        elif len(given) == 2 and isinstance(given[0], (tuple, list)) and isinstance(given[1], Mapping):
            inputs = Inputs(tuple(given[0]), dict(given[1]))
        else:
            inputs = Inputs(tuple(given), {})
        if not inputs.tensors:
            raise TypeError(
                f"calibration: a batch is a {type(batch).__name__} that gives the call {inputs}, which holds no "
                "tensor; give tensors, or say by inputs= how a batch becomes a call"
            )
        if not any(tensor.dim() for tensor in inputs.tensors):
            raise ValueError("calibration: a batch has no dimensions; give inputs of shape (N, ...)")
        # What a decoder would keep for its next call is nothing that tracing can return.
        if self._signature is not None and "use_cache" in self._signature.parameters:
            inputs = Inputs(inputs.args, {"use_cache": False, **inputs.kwargs})
        return inputs

    def _of_mapping(self, batch: Mapping[str, Any]) -> Inputs:
        """Keyword arguments, or the only argument of a network that takes a dict."""
        if self._signature is None:
            return Inputs((), dict(batch))
        parameters = self._signature.parameters.values()
        known = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        if set(batch) <= known or (takes_any and set(batch) & known):
            return Inputs((), dict(batch))
        if len(known) == 1 and not set(batch) & known:
            return Inputs((dict(batch),), {})
        raise ValueError(
            f"calibration: a batch has the keys {', '.join(map(str, batch))}, the network takes {self._signature}; "
            'say by inputs= how a batch becomes a call, such as inputs=lambda batch: ((batch["image"],), {})'
        )

    def _of_tuple(self, batch: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs in a tuple of inputs and labels: as many as `forward` needs."""
        parameters = [] if self._signature is None else list(self._signature.parameters.values())
        positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        needed = max(1, sum(each.default is each.empty for each in positional))
        has = f"calibration: a batch has {len(batch)} entries"
        if 0 < len(batch) < needed:
            raise ValueError(f"{has}, the network takes {self._signature}; say by inputs= how a batch becomes a call")
        tensors = [entry for entry in batch[1:] if isinstance(entry, Tensor)]
        if needed == 1 and len(positional) > 1 and any(tensor.dim() > 1 for tensor in tensors):
            raise ValueError(
                f"{has} and the network takes {self._signature}: whether the second one is an input is not clear; say "
                "by inputs= how a batch becomes a call, such as inputs=lambda batch: (batch[:2], {})"
            )
        return tuple(batch[:needed])


def _tensors(value: Any) -> Any:
    """NumPy arrays as tensors, however nested."""
    if type(value).__module__ == "numpy":
        return torch.as_tensor(value)
    if isinstance(value, Mapping):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_tensors(item) for item in value)
    return [_tensors(item) for item in value] if isinstance(value, list) else value
