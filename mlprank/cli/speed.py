"""What a training step does not need, left out: hooks that do nothing, a profiler that is off, a search for devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler

_HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_DEVICE_SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that does nothing, without a new context manager sixty times a step."""

    _nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Return a context that does nothing."""
        return self._nothing


def skip_idle_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Tell Lightning which hooks of a training step do nothing, so that it does not call them.

    Lightning passes over a hook that is None. Only hooks that nobody has overridden are set, and the per-step hook of a
    `ModelCheckpoint` that saves by epochs.

    Args:
        trainer: The trainer with all its callbacks.
        module: The module that it trains.
    """
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in trainer.callbacks)]:
        for hook in _HOOKS_OF_A_STEP:
            if hook in vars(owner):
                continue
            inherited = getattr(type(owner), hook) is getattr(base, hook)
            if inherited or (hook == "on_train_batch_end" and _saves_by_epochs(owner)):
                setattr(owner, hook, None)


@contextlib.contextmanager
def no_device_search(device: torch.device) -> Iterator[None]:
    """Keep torch's Adam from searching for NVIDIA's driver in every step of a run on the CPU.

    Lightning sets a variable of the environment that makes torch look for devices in a way that is safe before forking,
    and costs 50 µs where there is no driver. The variable comes back afterwards.

    Args:
        device: Where the run trains; elsewhere than on the CPU nothing changes.
    """
    value = os.environ.pop(_DEVICE_SEARCH, None) if device.type == "cpu" else None
    try:
        yield
    finally:
        if value is not None:
            os.environ[_DEVICE_SEARCH] = value


def _saves_by_epochs(owner: object) -> bool:
    """Whether a callback is a `ModelCheckpoint` whose per-step hook would only find that there is nothing to do."""
    return (
        isinstance(owner, ModelCheckpoint)
        and type(owner).on_train_batch_end is ModelCheckpoint.on_train_batch_end
        and owner._every_n_train_steps < 1
        and owner._train_time_interval is None
    )
