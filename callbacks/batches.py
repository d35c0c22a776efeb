"""Batches of a Lightning run outside its loops: as the network would get them, on its device and in its precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from mlprank.evaluating import device_of


class TransferredBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run, and can be read again.

    Args:
        loader: A dataloader, or any iterable of batches.
        trainer: The run.
        network: The network that will read them; it says device and precision.
    """

    def __init__(self, loader: Any, *, trainer: Trainer, network: nn.Module) -> None:
        self.loader, self.trainer, self.network = loader, trainer, network

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield batches as tuples, the inputs first."""
        hooks = self.trainer.datamodule or self.trainer.lightning_module
        device = device_of(self.network)
        for batch in self.loader:
            moved = hooks.on_before_batch_transfer(batch, 0)
            moved = hooks.transfer_batch_to_device(moved, device, 0)
            moved = hooks.on_after_batch_transfer(moved, 0)
            inputs, *rest = moved if isinstance(moved, (tuple, list)) else (moved,)
            yield _in_precision(inputs, self.network), *rest


def calibration_batches(trainer: Trainer, network: nn.Module, *, num_samples: int, seed: int) -> TransferredBatches:
    """Return the calibration data of a run.

    Args:
        trainer: The run, with its data attached.
        network: The network to calibrate.
        num_samples: How many samples to draw, where the datamodule can draw.
        seed: Seed of the draw.

    Returns:
        The datamodule's `calibration_dataloader(num_samples, seed)` where it has one, else the run's training data.
    """
    draw = getattr(trainer.datamodule, "calibration_dataloader", None)
    loader = draw(num_samples=num_samples, seed=seed) if callable(draw) else trainer.train_dataloader
    return TransferredBatches(loader, trainer=trainer, network=network)


def test_batches(trainer: Trainer, network: nn.Module) -> tuple[TransferredBatches | None, str | None]:
    """Return labelled batches to measure accuracy on, and what to call them; (None, None) where there are none.

    The datamodule's test data where it has some, else the run's validation data.
    """
    for split, loader in (("test", _test_loader(trainer)), ("validation", trainer.val_dataloaders)):
        batches = TransferredBatches(loader, trainer=trainer, network=network) if _is_loader(loader) else ()
        first = next(iter(batches), ())
        if len(first) >= 2 and _are_labels(first[1]) and isinstance(batches, TransferredBatches):
            return batches, split
    return None, None


def _test_loader(trainer: Trainer) -> Any:
    """The datamodule's own test data; the module's, where the data is in the module."""
    source = trainer.datamodule or trainer.lightning_module
    base = type(source).test_dataloader
    if base in (LightningModule.test_dataloader, _datamodule_default()):
        return None
    if trainer.datamodule is not None:
        trainer.datamodule.setup("test")
    return source.test_dataloader()


def _datamodule_default() -> Any:
    from lightning.pytorch import LightningDataModule

    return LightningDataModule.test_dataloader


def _is_loader(loader: Any) -> bool:
    return loader is not None and hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict))


def _are_labels(labels: Any) -> bool:
    return (
        isinstance(labels, Tensor)
        and labels.dim() == 1
        and not labels.is_floating_point()
        and labels.dtype != torch.bool
    )


def _in_precision(inputs: Any, network: nn.Module) -> Any:
    dtype = next(
        (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), torch.float32
    )
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
