"""What an actor of Ray does with a unit of trials; nothing of one unit is left for the next."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from mlprank.training.build import TrialBuilder
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.batched_engine import BatchedEngine
from mlprank.tuning.local import LocalEngine
from mlprank.tuning.ray_engine import Unit
from mlprank.tuning.store import PROGRESS, Store
from mlprank.tuning.trial import Trial
from mlprank.tuning.worker import Silent, load_trial
from mlprank.utils.files import whole_file


class _Reporter(Silent):
    """Leaves every trial's last epoch in its directory, for the driver to show."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def started(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.epoch(trial, {})

    def epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        with whole_file(self.store.directory(trial.key) / PROGRESS) as temporary:
            temporary.write_text(json.dumps(finite))


class UnitRunner:
    """Trains units one after another with one parser."""

    def __init__(self) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.cli = TrialBuilder()
        self.precision = torch.get_float32_matmul_precision()

    def run(self, unit: Unit) -> None:
        """Train what of a unit has no record yet, and clean up.

        Args:
            unit: The trials.
        """
        store = Store(Path(unit.out))
        trials = [load_trial(store, key, point) for key, point in zip(unit.keys, unit.points, strict=True)]
        pending = [t for t in trials if store.outcome(t.key) is None and store.failure(t.key) is None]
        options: dict[str, Any] = (
            {} if unit.gpu else {"accelerator": "cpu"}
        )  # without a GPU of its own it sees them all
        reporter = _Reporter(store)
        local = LocalEngine(self.cli, options=options, name="ray")
        if "SLURM_JOB_ID" in os.environ:
            self.cli.environment = LightningEnvironment()  # else every actor believes to be a task of the job
        try:
            if len(pending) < 2:
                local.run(pending, store, reporter)
            else:
                BatchedEngine(
                    self.cli,
                    fallback=local,
                    options=options,
                    at_most=unit.trials_per_stack,
                    checkpoint_every=timedelta(minutes=unit.checkpoint_minutes),
                    name="ray",
                ).run(pending, store, reporter)
        finally:
            for key in unit.keys:
                (store.directory(key) / PROGRESS).unlink(missing_ok=True)
            self._clean()

    def _clean(self) -> None:
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finish_wandb(failed=True)  # a run that ended well is finished already
