"""Trials one after another in this process, the oracle for the other engines; `python -m mlprank.tuning.local OUT KEY` is one trial.

The latter is for trials on several devices: Lightning starts their processes by running the same command again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from mlprank.grids.engine import FAILURES, Silent, Watcher
from mlprank.training.build import TrialBuilder, interruptible
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.store import BEST, CONFIG, Store
from mlprank.tuning.trial import MONITOR, Outcome, Trial

METRICS = ("train_loss", "val_loss", "val_top1", "val_top5", "lr")
_ONE_DEVICE = ("auto", None, 1, "1", -1, "-1")


class LocalEngine:
    """Trains trials one after another.

    Args:
        cli: Parser and builder.
        options: Trainer options that override the trials', such as `accelerator`.
        name: Recorded as the engine.
    """

    def __init__(self, cli: TrialBuilder, *, options: Mapping[str, Any] | None = None, name: str = "local") -> None:
        self.cli, self.options, self.name = cli, dict(options or {}), name

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials, each in this process or, where it takes several devices, in processes of its own.

        Args:
            trials: Without a record.
            store: Where they are recorded.
            watcher: Told what happens.
        """
        for trial in trials:
            with store.training(trial.key):
                earlier = store.outcome(trial.key)
                if earlier is not None:
                    watcher.finished(trial, earlier)
                    continue
                watcher.started([trial])
                try:
                    if takes_several_devices(trial.config):
                        outcome = _train_in_processes(trial, store)
                    else:
                        outcome = train(self.cli, trial, store, watcher, options=self.options, name=self.name)
                except FAILURES as error:
                    finish_wandb(failed=True)
                    store.fail(trial, error)
                    watcher.failed(trial, str(store.failure(trial.key)))
                else:
                    store.finish(trial, outcome)
                    watcher.finished(trial, outcome)


def takes_several_devices(config: Mapping[str, Any]) -> bool:
    """Tell whether a trial asks for more than one process.

    Args:
        config: The trial's config.
    """
    trainer = config["trainer"]
    several = trainer.get("devices") not in _ONE_DEVICE and trainer.get("devices") != [0]
    return several or int(trainer.get("num_nodes") or 1) > 1


def train(
    cli: TrialBuilder, trial: Trial, store: Store, watcher: Watcher, *, options: Mapping[str, Any], name: str
) -> Outcome:
    """Train one trial from scratch; its best epoch's weights are in `best.ckpt` afterwards.

    Args:
        cli: Parser and builder.
        trial: The trial.
        store: Its directory is made there; nothing is recorded.
        watcher: Told about every epoch.
        options: Trainer options that override the trial's.
        name: Recorded as the engine.

    Returns:
        What came out.
    """
    directory = store.prepare(trial)
    (directory / BEST).unlink(missing_ok=True)
    checkpoint = ModelCheckpoint(
        directory,
        filename=BEST.removesuffix(".ckpt"),
        monitor=MONITOR,
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
    )
    history = HistoryLogger(lambda row: watcher.epoch(trial, row))
    single = {} if takes_several_devices(trial.config) else {"devices": 1}
    config = name_loggers(trial.config, trial, store)
    built = cli.build(
        config,
        directory,
        callbacks=[checkpoint],
        trainer={"logger": history, "enable_checkpointing": True, **single, **options},
    )
    built.trainer.loggers = [history, *built.loggers]
    for logger in built.loggers:
        logger.log_hyperparams(dict(trial.config))
    device = device_name(built.trainer.strategy.root_device)
    start = time.perf_counter()
    diverged = False
    try:
        with interruptible(built.trainer), lean_training(built.trainer):
            built.trainer.fit(built.model, datamodule=built.datamodule)
    except FloatingPointError:
        diverged = True
    rows = list(history.rows.values())
    diverged = diverged or any(not math.isfinite(value) for row in rows for value in row.values())
    if diverged:
        rows = until_divergence(rows)
        (directory / BEST).unlink(missing_ok=True)
    outcome = Outcome(
        status="diverged" if diverged else "done",
        history=tuple(rows),
        best_epoch=-1 if diverged else best_epoch(rows, MONITOR),
        duration_s=time.perf_counter() - start,
        engine=name,
        device=device,
    )
    if built.trainer.is_global_zero:
        finish_loggers(built.loggers, outcome)
    return outcome


def _train_in_processes(trial: Trial, store: Store) -> Outcome:
    """Train a trial that takes several devices: Lightning starts its processes by running the same command again."""
    store.prepare(trial)
    command = [sys.executable, "-m", "mlprank.tuning.local", str(store.out), trial.key]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    outcome = store.outcome(trial.key)
    if outcome is None:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the trial's processes ended with code {done.returncode}: {last}")
    return outcome


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


def load_trial(store: Store, key: str, point: Mapping[str, object]) -> Trial:
    """Read a trial from its directory.

    Args:
        store: The store.
        key: The trial's key.
        point: The grid's options and values.
    """
    config = yaml.safe_load((store.directory(key) / CONFIG).read_text())
    return Trial(key=key, point=dict(point), config=config)


def main(arguments: Sequence[str]) -> int:
    """Train the trial; the first process records it.

    Args:
        arguments: The store's directory and the trial's key.

    Returns:
        The exit code, 0.
    """
    out, key = arguments
    store = Store(Path(out))
    trial = load_trial(store, key, {})
    outcome = train(TrialBuilder(), trial, store, Silent(), options={}, name="local")
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")):
        store.finish(trial, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
