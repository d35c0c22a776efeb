"""Which engine trains the trials: one by one, stacked, or stacks and single trials on all devices by Ray."""

import gc
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mlprank.grids.progress import Watcher
from mlprank.grids.ray import ray_places, run_units
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.local import LocalEngine
from mlprank.tuning.stack.engine import BatchedEngine, check_stackable, group_trials
from mlprank.tuning.stack.network import CannotStackError
from mlprank.tuning.store import Store, Trial


def choose_engine(
    options: TuneOptions, trials: Sequence[Trial], watcher: Watcher
) -> "LocalEngine | BatchedEngine | RayEngine":
    """Return the engine that the options ask for; `auto` tells the watcher what it chose, and why."""
    name = options.engine
    if name == "auto":
        gpus, reason = torch.cuda.device_count(), _obstacle(trials)
        if reason is None and options.address is None:
            name, why = "batched", "the trials can be stacked"
        elif gpus > 1 or options.address is not None:
            name, why = "ray", f"{gpus} GPUs" if options.address is None else f"the cluster at {options.address}"
        else:
            name, why = "local", str(reason)
        watcher.note(f"engine {name}: {why}")
    if name == "ray":
        return RayEngine(options)
    return LocalEngine() if name == "local" else BatchedEngine(LocalEngine(), options)


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
    options: TuneOptions


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
        o, called = self.options, "--tune.{}_per_trial"
        with ray_places(o.address, cpus=o.cpus_per_trial, gpus=o.gpus_per_trial, option=called) as places:
            units = [
                Unit(
                    out=str(store.out.resolve()),
                    keys=tuple(trial.key for trial in part),
                    points=tuple(dict(trial.point) for trial in part),
                    gpu=places.gpus > 0,
                    options=o,
                )
                for part in split(trials, slots=places.slots, watcher=watcher)
            ]
            watcher.note(f"ray: {len(units)} units of work on {places.slots} places")
            look = _news(trials, store, watcher)
            run_units(units, worker=f"{__name__}:UnitRunner", places=places, look=look)


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


def _news(trials: Sequence[Trial], store: Store, watcher: Watcher) -> Callable[[], None]:
    """Return what tells the watcher of records that are new, and of epochs of what trains."""
    waiting, shown = list(trials), dict[str, dict[str, float]]()

    def look() -> None:
        for trial in list(waiting):
            outcome, failure = store.outcome(trial.key), store.failure(trial.key)
            row = store.progress(trial.key)
            if outcome is not None or failure is not None:
                waiting.remove(trial)
                if outcome is not None:
                    watcher.finished(trial, outcome)
                else:
                    watcher.failed(trial, str(failure))
            elif row is not None and shown.get(trial.key) != row:
                if trial.key not in shown:
                    watcher.started([trial])
                shown[trial.key] = row
                if row:
                    watcher.epoch(trial, row)

    return look


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
    """Trains units one after another."""

    def __init__(self) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.precision = torch.get_float32_matmul_precision()
        os.environ.pop("SLURM_NTASKS", None)  # else Lightning takes every actor for a task of the job

    def run(self, unit: Unit) -> None:
        """Train what of a unit has no record yet, and clean up."""
        store = Store(unit.out)
        trials = [store.load(key, point) for key, point in zip(unit.keys, unit.points, strict=True)]
        pending = [trial for trial in trials if store.is_open(trial.key)]
        options = {} if unit.gpu else {"accelerator": "cpu"}  # without a GPU of its own it sees them all
        local = LocalEngine(options=options, name="ray")
        engine = BatchedEngine(local, unit.options) if len(pending) > 1 else local
        try:
            engine.run(pending, store, _Reporter(store))
        finally:
            for key in unit.keys:
                store.show_progress(key, None)
            torch.set_float32_matmul_precision(self.precision)
            torch.use_deterministic_algorithms(False)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            finish_wandb(failed=True)  # a run that ended well is finished already
