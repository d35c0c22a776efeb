"""Trials one after another in this process: the oracle for the other engines."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from mlprank.training.build import TrialBuilder, interruptible
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.engine import (
    FAILURES,
    HistoryLogger,
    Watcher,
    best_epoch,
    device_name,
    finish_loggers,
    name_loggers,
    until_divergence,
)
from mlprank.tuning.store import BEST, Store
from mlprank.tuning.trial import MONITOR, Outcome, Trial

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
    command = [sys.executable, "-m", "mlprank.tuning.worker", str(store.out), trial.key]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    outcome = store.outcome(trial.key)
    if outcome is None:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the trial's processes ended with code {done.returncode}: {last}")
    return outcome
