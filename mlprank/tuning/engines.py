"""Which engine trains the trials: one by one, stacked, or stacks and single trials on all devices by Ray."""

import gc
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from mlprank.grids.progress import Watcher
from mlprank.grids.ray import ray_places, run_units
from mlprank.training.build import TrialBuilder
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.local import LocalEngine
from mlprank.tuning.stack.engine import BatchedEngine, check_stackable, group_trials
from mlprank.tuning.stack.network import CannotStackError
from mlprank.tuning.store import Store, Trial


class Engine(Protocol):
    """Trains trials and records them in the store."""

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train trials that have no record yet."""


def choose_engine(options: TuneOptions, trials: Sequence[Trial], cli: TrialBuilder, watcher: Watcher) -> Engine:
    """Return the engine that the options ask for; `auto` tells the watcher what it chose, and why."""
    name = options.engine if options.engine != "auto" else _automatic(options, trials, watcher)
    if name == "ray":
        return RayEngine(options)
    return _engine(name, LocalEngine(cli), options.trials_per_stack, options.checkpoint_minutes)


def _engine(name: str, local: LocalEngine, trials_per_stack: int | None, minutes: float) -> Engine:
    if name == "local":
        return local
    return BatchedEngine(local, at_most=trials_per_stack, checkpoint_every=timedelta(minutes=minutes), name=name)


def _automatic(options: TuneOptions, trials: Sequence[Trial], watcher: Watcher) -> str:
    gpus, reason = torch.cuda.device_count(), _obstacle(trials)
    if reason is None and options.address is None:
        chosen, why = "batched", "the trials can be stacked"
    elif gpus > 1 or options.address is not None:
        chosen, why = "ray", f"{gpus} GPUs" if options.address is None else f"the cluster at {options.address}"
    else:
        chosen, why = "local", str(reason)
    watcher.note(f"engine {chosen}: {why}")
    return chosen


def _obstacle(trials: Sequence[Trial]) -> str | None:
    groups = group_trials(trials)
    if all(len(group) == 1 for group in groups):
        return "no two trials can be stacked: they differ in more than numbers of the optimizer, seeds and smoothing"
    try:
        for group in groups:
            check_stackable(group[0].config)
    except CannotStackError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Unit:
    """What one actor trains at a time: one trial, or one stack of trials.

    Without a GPU (`gpu`), the actor must not use those that it sees. The directory `out` is absolute.
    """

    out: str
    keys: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    gpu: bool
    trials_per_stack: int | None
    checkpoint_minutes: float


class RayEngine:
    """Trains trials by Ray Tune, in a directory that all nodes see under the same path.

    A worker or a node that dies loses the trial that it was at, which starts again.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train trials that have no record yet."""
        for trial in trials:
            store.prepare(trial)
        o, option = self.options, "--tune.{}_per_trial"
        with ray_places(o.address, cpus=o.cpus_per_trial, gpus=o.gpus_per_trial, option=option) as places:
            units = [
                Unit(
                    out=str(store.out.resolve()),
                    keys=tuple(trial.key for trial in part),
                    points=tuple(dict(trial.point) for trial in part),
                    gpu=places.gpus > 0,
                    trials_per_stack=o.trials_per_stack,
                    checkpoint_minutes=o.checkpoint_minutes,
                )
                for part in split(trials, slots=places.slots, watcher=watcher)
            ]
            watcher.note(f"ray: {len(units)} units of work on {places.slots} places")
            news = _News(trials, store, watcher)
            run_units(units, worker=f"{__name__}:UnitRunner", places=places, look=news.look)


def split(trials: Sequence[Trial], *, slots: int, watcher: Watcher) -> list[list[Trial]]:
    """Split trials into what one actor trains at a time: stacks of even size where that can be, else one each."""
    units: list[list[Trial]] = []
    for group in group_trials(trials):
        try:
            check_stackable(group[0].config)
            size = -(-len(group) // slots)
        except CannotStackError as reason:
            watcher.note(f"{len(group)} trials are trained one by one: {reason}")
            size = 1
        units += [list(group[start : start + size]) for start in range(0, len(group), size)]
    return units


class _News:
    """Reads the store while Ray works, and tells the watcher what is new."""

    def __init__(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        self.waiting, self.store, self.watcher = list(trials), store, watcher
        self._shown: dict[str, dict[str, float]] = {}

    def look(self) -> None:
        """Tell of records, and of epochs of what trains."""
        for trial in list(self.waiting):
            outcome, failure = self.store.outcome(trial.key), self.store.failure(trial.key)
            if outcome is None and failure is None:
                self._show(trial)
                continue
            self.waiting.remove(trial)
            if outcome is not None:
                self.watcher.finished(trial, outcome)
            else:
                self.watcher.failed(trial, str(failure))

    def _show(self, trial: Trial) -> None:
        row = self.store.progress(trial.key)
        if row is None or self._shown.get(trial.key) == row:
            return
        if trial.key not in self._shown:
            self.watcher.started([trial])
        self._shown[trial.key] = row
        if row:
            self.watcher.epoch(trial, row)


class _Reporter(Watcher):
    """Leaves every trial's last epoch in its directory, for the driver to show."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def started(self, items: Sequence[Trial]) -> None:
        for trial in items:
            self.epoch(trial, {})

    def epoch(self, item: Trial, row: Mapping[str, float]) -> None:
        self.store.show_progress(item.key, {name: value for name, value in row.items() if math.isfinite(value)})


class UnitRunner:
    """Trains units one after another with one parser."""

    def __init__(self) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.cli = TrialBuilder()
        self.precision = torch.get_float32_matmul_precision()
        if "SLURM_JOB_ID" in os.environ:
            self.cli.environment = LightningEnvironment()  # else every actor believes to be a task of the job

    def run(self, unit: Unit) -> None:
        """Train what of a unit has no record yet, and clean up."""
        store = Store(unit.out)
        trials = [store.load(key, point) for key, point in zip(unit.keys, unit.points, strict=True)]
        pending = [trial for trial in trials if store.is_open(trial.key)]
        options = {} if unit.gpu else {"accelerator": "cpu"}  # without a GPU of its own it sees them all
        local = LocalEngine(self.cli, options=options, name="ray")
        stacked = _engine("ray", local, unit.trials_per_stack, unit.checkpoint_minutes)
        try:
            (stacked if len(pending) > 1 else local).run(pending, store, _Reporter(store))
        finally:
            for key in unit.keys:
                store.show_progress(key, None)
            torch.set_float32_matmul_precision(self.precision)
            torch.use_deterministic_algorithms(False)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            finish_wandb(failed=True)  # a run that ended well is finished already
