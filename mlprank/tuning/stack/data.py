"""The trials' batches side by side: every trial sees the order that its own data module gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mlprank.tuning.stack.network import CannotStackError


class _Samplers:
    """Where Lightning looks for `set_epoch`: in `batch_sampler.sampler`."""

    def __init__(self, loaders: Sequence[Any]) -> None:
        self.loaders = loaders
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, in every loader."""
        for loader in self.loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)


class StackedBatches:
    """Batches of several loaders, stacked: images (U, B, ...), labels (U, B, ...).

    Args:
        loaders: Of equal length, each giving `(images, labels)`; resumable by `state_dict` where all are.

    Raises:
        CannotStackError: If their lengths differ.
    """

    def __init__(self, loaders: Sequence[Any]) -> None:
        lengths = sorted({len(loader) for loader in loaders})
        if len(lengths) > 1:
            raise CannotStackError(f"the trials' data have {lengths} batches an epoch; a stack needs one number")
        self.loaders = tuple(loaders)
        self.batch_sampler = _Samplers(loaders)

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the loaders in step.

        Yields:
            Images and labels of one batch of every loader.
        """
        for batches in zip(*self.loaders, strict=True):
            yield tuple(torch.stack(parts) for parts in zip(*batches, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the places of all loaders."""
        return {"loaders": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the places of all loaders.

        Args:
            state: What `state_dict` returned.
        """
        for loader, place in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(place)


class StackedDataModule(LightningDataModule):
    """The data modules of several trials as one.

    With one data module every batch is shared by all trials; with several a batch has a leading dimension of one entry
    a data module.

    Args:
        datamodules: One for every way of shuffling, splitting and augmenting; they share what they have in memory where
            they are copies of one another.
    """

    def __init__(self, datamodules: Sequence[LightningDataModule]) -> None:
        super().__init__()
        self.datamodules = tuple(datamodules)

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.datamodules[0].prepare_data()

    def setup(self, stage: str) -> None:
        """Read the data.

        Args:
            stage: `fit` and so on.
        """
        for datamodule in self.datamodules:
            datamodule.trainer = self.trainer
            datamodule.setup(stage)

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self._stacked([datamodule.train_dataloader() for datamodule in self.datamodules])

    def val_dataloader(self) -> Any:
        """Return the validation batches."""
        return self._stacked([datamodule.val_dataloader() for datamodule in self.datamodules])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and cast every data module's part of a batch on the model's device.

        Args:
            batch: Images and labels.
            dataloader_idx: Which loader it came from.

        Returns:
            The batch, ready for the stack.
        """
        if len(self.datamodules) == 1:
            return self.datamodules[0].on_after_batch_transfer(batch, dataloader_idx)
        parts = [
            datamodule.on_after_batch_transfer((images, labels), dataloader_idx)
            for datamodule, images, labels in zip(self.datamodules, *batch, strict=True)
        ]
        return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))

    def _stacked(self, loaders: Sequence[Any]) -> Any:
        return loaders[0] if len(loaders) == 1 else StackedBatches(loaders)
