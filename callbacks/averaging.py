"""Masks beside Lightning's weight averaging: its copy of the module must carry the same ones, and sharp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from mlprank.callbacks.networks import find_network
from mlprank.surgery.copies import without_compiled
from mlprank.surgery.masks import mask_rows, refresh_masked, restore_masks, write_weights


def averaged_modules(trainer: Trainer) -> list[LightningModule]:
    """Return the averaged copies of the module that the trainer's callbacks keep."""
    kept = [callback._average_model for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    modules = [average.module for average in kept if average is not None]
    return [module for module in modules if isinstance(module, LightningModule)]


def prune_averages(
    trainer: Trainer, name: str | None, *, rows: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    """Give averaged copies the masks of a pruning, and the weights that it changed: their average starts anew.

    Args:
        trainer: The run.
        name: The network's name in the module.
        rows: For every masked parameter, shape (n_out,), True for the rows that stay.
        weights: The weights that compensation changed, by plain name.
    """
    for module in averaged_modules(trainer):
        with without_compiled(module):
            network = find_network(module, name)
            mask_rows(network, rows)
            write_weights(network, weights)


def sharpen_masks(trainer: Trainer, module: LightningModule, name: str | None, *, rows: Mapping[str, Tensor]) -> None:
    """Undo what averaging did to the masks of the module and of its averaged copies, which trade places during validation.

    Masked weights leave their autograd graph on the way, so that the module can be copied between epochs.
    """
    if not rows:
        return
    refresh_masked(module)
    averaged = averaged_modules(trainer)
    for each in [module, *averaged] if averaged else []:
        with without_compiled(each):
            restore_masks(find_network(each, name), rows)


@contextmanager
def averaging_done(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint hold the module itself although the trainer averages weights; the average is in the module by then."""
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
    averages = [callback._average_model for callback in callbacks]
    for callback in callbacks:
        callback._average_model = None
    try:
        yield
    finally:
        for callback, average in zip(callbacks, averages, strict=True):
            callback._average_model = average
