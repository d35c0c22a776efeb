"""Batches of a Lightning run outside its loops: as the network would get them, on its device and in its precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlprank.callbacks.randomness import OwnRandomness
from mlprank.callbacks.ranks import check_every_rank_has_data, gathered
from mlprank.utils.modules import device_of, evaluating


class TransferredBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run.

    It can be read again and gives the same batches every time: a loader that shuffles or augments draws from a random state of its
    own. The run's random state and the loader's are left as they were.

    Args:
        loader: A dataloader, or any iterable of batches.
        trainer: The run.
        network: The network that will read them; it says device and precision.
        seed: Seed of whatever the loader draws.
    """

    def __init__(self, loader: Any, *, trainer: Trainer, network: nn.Module, seed: int = 0) -> None:
        self.loader, self.trainer, self.network, self.seed = _apart(loader), trainer, network, seed

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield batches as tuples, the inputs first."""
        randomness = OwnRandomness(self.seed, self.loader)
        with randomness():
            iterator = iter(self.loader)
        while True:
            with randomness():
                try:
                    batch = self._transferred(next(iterator))
                except StopIteration:
                    return
            yield batch

    def _transferred(self, batch: Any) -> tuple[Any, ...]:
        hooks = self.trainer.datamodule or self.trainer.lightning_module
        batch = hooks.on_before_batch_transfer(batch, 0)
        batch = hooks.transfer_batch_to_device(batch, device_of(self.network), 0)
        batch = hooks.on_after_batch_transfer(batch, 0)
        inputs, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        return _in_precision(inputs, self.network), *rest


def calibration_batches(trainer: Trainer, network: nn.Module, *, num_samples: int, seed: int) -> TransferredBatches:
    """Return the calibration data of a run; call it on all processes.

    Args:
        trainer: The run, with its data attached.
        network: The network to calibrate.
        num_samples: How many samples to draw, where the datamodule can draw.
        seed: Seed of the draw.

    Returns:
        The datamodule's `calibration_dataloader(num_samples, seed)` where it has one, else the run's training data.

    Raises:
        ValueError: On every process, if one of them has no batch.
        TypeError: If there are several training dataloaders.
    """
    draw = getattr(trainer.datamodule, "calibration_dataloader", None)
    loader = draw(num_samples=num_samples, seed=seed) if callable(draw) else trainer.train_dataloader
    what = f"{type(trainer.datamodule).__name__}.calibration_dataloader" if callable(draw) else "the training data"
    if not callable(draw) and isinstance(loader, (list, tuple, dict)):
        raise TypeError(
            "calibration: there are several training dataloaders; give the datamodule a calibration_dataloader(num_samples, seed)"
        )
    batches = TransferredBatches(() if loader is None else loader, trainer=trainer, network=network, seed=seed)
    first = next(iter(batches), None)
    count = 0 if first is None else len(first[0]) if isinstance(first[0], Tensor) and first[0].dim() else 1
    check_every_rank_has_data(trainer, count, what=what)
    return batches


def has_calibration_data(trainer: Trainer) -> bool:
    """Say whether a run has anything to calibrate on, without reading it."""
    return callable(getattr(trainer.datamodule, "calibration_dataloader", None)) or trainer.train_dataloader is not None


def samples_of_rank(trainer: Trainer, num_samples: int) -> int:
    """Return how many calibration samples one process reads: all of a drawn set, its share of the training data."""
    if callable(getattr(trainer.datamodule, "calibration_dataloader", None)):
        return num_samples
    return -(-num_samples // trainer.world_size)


def test_batches(trainer: Trainer, network: nn.Module) -> tuple[TransferredBatches | None, str | None]:
    """Return labelled batches to measure accuracy on, and what to call them; call it on all processes.

    The datamodule's test data where it has some, else the run's validation data; (None, None) where a process has none.
    """
    for split, loader in (("test", _test_loader(trainer)), ("validation", trainer.val_dataloaders)):
        batches = TransferredBatches(loader, trainer=trainer, network=network) if _is_loader(loader) else None
        first = next(iter(batches or ()), ())
        if all(gathered(trainer, len(first) >= 2 and _are_labels(first[1], network, first[0]))):
            return batches, split
    return None, None


def _test_loader(trainer: Trainer) -> Any:
    """The datamodule's own test data; the module's, where the data is in the module."""
    source = trainer.datamodule or trainer.lightning_module
    if type(source).test_dataloader in (LightningModule.test_dataloader, LightningDataModule.test_dataloader):
        return None
    if trainer.datamodule is not None:
        trainer.datamodule.setup("test")
    return source.test_dataloader()


def _is_loader(loader: Any) -> bool:
    return loader is not None and hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict))


def _are_labels(labels: Any, network: nn.Module, inputs: Any) -> bool:
    """Whether a network gives logits for inputs that have class indices."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return False
    with evaluating(network), torch.no_grad():
        logits = network(inputs[:1])
    return (
        isinstance(logits, Tensor)
        and logits.dim() == 2
        and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    )


def _in_precision(inputs: Any, network: nn.Module) -> Any:
    dtype = next(
        (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), torch.float32
    )
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


def _apart(loader: Any) -> Any:
    """A dataloader that shares no iterator and no generator with the one that the run is reading from."""
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy.copy(loader)
    apart.__dict__["persistent_workers"] = False
    apart._iterator = None
    return apart
