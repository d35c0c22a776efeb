"""Trials one after another in this process, the oracle for the other engines.

`python -m mlprank.tuning.local OUT KEY` is for trials on several devices, whose processes Lightning
starts by running the same command again.
"""

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
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from mlprank.grids.progress import Watcher
from mlprank.training.build import build_trial, interruptible
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.store import BEST, MONITOR, Outcome, Store, Trial
from mlprank.utils.errors import FAILURES

METRICS = ("train_loss", "val_loss", "val_top1", "val_top5", "lr")
_ONE_DEVICE = ("auto", None, 1, "1", -1, "-1", [0])


class LocalEngine:
    """Trains trials one after another.

    `options` of the Trainer override the trials', such as `accelerator`; `name` is recorded.
    """

    def __init__(self, *, options: Mapping[str, Any] | None = None, name: str = "local") -> None:
        self.options, self.name = dict(options or {}), name

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials, each in this process or, where it takes several devices, in processes of its own."""
        for trial in trials:
            with store.training(trial.key):
                outcome = store.outcome(trial.key)
                if outcome is None:
                    watcher.started([trial])
                    try:
                        if takes_several_devices(trial.config):
                            outcome = _train_in_processes(trial, store)
                        else:
                            outcome = train(trial, store, watcher, options=self.options, name=self.name)
                    except FAILURES as error:
                        finish_wandb(failed=True)
                        watcher.failed(trial, store.fail(trial, error))
                        continue
                    store.finish(trial, outcome)
                watcher.finished(trial, outcome)


def takes_several_devices(config: Mapping[str, Any]) -> bool:
    """Tell whether a trial asks for more than one process."""
    trainer = config["trainer"]
    return trainer.get("devices") not in _ONE_DEVICE or int(trainer.get("num_nodes") or 1) > 1


def train(trial: Trial, store: Store, watcher: Watcher, *, options: Mapping[str, Any], name: str) -> Outcome:
    """Train one trial from scratch and record nothing; its best epoch's weights are in `best.ckpt` afterwards."""
    directory = store.prepare(trial)
    (directory / BEST).unlink(missing_ok=True)
    best = BEST.removesuffix(".ckpt")
    kept: dict[str, Any] = {
        "monitor": MONITOR,
        "mode": "max",
        "save_weights_only": True,
        "enable_version_counter": False,
    }
    history = HistoryLogger(lambda row: watcher.epoch(trial, row))
    single = {} if takes_several_devices(trial.config) else {"devices": 1}
    built = build_trial(
        name_loggers(trial.config, trial, store),
        directory,
        callbacks=[ModelCheckpoint(directory, filename=best, **kept)],
        trainer={"logger": history, "enable_checkpointing": True, **single, **options},
    )
    built.trainer.loggers = [history, *built.loggers]
    for logger in built.loggers:
        logger.log_hyperparams(dict(trial.config))
    device, start = built.trainer.strategy.root_device, time.perf_counter()
    lost: list[dict[str, float]] = []
    try:
        with interruptible(built.trainer), lean_training(built.trainer):
            built.trainer.fit(built.model, datamodule=built.datamodule)
    except FloatingPointError:
        lost = [{"train_loss": math.nan}]
    outcome = outcome_of([*history.rows.values(), *lost], start=start, engine=name, device=device)
    if outcome.status == "diverged":
        (directory / BEST).unlink(missing_ok=True)
    if built.trainer.is_global_zero:
        finish_loggers(built.loggers, outcome)
    return outcome


def outcome_of(history: Iterable[Mapping[str, float]], *, start: float, engine: str, device: torch.device) -> Outcome:
    """Return what came out of a training by the metrics of its epochs; `start` is that of `time.perf_counter`."""
    rows: list[Mapping[str, float]] = []
    best, diverged = -1, False
    for row in history:
        if not all(map(math.isfinite, row.values())):
            rows.append({"epoch": len(rows), **dict.fromkeys(METRICS, math.nan)})
            best, diverged = -1, True
            break
        if MONITOR in row and (best < 0 or row[MONITOR] > rows[best][MONITOR]):
            best = len(rows)
        rows.append(dict(row))
    return Outcome(
        status="diverged" if diverged else "done",
        history=tuple(rows),
        best_epoch=best,
        duration_s=time.perf_counter() - start,
        engine=engine,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


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
    """Keeps the metrics of every epoch in memory, and calls `on_epoch` with them when they are complete."""

    name, version = "history", 0

    def __init__(self, on_epoch: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self._on_epoch = on_epoch

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
    """Log the final metrics and close the loggers, W&B's run too."""
    for logger in loggers:
        final = {f"best_{name}": value for name, value in outcome.metrics.items() if name in METRICS}
        logger.log_metrics({**final, "best_epoch": outcome.best_epoch, "diverged": float(outcome.status == "diverged")})
        logger.finalize("success" if outcome.status == "done" else "failed")
    finish_wandb(failed=outcome.status != "done")


def main(arguments: Sequence[str]) -> int:
    """Train the trial of a store's directory and a key; the first process records it."""
    out, key = arguments
    store = Store(Path(out))
    trial = store.load(key, {})
    outcome = train(trial, store, Watcher(), options={}, name="local")
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")):
        store.finish(trial, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
