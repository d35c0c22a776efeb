"""Progress that costs nothing: a bar redrawn by the clock on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

_REDRAW_S = 0.2
_SHOWN = ("train_loss", "val_loss", "val_top1", "val_top5")


class ClockedProgressBar(TQDMProgressBar):
    """Lightning's bar, redrawn five times a second instead of once in so many batches."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn_at = 0.0

    def _should_update(self, current: int, total: int) -> bool:
        now = time.monotonic()
        if current != total and now - self._drawn_at < _REDRAW_S:
            return False
        self._drawn_at = now
        return super()._should_update(current, total)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics beside the bar, without the logger's version."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


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
        values = trainer.callback_metrics
        shown = "  ".join(f"{name} {float(values[name]):.4f}" for name in _SHOWN if name in values)
        total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        seconds = time.monotonic() - self._started_at
        print(f"epoch {self._epoch + 1}{total}  {shown}  ({seconds:.1f} s)", flush=True)
        self._epoch = None
