"""Calibration data: whatever the caller has, as batches of inputs on the network's device that can be read several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

DEFAULT_NUM_SAMPLES = 1024


def own(total: Tensor) -> Tensor:
    """Return the total itself: the sum over one process."""
    return total


class Calibration:
    """Batches of calibration inputs.

    Args:
        source: A batch of inputs, shape (N, ...); an iterable of batches (tensors, or tuples whose first entry is the inputs); a
            DataLoader; or a LightningDataModule, whose `calibration_dataloader()` is read where it has one, otherwise the first 1,024
            samples of `train_dataloader()`.
        device: Where the network is.
        num_samples: Read at most this many samples; None for all of them.
        seed: Seed of the draw, where a LightningDataModule's `calibration_dataloader` makes one.
        reduce: Sums a tensor over processes; the identity where there is one process.

    Raises:
        ValueError: If there is no sample.
        TypeError: If the batches are no tensors.
    """

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device,
        num_samples: int | None = None,
        seed: int = 0,
        reduce: Callable[[Tensor], Tensor] = own,
    ) -> None:
        self.device, self.num_samples, self.reduce = device, num_samples, reduce
        if hasattr(source, "train_dataloader"):
            self.num_samples = num_samples or DEFAULT_NUM_SAMPLES
            source = _dataloader(source, num_samples=self.num_samples, seed=seed)
        if isinstance(source, Tensor):
            source = [source]
        elif not isinstance(source, Iterable):
            raise TypeError(
                f"calibration: {type(source).__name__} is no batch, iterable of batches, DataLoader or LightningDataModule; give one"
            )
        self.batches: Iterable[Any] = list(source) if isinstance(source, Iterator) else source
        self.example: Tensor = torch.empty(0)
        self.example = next(iter(self), self.example)
        if len(self.example) == 0:
            raise ValueError("calibration: the set is empty; give at least one sample")

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches of inputs, shape (n, ...), until `num_samples` have been read."""
        left = self.num_samples
        for batch in self.batches:
            inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(inputs, Tensor):
                raise TypeError(
                    f"calibration: a batch is a {type(batch).__name__} of no tensor; give tensors, or tuples whose first entry is the inputs"
                )
            if inputs.dim() == 0:
                raise ValueError("calibration: a batch has no dimensions; give inputs of shape (N, ...)")
            inputs = inputs[:left].to(self.device)
            if len(inputs) > 0:
                self._check(inputs)
                yield inputs
            if left is not None:
                left -= len(inputs)
                if left <= 0:
                    return

    def _check(self, inputs: Tensor) -> None:
        first = self.example
        if len(first) > 0 and (inputs.shape[1:] != first.shape[1:] or inputs.dtype != first.dtype):
            raise ValueError(
                f"calibration: a batch has inputs of shape {tuple(inputs.shape[1:])} and dtype {inputs.dtype}, the first one of"
                f" {tuple(first.shape[1:])} and {first.dtype}; give inputs of one shape and dtype"
            )


def _dataloader(datamodule: Any, *, num_samples: int, seed: int) -> Any:
    datamodule.prepare_data()
    datamodule.setup("fit")
    if hasattr(datamodule, "calibration_dataloader"):
        return datamodule.calibration_dataloader(num_samples=num_samples, seed=seed)
    return datamodule.train_dataloader()
