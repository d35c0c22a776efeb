"""What a training step on one device does not need, left out: asking who acts in it, searching for other devices."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor

from mlprank.models.classifier import ImageClassifier

_LOOP_IS_KNOWN = RequirementCache("lightning>=2.6,<2.7")
"""The loop stands in for one of Lightning's that is not public; another release keeps its own."""
_PRECISIONS = (Precision, MixedPrecision, HalfPrecision, DoublePrecision)
_HOOKS_WITHIN_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_DEVICE_SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"


class LeanEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, without the time that it takes beside the training.

    Lightning asks some sixty times a step who wants to hear of it or to change it. No answer changes within an epoch,
    so this loop asks once: a plain step goes straight from the batch to the optimizer, and counts and calls what
    Lightning would, in its order. Other runs take Lightning's own steps: those on several devices, with scaled losses
    (16-mixed), accumulated gradients or a profiler, or with callbacks that act between forward pass and optimizer.
    """

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Find out whether the steps of this epoch are plain, and who wants to hear of them."""
        super().on_run_start(data_fetcher)
        trainer = self.trainer
        self._module, self._data = trainer.lightning_module, trainer.datamodule
        self._precision, self._device = trainer.precision_plugin, trainer.strategy.root_device
        # A plain step is a forward pass, a backward pass and an optimizer's step on one device, and nothing else.
        self._is_plain = (
            type(self._module) is ImageClassifier
            and self._data is not None
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(self._precision) in _PRECISIONS
            and getattr(self._precision, "scaler", None) is None
            and type(trainer.profiler) is PassThroughProfiler
            and trainer.accumulate_grad_batches == 1
            and trainer._val_check_time_interval is None
            and not any(_overrides(callback, hook) for callback in trainer.callbacks for hook in _HOOKS_WITHIN_A_STEP)
        )
        self._listeners: dict[str, list[Callable[..., None]]] = {"on_train_batch_start": [], "on_train_batch_end": []}
        for callback, (hook, listeners) in product(trainer.callbacks, self._listeners.items()):
            saves_between_epochs_alone = (
                type(callback) is ModelCheckpoint
                and callback._every_n_train_steps < 1
                and callback._train_time_interval is None
            )
            if _overrides(callback, hook) and not saves_between_epochs_alone:
                listeners.append(getattr(callback, hook))

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Take one step."""
        if self.restarting or not self._is_plain:
            super().advance(data_fetcher)
            return
        progress, logs, trainer = self.batch_progress, self.trainer._logger_connector, self.trainer
        batch, _, _ = next(data_fetcher)
        progress.is_last_batch = data_fetcher.done
        batch = self._data.on_before_batch_transfer(self._precision.convert_input(batch), 0)
        batch = self._data.transfer_batch_to_device(batch, self._device, 0)
        batch, batch_idx = self._data.on_after_batch_transfer(batch, 0), progress.current.ready
        progress.increment_ready()
        logs.on_batch_start(batch)
        self._tell("on_train_batch_start", batch, batch_idx)
        progress.increment_started()
        step = self.automatic_optimization.optim_progress.optimizer.step
        step.increment_ready()
        trainer.optimizers[0].step(partial(self._differentiate, batch, batch_idx))
        step.increment_completed()
        progress.increment_processed()
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._tell("on_train_batch_end", {"loss": self._loss}, batch, batch_idx)
        logs.on_batch_end()
        progress.increment_completed()
        logs.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate, write logs and stop where any of it is due after this step."""
        trainer, progress = self.trainer, self.batch_progress
        steps = progress.total.ready if trainer.check_val_every_n_epoch is None else progress.current.ready
        if (
            self.restarting
            or not self._is_plain
            or self._num_ready_batches_reached()
            or steps % trainer.val_check_batch == 0
            or trainer.should_stop
            or trainer.received_sigterm
        ):
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1

    @torch.enable_grad()
    def _differentiate(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a batch and its gradients; note the loss, and return it to the optimizer."""
        trainer, module, optimizer = self.trainer, self._module, self.trainer.optimizers[0]
        with self._precision.train_step_context():
            loss: Tensor = module.training_step(batch, batch_idx)
        self._loss = loss.detach()
        zero_grad = self.automatic_optimization.optim_progress.optimizer.zero_grad
        zero_grad.increment_ready()
        zero_grad.increment_started()
        module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        zero_grad.increment_completed()
        module.backward(loss)
        if trainer.gradient_clip_val:
            algorithm = trainer.gradient_clip_algorithm
            module.clip_gradients(optimizer, trainer.gradient_clip_val, gradient_clip_algorithm=algorithm)
        return loss

    def _tell(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the callbacks that do something in it."""
        if not self._listeners[hook]:
            return
        self._module._current_fx_name = hook  # so that callbacks can log
        for listener in self._listeners[hook]:
            listener(self.trainer, self._module, *arguments)
        self._module._current_fx_name = None


@contextlib.contextmanager
def lean_training(trainer: Trainer) -> Iterator[None]:
    """Let a trainer train with as little as possible beside it.

    It gets the lean loop, where its release of Lightning is one that the loop is written for, and unless the
    environment variable MLPRANK_LEAN_LOOP is 0: the one switch, for whoever wants Lightning's own loop. On the CPU,
    torch's Adam no longer searches for NVIDIA's driver in every step: Lightning sets a variable that makes torch search
    in a way that is safe before forking, and costs 50 µs where there is no driver. The variable comes back.
    """
    if _LOOP_IS_KNOWN and os.environ.get("MLPRANK_LEAN_LOOP") != "0":
        loop = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, loop.min_steps, loop.max_steps)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    value = os.environ.pop(_DEVICE_SEARCH, None) if on_cpu else None
    try:
        yield
    finally:
        if value is not None:
            os.environ[_DEVICE_SEARCH] = value


def _overrides(callback: Callback, hook: str) -> bool:
    """Whether a callback does anything in a hook."""
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)
