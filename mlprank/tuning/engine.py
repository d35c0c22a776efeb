"""What all engines share: how they report, and what a trial needs around its training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch.loggers import Logger

from mlprank.training.loggers import finish_wandb
from mlprank.tuning.store import Store
from mlprank.tuning.trial import Outcome, Trial

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What makes a trial fail for good: the same would happen again. A full disk is no trial's fault and stops the search."""

METRICS = ("train_loss", "val_loss", "val_top1", "val_top5", "lr")


class Watcher(Protocol):
    """Sees what happens to the trials."""

    def started(self, trials: Sequence[Trial]) -> None:
        """These trials are being trained now."""

    def epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        """A trial has ended an epoch with these metrics."""

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """A trial is recorded as done or diverged."""

    def failed(self, trial: Trial, error: str) -> None:
        """A trial is recorded as failed."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Engine(Protocol):
    """Trains trials and records them in the store."""

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train trials that have no record yet."""


class HistoryLogger(Logger):
    """Keeps the metrics of every epoch in memory.

    Args:
        on_epoch: Called with the metrics of an epoch when they are complete.
    """

    def __init__(self, on_epoch: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self._on_epoch = on_epoch

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "history"

    @property
    def version(self) -> int:
        """Version of the logger."""
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their epoch."""
        epoch = int(metrics["epoch"]) if "epoch" in metrics else len(self.rows)
        row = self.rows.setdefault(epoch, {"epoch": epoch})
        row.update({name: float(value) for name, value in metrics.items() if name in METRICS})
        if "train_loss" in metrics:
            self._on_epoch(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing: the trial's directory has the config."""


def name_loggers(config: Mapping[str, Any], trial: Trial, store: Store) -> dict[str, Any]:
    """Return a trial's config whose W&B loggers make one run a trial in one group.

    The group is the directory's name and the run's id the trial's key, unless the config gives others.

    Args:
        config: The trial's config.
        trial: The trial.
        store: Its store.
    """
    plain: dict[str, Any] = json.loads(json.dumps(config))
    loggers = plain["trainer"].get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path")).endswith("WandbLogger"):
            init_args = logger.setdefault("init_args", {})
            init_args.update(name=trial.label, version=None, id=trial.key)
            logger["dict_kwargs"] = {"group": store.out.name} | (logger.get("dict_kwargs") or {})
    return plain


def finish_loggers(loggers: Sequence[Logger], outcome: Outcome) -> None:
    """Log the final metrics and close the loggers, W&B's run too.

    Args:
        loggers: The trial's loggers.
        outcome: What came out of it.
    """
    for logger in loggers:
        final = {f"best_{name}": value for name, value in outcome.metrics.items() if name in METRICS}
        logger.log_metrics({**final, "best_epoch": outcome.best_epoch, "diverged": float(outcome.status == "diverged")})
        logger.finalize("success" if outcome.status == "done" else "failed")
    finish_wandb(failed=outcome.status != "done")


def device_name(device: torch.device) -> str:
    """Return what a person calls a device, such as `NVIDIA H100` or `cpu`.

    Args:
        device: The device.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def best_epoch(history: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return the place of the first row with the highest value; -1 where none has one.

    Args:
        history: Metrics of every epoch.
        metric: Name of the metric.
    """
    best = -1
    for place, row in enumerate(history):
        if metric in row and (best < 0 or row[metric] > history[best][metric]):
            best = place
    return best


def until_divergence(history: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the epochs before the first whose metrics are not all finite, and a row of NaN for that one.

    Args:
        history: Metrics of every epoch.
    """
    rows: list[dict[str, float]] = []
    for row in history:
        if not all(math.isfinite(value) for value in row.values()):
            break
        rows.append(dict(row))
    return [*rows, {"epoch": len(rows), **dict.fromkeys(METRICS, math.nan)}]
