"""All trials at once on one device: groups that can be stacked, in batches that fit into memory."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mlprank.grids.engine import FAILURES, Watcher
from mlprank.models.classifier import ImageClassifier
from mlprank.training.build import Built, TrialBuilder, interruptible
from mlprank.training.runs import WholeCheckpointIO
from mlprank.tuning.local import LocalEngine, device_name, finish_loggers, load_trial, name_loggers, until_divergence
from mlprank.tuning.stack.classifier import StackedClassifier
from mlprank.tuning.stack.data import StackedDataModule
from mlprank.tuning.stack.grouping import (
    available_bytes,
    check_stackable,
    data_seed,
    group_trials,
    keep_large_blocks,
    trial_bytes,
    trials_that_fit,
)
from mlprank.tuning.stack.network import CannotStackError, trace
from mlprank.tuning.store import BEST, Store
from mlprank.tuning.trial import Outcome, Trial
from mlprank.utils.files import write_whole


class BatchedEngine:
    """Trains trials as stacked models; what cannot be stacked is trained by `fallback`, with the reason said.

    Args:
        cli: Parser and builder.
        fallback: Trains the others.
        options: Trainer options that override the trials', such as `accelerator`.
        at_most: Largest number of trials in a stack; None takes as many as fit into memory.
        checkpoint_every: Time between two checkpoints of a stack, which are written at the end of an epoch.
        name: Recorded as the engine.
    """

    def __init__(
        self,
        cli: TrialBuilder,
        *,
        fallback: LocalEngine,
        options: Mapping[str, Any] | None = None,
        at_most: int | None = None,
        checkpoint_every: timedelta = timedelta(minutes=10),
        name: str = "batched",
    ) -> None:
        self.cli, self.fallback, self.options = cli, fallback, dict(options or {})
        self.at_most, self.checkpoint_every, self.name = at_most, checkpoint_every, name

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials: first the stacks that were interrupted, then the others.

        Args:
            trials: Without a record.
            store: Where they are recorded.
            watcher: Told what happens.
        """
        pending = {trial.key: trial for trial in trials}
        for keys in store.open_stacks():
            unfinished = [key for key in keys if store.outcome(key) is None]
            if unfinished and all(key in pending for key in unfinished):
                everyone = [pending.get(key) or load_trial(store, key, {}) for key in keys]
                self._run_group(everyone, store, watcher, whole=True)
                pending = {key: trial for key, trial in pending.items() if key not in keys}
        for group in group_trials(list(pending.values())):
            self._run_group(group, store, watcher, whole=False)

    def _run_group(self, group: Sequence[Trial], store: Store, watcher: Watcher, *, whole: bool) -> None:
        try:
            check_stackable(group[0].config)
            size = len(group) if whole else self._batch(group, store, watcher)
            for start in range(0, len(group), size):
                self._train(group[start : start + size], store, watcher)
        except FAILURES as reason:
            left = [trial for trial in group if store.outcome(trial.key) is None]
            if isinstance(reason, torch.OutOfMemoryError) and len(left) > 1:
                watcher.note(f"{len(left)} trials do not fit into memory; half of them are tried")
                torch.cuda.empty_cache()
                self._run_group(left[: len(left) // 2], store, watcher, whole=True)
                self._run_group(left[len(left) // 2 :], store, watcher, whole=True)
                return
            kind = "" if isinstance(reason, CannotStackError) else f"{type(reason).__name__}: "
            watcher.note(f"{len(left)} trials are trained one by one: {kind}{reason}")
            self.fallback.run(left, store, watcher)

    def _batch(self, group: Sequence[Trial], store: Store, watcher: Watcher) -> int:
        """Return how many trials of a group are trained at once."""
        built = self._build(group[0], store)
        free = available_bytes(built.trainer.strategy.root_device)
        plan = trace(built.model.model, tuple(built.datamodule.in_shape))
        configured = built.model.configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        one = trial_bytes(built.model.model, optimizer, plan, batch_size=built.datamodule.batch_size)
        fit = min(trials_that_fit(one, free), self.at_most or len(group), len(group))
        batches = math.ceil(len(group) / fit)
        if batches > 1:
            watcher.note(
                f"{len(group)} trials in {batches} batches: one takes {one / 1e6:.0f} MB of {free / 1e6:.0f} MB"
            )
        return math.ceil(len(group) / batches)

    def _build(self, trial: Trial, store: Store, **options: Any) -> Built:
        defaults = {"devices": 1, "enable_checkpointing": False}
        return self.cli.build(trial.config, store.prepare(trial), trainer=defaults | self.options | options)

    def _train(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        with ExitStack() as locks:
            for trial in trials:
                locks.enter_context(store.training(trial.key))
            self._train_locked(trials, store, watcher)

    def _train_locked(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        watcher.started([trial for trial in trials if store.outcome(trial.key) is None])
        keys = [trial.key for trial in trials]
        directory = store.stack_directory(keys)
        seeds = [data_seed(trial.config) for trial in trials]
        distinct = list(dict.fromkeys(seeds))
        classifiers, built = [], None
        for trial in trials:
            part = self.cli.build(trial.config, store.prepare(trial), trainer={"devices": 1, **self.options})
            classifiers.append(part.model)
            built = built or part
        assert built is not None
        datamodules = [copy.copy(built.datamodule) for _ in distinct]
        for datamodule, seed in zip(datamodules, distinct, strict=True):
            if len(distinct) > 1:
                datamodule.seed = seed
        module = StackedClassifier(
            classifiers,
            in_shape=tuple(built.datamodule.in_shape),
            streams=[distinct.index(seed) for seed in seeds] if len(distinct) > 1 else None,
            seeds=[int(trial.config["seed_everything"] or 0) for trial in trials],
        )
        recorder = _Recorder(trials, store, watcher, start=time.perf_counter(), name=self.name)
        module.on_epoch = recorder
        last = _LastCheckpoint(directory, keys, every=self.checkpoint_every)
        trainer = self._build(trials[0], store, enable_checkpointing=True, callbacks=[last]).trainer
        if trainer.strategy.root_device.type == "cpu":
            keep_large_blocks()
        resumed = last.path if last.path.is_file() else None
        with interruptible(trainer):
            trainer.fit(
                module, StackedDataModule(datamodules), ckpt_path=resumed, weights_only=resumed is not None or None
            )
        for place in module.alive:
            recorder.record(module, place, save=True)
        self._log(trials, store)
        store.forget_stack(keys)

    def _log(self, trials: Sequence[Trial], store: Store) -> None:
        """Tell the config's loggers about every trial, as if it had been trained by itself."""
        if not isinstance(trials[0].config["trainer"].get("logger"), (dict, list)):
            return
        for trial in trials:
            outcome = store.outcome(trial.key)
            assert outcome is not None
            built = self.cli.build(name_loggers(trial.config, trial, store), store.directory(trial.key))
            for logger in built.loggers:
                logger.log_hyperparams(dict(trial.config))
                for row in outcome.history:
                    logger.log_metrics(dict(row), step=int(row["epoch"]))
            finish_loggers(built.loggers, outcome)


class _Recorder:
    """Shows every epoch, and records diverged trials when they are dropped."""

    def __init__(self, trials: Sequence[Trial], store: Store, watcher: Watcher, *, start: float, name: str) -> None:
        self.trials, self.store, self.watcher, self.start, self.name = trials, store, watcher, start, name

    def __call__(self, module: StackedClassifier) -> None:
        for place, trial in enumerate(self.trials):
            if place in module.alive:
                self.watcher.epoch(trial, module.history[place][-1])
            elif self.store.outcome(trial.key) is None:
                self.record(module, place, save=False)

    def record(self, module: StackedClassifier, place: int, *, save: bool) -> None:
        """Record a trial, after writing its best weights."""
        trial = self.trials[place]
        if save:
            save_best(module, place, self.store.directory(trial.key) / BEST)
        rows = module.history[place] if save else until_divergence(module.history[place])
        outcome = Outcome(
            status="done" if save else "diverged",
            history=tuple(rows),
            best_epoch=module.best_epoch[place] if save else -1,
            duration_s=time.perf_counter() - self.start,
            engine=self.name,
            device=device_name(module.trainer.strategy.root_device),
        )
        if self.store.finish(trial, outcome):
            self.watcher.finished(trial, outcome)


class _LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` of a stack at the end of an epoch when the last one is old enough."""

    def __init__(self, directory: Path, keys: Sequence[str], *, every: timedelta) -> None:
        self.directory, self.keys, self.every = directory, list(keys), every
        self.path = directory / "last.ckpt"
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, after everything else of the epoch is done."""
        if time.monotonic() - self._written >= self.every.total_seconds() and not trainer.should_stop:
            write_whole(self.directory / "stack.json", json.dumps({"keys": self.keys}).encode())
            trainer.save_checkpoint(self.path)
            self._written = time.monotonic()


def save_best(module: StackedClassifier, place: int, path: Path) -> None:
    """Write an ordinary checkpoint of one trial's best epoch.

    Args:
        module: The trained stack.
        place: The trial's place among its classifiers.
        path: Where.
    """
    classifier: ImageClassifier = copy.copy(module.classifiers[place])
    network = copy.deepcopy(classifier.model).cpu()
    network.load_state_dict(module.best_state(place))
    classifier._modules = {**classifier._modules, "model": network}
    with torch.random.fork_rng():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[WholeCheckpointIO()],
        )
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(path, weights_only=True)
