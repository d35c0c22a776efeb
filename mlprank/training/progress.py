"""Progress that costs nothing: a bar redrawn by the clock on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_REDRAW_S = 0.2
_SHOWN = ("train_loss", "val_loss", "val_top1", "val_top5")


class RunProgress(ProgressBar):
    """A bar for the batches of an epoch, redrawn five times a second, that fits into 80 columns."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn_at = self._started_at = 0.0
        self._enabled = True

    def enable(self) -> None:
        """Draw."""
        self._enabled = True

    def disable(self) -> None:
        """Draw nothing: this is not the first process."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._started_at = time.monotonic()
        self._start("train", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self._restart(f"epoch {trainer.current_epoch + 1}{total}", _count(self.total_train_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, where it is time to."""
        self._advance(batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the numbers of the epoch."""
        if self._progress is not None:
            self._progress.update(self._task, metrics=_numbers(trainer, ("val_top1", "train_loss")))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away, and leave one line."""
        self._stop()
        if self._enabled:
            seconds = time.monotonic() - self._started_at
            print(f"{trainer.current_epoch} epochs in {seconds:.1f} s  {_numbers(trainer, _SHOWN)}", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation by itself; within a training the bar of the epoch stays."""
        if not trainer.sanity_checking and not trainer.training and self._progress is None:
            self._start("validate", _count(self.total_val_batches_current_dataloader))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._start("test", _count(self.total_test_batches_current_dataloader))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._start("predict", _count(self.total_predict_batches_current_dataloader))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **_: Any) -> None:
        """Draw, where it is time to."""
        if not trainer.training and not trainer.sanity_checking:
            self._advance(args[2] + 1)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **_: Any) -> None:
        """Draw, where it is time to."""
        self._advance(args[2] + 1)

    on_predict_batch_end = on_test_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        if not trainer.training and not trainer.sanity_checking:
            self._stop()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away for good."""
        self._stop()
        self._enabled = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self._stop()

    def _start(self, what: str, total: int | None) -> None:
        if not self._enabled:
            return
        self._stop()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
        )
        self._progress = Progress(*columns, console=Console(), transient=True, auto_refresh=False)
        self._task = self._progress.add_task(what, total=total, metrics="")
        self._progress.start()

    def _restart(self, what: str, total: int | None) -> None:
        if self._progress is not None:
            self._progress.reset(self._task, total=total, description=what)
            self._draw()

    def _advance(self, done: int) -> None:
        now = time.monotonic()
        if self._progress is not None and now - self._drawn_at >= _REDRAW_S:
            self._progress.update(self._task, completed=done)
            self._draw()

    def _draw(self) -> None:
        if self._progress is not None:
            self._drawn_at = time.monotonic()
            self._progress.refresh()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class EpochLines(Callback):
    """Prints one plain line per epoch, for a log file or a pipe."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._started_at = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch before: only now has everything of it been logged."""
        self._print(trainer)
        self._epoch, self._started_at = trainer.current_epoch, time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last epoch."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._epoch is None or not trainer.is_global_zero:
            return
        total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = time.monotonic() - self._started_at
        print(f"epoch {self._epoch + 1}{total}  {_numbers(trainer, _SHOWN)}  ({seconds:.1f} s)", flush=True)
        self._epoch = None


def _numbers(trainer: Trainer, names: tuple[str, ...]) -> str:
    """The metrics of the last epoch in a few words; those of someone else's module as they are called there."""
    values = trainer.callback_metrics
    shown = [name for name in names if name in values] or [name for name in values if "loss" in name][:3]
    return "  ".join(f"{name} {float(values[name]):.4f}" for name in shown)


def _count(total: float) -> int | None:
    return int(total) if total != float("inf") else None
