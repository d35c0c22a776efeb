"""The bar of a run, or a line an epoch where there is no terminal."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_REDRAW_S = 0.2


class RunProgress(ProgressBar):
    """A bar for the batches of an epoch, redrawn by the clock, in 80 columns; without a terminal, a line an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._is_live: bool | None = sys.stdout.isatty()  # None where nothing is shown
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._epoch: str | None = None
        self._done = 0
        self._drawn_at = self._started_at = 0.0

    def enable(self) -> None:
        """Show progress."""
        self._is_live = sys.stdout.isatty()

    def disable(self) -> None:
        """Show nothing: this is not the first process."""
        self._is_live = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._started_at = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch; the one before has its validation by now."""
        self._say_epoch(trainer)
        total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self._epoch = f"epoch {trainer.current_epoch + 1}{total}"
        self._show(self._epoch, self.total_train_batches)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Draw, where it is time to; within a training the bar of the epoch stays as it is while it validates."""
        self._done += 1
        if self._bar is not None and time.monotonic() - self._drawn_at >= _REDRAW_S:
            self._drawn_at = time.monotonic()
            self._bar.update(self._task, completed=self._done, refresh=True)

    on_test_batch_end = on_predict_batch_end = on_train_batch_end

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Draw a validation by itself."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_batch_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away, and leave one line."""
        self._say_epoch(trainer)
        self.teardown()
        if self._is_live:
            spent = time.monotonic() - self._started_at
            print(f"{trainer.current_epoch} epochs{_metrics(trainer)}  ({spent:.1f} s)", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation by itself, a test or a prediction."""
        counts = {"validate": "num_val_batches", "test": "num_test_batches", "predict": "num_predict_batches"}
        command = getattr(trainer.state.fn, "value", "")
        if command in counts:
            self._show(command, sum(getattr(trainer, counts[command])))

    on_test_start = on_predict_start = on_validation_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away for good."""
        self.teardown()
        self.disable()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say_epoch(self, trainer: Trainer) -> None:
        """Tell the numbers of the epoch that has ended: in the bar, or in a line."""
        if self._epoch is not None and self._bar is not None:
            self._bar.update(self._task, metrics=_metrics(trainer))
        elif self._epoch is not None and self._is_live is False:
            print(f"{self._epoch}{_metrics(trainer)}  ({time.monotonic() - self._started_at:.1f} s)", flush=True)
        self._epoch = None

    def _show(self, what: str, total: float) -> None:
        """Start the bar, or let it start anew."""
        self._done, count = 0, None if math.isinf(total) else int(total)
        if self._bar is not None:
            self._bar.reset(self._task, total=count, description=what)
        elif self._is_live:
            text, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[metrics]}")
            columns = (text, BarColumn(bar_width=20), MofNCompleteColumn(), numbers)
            self._bar = Progress(*columns, console=Console(), transient=True, auto_refresh=False)
            self._task = self._bar.add_task(what, total=count, metrics="")
            self._bar.start()
        self._drawn_at = time.monotonic()


def _metrics(trainer: Trainer) -> str:
    """The metrics of the last epoch in a few words; those of someone else's module as they are called there."""
    values = trainer.callback_metrics
    ours = [name for name in ("train_loss", "val_loss", "val_top1") if name in values]
    shown = ours or [name for name in values if "loss" in name][:3]
    return "".join(f"  {name} {float(values[name]):.4f}" for name in shown)
