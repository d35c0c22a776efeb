"""Which engine trains the trials: one by one, stacked, or stacks and single trials on all devices by Ray."""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch.nn import functional as F

from mlprank.grids.engine import Silent, Watcher
from mlprank.grids.ray import Places, ray_places, run_units
from mlprank.training.build import TrialBuilder
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.local import LocalEngine, load_trial
from mlprank.tuning.stack.classifier import merge_optimizers, stacked_cross_entropy
from mlprank.tuning.stack.engine import BatchedEngine
from mlprank.tuning.stack.grouping import check_stackable, group_trials, keep_large_blocks
from mlprank.tuning.stack.network import CannotStackError, Stack
from mlprank.tuning.store import Store
from mlprank.tuning.trial import Trial

_STEPS = 3
_OVERHEAD_S = 5e-4
"""What Lightning adds to a step of one network, whether it is stacked or not."""


class Engine(Protocol):
    """Trains trials and records them in the store."""

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train trials that have no record yet."""


def choose_engine(options: TuneOptions, trials: Sequence[Trial], cli: TrialBuilder, watcher: Watcher) -> Engine:
    """Return the engine that the options ask for; `auto` weighs the devices and, on a CPU, measures.

    Args:
        options: Of the search.
        trials: Those without a record.
        cli: Parser and builder.
        watcher: Told what `auto` chose, and why.
    """
    local = LocalEngine(cli)
    batched = BatchedEngine(
        cli,
        fallback=local,
        at_most=options.trials_per_stack,
        checkpoint_every=timedelta(minutes=options.checkpoint_minutes),
    )
    name = options.engine if options.engine != "auto" else _automatic(options, trials, cli, watcher)
    if name == "ray":
        return RayEngine(options)
    return batched if name == "batched" else local


def _automatic(options: TuneOptions, trials: Sequence[Trial], cli: TrialBuilder, watcher: Watcher) -> str:
    gpus = torch.cuda.device_count()
    reason = _obstacle(trials)
    if gpus and reason is None and options.address is None:
        chosen, why = "batched", "the trials can be stacked on one GPU"
    elif gpus > 1 or options.address is not None:
        chosen, why = "ray", f"{gpus} GPUs" if options.address is None else f"the cluster at {options.address}"
    elif reason is not None:
        chosen, why = "local", reason
    elif stack_is_faster(trials, cli):
        chosen, why = "batched", "measured to be faster than one by one"
    else:
        chosen, why = "local", "measured to be faster than stacked"
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


def stack_is_faster(trials: Sequence[Trial], cli: TrialBuilder) -> bool:
    """Time a few steps of the largest group, stacked and one by one, on random data.

    Args:
        trials: Those to train.
        cli: Parser and builder.

    Returns:
        Whether the stack takes less time; False where the network cannot be stacked.
    """
    keep_large_blocks()  # as the stack would be trained
    group = max(group_trials(trials), key=len)
    count = min(len(group), 8)
    built = [cli.build(trial.config, Path(), trainer={"devices": 1, "accelerator": "cpu"}) for trial in group[:count]]
    data, classifiers = built[0].datamodule, [part.model for part in built]
    networks = [classifier.model for classifier in classifiers]
    images = torch.rand(count, data.batch_size, *data.in_shape)
    targets = torch.zeros(count, data.batch_size, dtype=torch.int64)
    alone = classifiers[0].configure_optimizers()
    optimizer = alone["optimizer"] if isinstance(alone, dict) else alone

    def single() -> None:
        optimizer.zero_grad()
        F.cross_entropy(networks[0](images[0]), targets[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    one = _seconds(single) + _OVERHEAD_S
    try:
        stack = Stack(networks, in_shape=tuple(data.in_shape))
    except CannotStackError:
        return False
    stack.bind(networks)
    configured = [classifier.configure_optimizers() for classifier in classifiers]
    merged = merge_optimizers([part["optimizer"] if isinstance(part, dict) else part for part in configured])

    def stacked() -> None:
        stack.zero_grad()
        stacked_cross_entropy(stack(images), targets).sum().backward()  # type: ignore[no-untyped-call]
        stack.share_gradients()
        merged.step()

    return _seconds(stacked) + _OVERHEAD_S < count * one


def _seconds(step: Callable[[], None]) -> float:
    step()
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True)
class Unit:
    """What one actor trains at a time: one trial, or one stack of trials.

    Attributes:
        out: Directory of the results, absolute.
        keys: The trials' keys.
        points: Their points.
        gpu: Whether the actor has a GPU; without one it must not use those that it sees.
        trials_per_stack: Largest number of trials in a stack.
        checkpoint_minutes: Time between two checkpoints of a stack.
    """

    out: str
    keys: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    gpu: bool
    trials_per_stack: int | None
    checkpoint_minutes: float


class RayEngine:
    """Trains trials by Ray Tune.

    Args:
        options: Of the search.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials; a worker or a node that dies loses the trial that it was at, which starts again.

        Args:
            trials: Without a record.
            store: Where they are recorded, seen by all nodes under the same path.
            watcher: Told what is recorded.
        """
        for trial in trials:
            store.prepare(trial)
        options = self.options
        news = _News(trials, store, watcher)
        with ray_places(
            options.address, cpus=options.cpus_per_trial, gpus=options.gpus_per_trial, option="--tune.{}_per_trial"
        ) as places:
            units = [self._unit(part, store, places) for part in split(trials, slots=places.slots, watcher=watcher)]
            watcher.note(f"ray: {len(units)} units of work on {places.slots} places")
            run_units(units, worker=f"{__name__}:UnitRunner", places=places, look=news.look)

    def _unit(self, trials: Sequence[Trial], store: Store, places: Places) -> Unit:
        return Unit(
            out=str(store.out.resolve()),
            keys=tuple(trial.key for trial in trials),
            points=tuple(dict(trial.point) for trial in trials),
            gpu=places.gpus > 0,
            trials_per_stack=self.options.trials_per_stack,
            checkpoint_minutes=self.options.checkpoint_minutes,
        )


def split(trials: Sequence[Trial], *, slots: int, watcher: Watcher) -> list[list[Trial]]:
    """Split trials into what one actor trains at a time: stacks of even size where they can be stacked, else one each.

    Args:
        trials: To train.
        slots: How many units run at the same time.
        watcher: Told why trials are not stacked.
    """
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
        for trial in list(self.waiting):
            outcome, failure = self.store.outcome(trial.key), self.store.failure(trial.key)
            if outcome is not None:
                self.watcher.finished(trial, outcome)
            elif failure is not None:
                self.watcher.failed(trial, failure)
            else:
                self._show(trial)
                continue
            self.waiting.remove(trial)

    def _show(self, trial: Trial) -> None:
        row = self.store.progress(trial.key)
        if row is None or self._shown.get(trial.key) == row:
            return
        if trial.key not in self._shown:
            self.watcher.started([trial])
        self._shown[trial.key] = row
        if row:
            self.watcher.epoch(trial, row)


class _Reporter(Silent):
    """Leaves every trial's last epoch in its directory, for the driver to show."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def started(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.epoch(trial, {})

    def epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        self.store.show_progress(trial.key, finite)


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
                store.show_progress(key, None)
            self._clean()

    def _clean(self) -> None:
        torch.set_float32_matmul_precision(self.precision)
        torch.use_deterministic_algorithms(False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finish_wandb(failed=True)  # a run that ended well is finished already
