"""Engines that train trials: one by one, as stacks on one device, or both on all devices by Ray.

`python -m mlprank.tuning.engines OUT KEY` is for trials on several devices, whose processes Lightning starts by running
the same command again.
"""

import ctypes
import gc
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from mlprank.grids.progress import Progress
from mlprank.grids.ray import run_units
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import finish_wandb
from mlprank.training.run import Built, build_trial, interruptible
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.stack import CannotStackError, StackedClassifier, StackedDataModule
from mlprank.tuning.store import BEST, LAST, METRICS, MONITOR, STACK, Outcome, Store, Trial, without_places
from mlprank.utils.errors import FAILURES
from mlprank.utils.files import write_whole


def takes_several_devices(config: Mapping[str, Any]) -> bool:
    """Tell whether a trial asks for more than one process."""
    trainer = config["trainer"]
    one = trainer.get("devices") in ("auto", None, 1, "1", -1, "-1", [0])
    return not one or int(trainer.get("num_nodes") or 1) > 1


_OWN_IN_MODEL = ("lr_scheduler", "label_smoothing", "bias_weight_decay", "norm_weight_decay")
_HARMLESS_CALLBACKS = ("LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "RichModelSummary", "Timer")
_PLAIN = (
    {"strategy": "auto", "val_check_interval": "1.0", "check_val_every_n_epoch": "1"}
    | dict.fromkeys(("detect_anomaly", "fast_dev_run", "barebones"), "False")
    | dict.fromkeys(("profiler", "plugins", "max_time"), "None")
)
"""Options of the Trainer that a stack takes with these values only."""


def group_trials(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Put trials together that can be one stack: they differ in nothing but what each may have of its own."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        plain = without_places(trial.config)
        plain.pop("seed_everything", None)
        for name in _OWN_IN_MODEL:
            plain["model"].pop(name, None)
        plain["model"]["optimizer"] = (plain["model"].get("optimizer") or {}).get("class_path")
        (plain["data"].get("init_args") or {}).pop("seed", None)
        groups.setdefault(json.dumps(plain, sort_keys=True), []).append(trial)
    return list(groups.values())


def obstacle(config: Mapping[str, Any]) -> str | None:
    """Say which option keeps a trial out of a stack, which cannot do as training by itself does; None where none."""
    trainer = config["trainer"]
    if takes_several_devices(config):
        return f"trainer.devices={trainer.get('devices')}: a stack trains on one device"
    if str(trainer.get("precision")).startswith(("16", "transformer-engine")):
        return f"trainer.precision={trainer['precision']}: with one loss scale for all, trials would disturb each other"
    if trainer.get("limit_val_batches") == 0:
        return "trainer.limit_val_batches=0: a stack keeps every trial's best epoch by its validation"
    for name, plain in _PLAIN.items():
        if str(trainer.get(name)) not in (plain, "None", "[]"):
            return f"trainer.{name}={trainer[name]}: a stack takes {plain} only"
    for callback in trainer.get("callbacks") or []:
        name = str(callback["class_path"]).rpartition(".")[2]
        if name not in _HARMLESS_CALLBACKS:
            return f"trainer.callbacks: {name} may act on one trial's training, a stack trains many"
    return None


def choose_engine(trials: Sequence[Trial], address: str | None) -> tuple[str, str]:
    """Return the name of the engine that suits trials, the devices here and a cluster's address, and why."""
    if address is not None:
        return "ray", f"the cluster at {address}"
    gpus, groups = torch.cuda.device_count(), group_trials(trials)
    reasons = [reason for group in groups if (reason := obstacle(group[0].config))]
    if len(groups) == len(trials):
        reasons = ["no two trials can be stacked: they differ in more than optimizer, seeds and smoothing"]
    if not reasons:
        return "batched", "the trials can be stacked"
    return ("ray", f"{gpus} GPUs") if gpus > 1 else ("local", reasons[0])


@dataclass(frozen=True)
class Engine:
    """Trains trials that have no record yet, and tells `progress` what happens to them."""

    options: TuneOptions
    store: Store
    progress: Progress
    trainer: Mapping[str, Any] = field(default_factory=dict)  # options of the Trainer that override the trials'
    name: str | None = None  # recorded in place of the engine's own

    def run(self, trials: Sequence[Trial]) -> None:
        """Train trials by the engine that the options ask for."""
        name: str = self.options.engine
        if name == "auto":
            name, why = choose_engine(trials, self.options.address)
            self.progress.note(f"engine {name}: {why}")
        {"local": self.run_alone, "batched": self.run_stacked, "ray": self.run_by_ray}[name](trials)

    def run_alone(self, trials: Sequence[Trial]) -> None:
        """Train trials one after another, in this process or, what takes several devices, in processes of its own."""
        for trial in trials:
            with self.store.training(trial.key):
                outcome = self.store.outcome(trial.key)
                if outcome is None:
                    self.progress.started([trial])
                    try:
                        several = takes_several_devices(trial.config)
                        outcome = self._train_in_processes(trial) if several else self.train(trial)
                    except FAILURES as error:
                        finish_wandb(failed=True)
                        self.progress.failed(trial, self.store.fail(trial, error))
                        continue
                    self.store.finish(trial, outcome)
                self.progress.finished(trial, outcome)

    def _train_in_processes(self, trial: Trial) -> Outcome:
        self.store.prepare(trial)
        command = [sys.executable, "-m", "mlprank.tuning.engines", str(self.store.out), trial.key]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        outcome = self.store.outcome(trial.key)
        if outcome is None:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"the trial's processes ended with code {done.returncode}: {last}")
        return outcome

    def train(self, trial: Trial) -> Outcome:
        """Train one trial from scratch and record nothing; its best epoch's weights are in `best.ckpt` afterwards."""
        folder = self.store.prepare(trial)
        (folder / BEST).unlink(missing_ok=True)
        best = ModelCheckpoint(
            folder, Path(BEST).stem, MONITOR, mode="max", save_weights_only=True, enable_version_counter=False
        )
        history = _History(partial(self.progress.epoch, trial))
        single = {} if takes_several_devices(trial.config) else {"devices": 1}
        trainer = {"logger": history, "enable_checkpointing": True, **single, **self.trainer}
        built = build_trial(name_loggers(trial, self.store), folder, [best], **trainer)
        built.trainer.loggers = [history, *built.loggers]
        for logger in built.loggers:
            logger.log_hyperparams(dict(trial.config))
        device, start = built.trainer.strategy.root_device, time.perf_counter()
        try:
            with interruptible(built.trainer), lean_training(built.trainer):
                built.trainer.fit(built.model, datamodule=built.datamodule)
        except FloatingPointError:
            history.rows[-1] = {"train_loss": math.nan}
        outcome = outcome_of(list(history.rows.values()), start=start, engine=self.name or "local", device=device)
        if outcome.status == "diverged":
            (folder / BEST).unlink(missing_ok=True)
        if built.trainer.is_global_zero:
            finish_loggers(built.loggers, outcome)
        return outcome

    def run_stacked(self, trials: Sequence[Trial]) -> None:
        """Train trials as stacks, first those that were interrupted; what cannot be stacked, alone, and say why."""
        pending = {trial.key: trial for trial in trials}
        for stack, keys in self.store.stacks().items():
            unfinished = {key for key in keys if self.store.outcome(key) is None}
            if (stack / LAST).is_file() and unfinished and unfinished <= pending.keys():
                everyone = [pending.pop(key) if key in pending else self.store.load(key) for key in keys]
                self._run_group(everyone, size=len(everyone))
        for group in group_trials(list(pending.values())):
            self._run_group(group)

    def _run_group(self, group: Sequence[Trial], *, size: int | None = None) -> None:
        """Train trials that can be one stack in stacks of a size, by default of as many as fit into memory."""
        try:
            if reason := obstacle(group[0].config):
                raise CannotStackError(reason)
            size = size or self._size(group)
            for start in range(0, len(group), size):
                part = group[start : start + size]
                with ExitStack() as locks:
                    for trial in part:
                        locks.enter_context(self.store.training(trial.key))
                    self._train_stack(part)
        except FAILURES as error:
            left = [trial for trial in group if self.store.outcome(trial.key) is None]
            if isinstance(error, torch.OutOfMemoryError) and len(left) > 1:
                self.progress.note(f"{len(left)} trials do not fit into memory; half of them are tried")
                torch.cuda.empty_cache()
                for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                    self._run_group(half, size=len(half))
                return
            kind = "" if isinstance(error, CannotStackError) else f"{type(error).__name__}: "
            self.progress.note(f"{len(left)} trials are trained one by one: {kind}{error}")
            self.run_alone(left)

    def _size(self, group: Sequence[Trial]) -> int:
        """Return how many trials of a group are trained at once: they take at most four fifths of the free memory."""
        built = self._build(group[0])
        free = available_bytes(built.trainer.strategy.root_device)
        one = trial_bytes(built.model.model, tuple(built.datamodule.in_shape), built.datamodule.batch_size)
        fit = min(max(4 * free // (5 * one), 1), self.options.trials_per_stack or len(group), len(group))
        batches = math.ceil(len(group) / fit)
        if batches > 1:
            sizes = f"one takes {one / 1e6:.0f} MB of {free / 1e6:.0f} MB"
            self.progress.note(f"{len(group)} trials in {batches} batches: {sizes}")
        return math.ceil(len(group) / batches)

    def _build(self, trial: Trial) -> Built:
        # callbacks that log something refuse to train without a logger
        trainer = {"devices": 1, "enable_checkpointing": False, "logger": DummyLogger(), **self.trainer}
        return build_trial(name_loggers(trial, self.store), self.store.prepare(trial), **trainer)

    def _train_stack(self, trials: Sequence[Trial]) -> None:
        store, keys, start = self.store, [trial.key for trial in trials], time.perf_counter()
        self.progress.started([trial for trial in trials if store.outcome(trial.key) is None])
        built = [self._build(trial) for trial in trials]
        last = store.stack_directory(keys) / LAST
        seeds = [(trial.config["data"].get("init_args") or {}).get("seed") for trial in trials]
        data = StackedDataModule(built[0].datamodule, seeds)
        module = StackedClassifier(
            [each.model for each in built],
            in_shape=tuple(built[0].datamodule.in_shape),
            seeds=[int(trial.config["seed_everything"] or 0) for trial in trials],
        )
        written = time.monotonic()

        def on_epoch(module: StackedClassifier) -> None:
            """Record the trials that have diverged, and write `last.ckpt` where the last one is old enough."""
            nonlocal written
            for place, trial in enumerate(trials):
                if place not in module.diverged:
                    self.progress.epoch(trial, module.history[place][-1])
                elif store.outcome(trial.key) is None:
                    self._record(trial, built[place], module, place, start=start)
            age = time.monotonic() - written
            if age >= 60 * self.options.checkpoint_minutes and not module.trainer.should_stop:
                write_whole(last.with_name(STACK), json.dumps({"keys": keys}))
                module.trainer.save_checkpoint(last)
                written = time.monotonic()

        module.on_epoch = on_epoch
        trainer = self._build(trials[0]).trainer
        if trainer.strategy.root_device.type == "cpu":
            keep_large_blocks()
        with interruptible(trainer):
            resumed = last if last.is_file() else None
            trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
        for place, trial in enumerate(trials):
            self._record(trial, built[place], module, place, start=start)
        shutil.rmtree(last.parent, ignore_errors=True)

    def _record(self, trial: Trial, built: Built, module: StackedClassifier, place: int, *, start: float) -> None:
        """Write the best epoch as an ordinary checkpoint, and what came out; the config's loggers hear of it."""
        device, name = module.trainer.strategy.root_device, self.name or "batched"
        outcome = outcome_of(module.history[place], start=start, engine=name, device=device)
        if outcome.status == "done":
            single = module.classifiers[place]
            single.model.load_state_dict(module.best[place], assign=True)
            built.trainer.strategy.connect(single)
            built.trainer.save_checkpoint(self.store.directory(trial.key) / BEST, weights_only=True)
        if self.store.finish(trial, outcome):
            for logger in built.loggers:
                logger.log_hyperparams(dict(trial.config))
                for row in outcome.history:
                    logger.log_metrics(dict(row), step=int(row["epoch"]))
            finish_loggers(built.loggers, outcome)
            self.progress.finished(trial, outcome)

    def run_by_ray(self, trials: Sequence[Trial]) -> None:
        """Train trials by Ray, in a directory that all nodes see; what a process was at that dies starts again."""
        o, store, progress = self.options, self.store, self.progress

        def units(slots: int, gpu: bool) -> list[tuple[list[Trial], Callable[[], None]]]:
            """Split trials into what one process trains at a time: even stacks where that can be, else one each."""
            parts: list[list[Trial]] = []
            for group in group_trials(trials):
                if reason := obstacle(group[0].config):
                    progress.note(f"{len(group)} trials are trained one by one: {reason}")
                size = 1 if reason else -(-len(group) // slots)
                parts += [group[start : start + size] for start in range(0, len(group), size)]
            return [(part, partial(train_unit, str(store.out.resolve()), part, options=o, gpu=gpu)) for part in parts]

        def tell(ended: Sequence[Trial], nothing: None) -> None:
            for trial in ended:
                outcome, failure = store.outcome(trial.key), store.failure(trial.key)
                if outcome is not None:
                    progress.finished(trial, outcome)
                elif failure is not None:
                    progress.failed(trial, failure)

        placed: dict[str, Any] = {"address": o.address, "cpus": o.cpus_per_trial, "gpus": o.gpus_per_trial}
        run_units(units, tell, progress, option="--tune.{}_per_trial", **placed)


def train_unit(out: str, trials: Sequence[Trial], *, options: TuneOptions, gpu: bool) -> None:
    """Train what has no record yet, in a process of Ray's; without a GPU of its own it sees all, and must use none."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.pop("SLURM_NTASKS", None)  # else Lightning takes every process for a task of the job
    store, precision = Store(out), torch.get_float32_matmul_precision()
    pending = [trial for trial in trials if store.is_open(trial.key)]
    engine = Engine(options, store, Progress(), trainer={} if gpu else {"accelerator": "cpu"}, name="ray")
    try:
        (engine.run_stacked if len(pending) > 1 else engine.run_alone)(pending)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finish_wandb(failed=True)  # a run that ended well is finished already


class _History(DummyLogger):
    """Keeps the metrics of every epoch in memory, and calls `on_epoch` with them when they are complete."""

    def __init__(self, on_epoch: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self._on_epoch = on_epoch

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if found := {name: float(value) for name, value in metrics.items() if name in METRICS}:
            epoch = int(metrics["epoch"])
            self.rows[epoch] = row = {"epoch": epoch, **self.rows.get(epoch, {}), **found}
            if "train_loss" in found:
                self._on_epoch(row)


def outcome_of(history: Sequence[Mapping[str, float]], *, start: float, engine: str, device: torch.device) -> Outcome:
    """Return what came out of a training by the metrics of its epochs; `start` is that of `time.perf_counter`."""
    rows = [dict(row) for row in takewhile(lambda row: all(map(math.isfinite, row.values())), history)]
    measured = [(row[MONITOR], -epoch) for epoch, row in enumerate(rows) if MONITOR in row]
    best = -max(measured)[1] if measured else -1
    if diverged := len(rows) < len(history):
        rows.append({"epoch": len(rows), **dict.fromkeys(METRICS, math.nan)})
    return Outcome(
        status="diverged" if diverged else "done",
        history=tuple(rows),
        best_epoch=-1 if diverged else best,
        duration_s=time.perf_counter() - start,
        engine=engine,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def name_loggers(trial: Trial, store: Store) -> dict[str, Any]:
    """Return a trial's config, with W&B runs named after the trial and in one group, that of the directory."""
    plain: dict[str, Any] = json.loads(json.dumps(trial.config))
    loggers = plain["trainer"].get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path")).endswith("WandbLogger"):
            logger.setdefault("init_args", {}).update(name=trial.label, version=None, id=trial.key)
            logger["dict_kwargs"] = {"group": store.out.name} | (logger.get("dict_kwargs") or {})
    return plain


def finish_loggers(loggers: Sequence[Logger], outcome: Outcome) -> None:
    """Log the final metrics and close the loggers, W&B's run too."""
    failed = outcome.status != "done"
    final = {f"best_{name}": value for name, value in outcome.metrics.items() if name in METRICS}
    for logger in loggers:
        logger.log_metrics({**final, "best_epoch": outcome.best_epoch, "diverged": float(failed)})
        logger.finalize("failed" if failed else "success")
    finish_wandb(failed=failed)


def trial_bytes(network: nn.Module, in_shape: tuple[int, ...], batch_size: int) -> int:
    """Estimate the memory of one trial of a stack: weights, gradients, best weights, moments, activations."""
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in network.parameters()}
    saved: dict[int, int] = {}  # for the backward pass, the weights among it

    def count(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    samples = torch.zeros(2, *in_shape, dtype=next(network.parameters()).dtype)  # batch norm takes no batch of one
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network(samples)
    activations = sum(size for place, size in saved.items() if place not in weights)
    return 6 * sum(weights.values()) + batch_size * (activations + samples.nbytes)


def available_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device; for the CPU within the limits of the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [4 * _BLOCK_BYTES]  # where the system does not say
    with suppress(OSError):
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = [int(rows["MemAvailable"].split()[0]) * 1024]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        free += [int(limit) - int(used)] if limit != "max" else []
    return max(min(free), 0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _BLOCK_BYTES = -1, -3, 1 << 30  # the first two are of glibc's malloc.h


def keep_large_blocks() -> None:
    """Tell glibc to reuse large blocks instead of returning each to the kernel, for the rest of the process.

    A stack allocates gradients of tens of megabytes in every step; fresh pages for them halve its speed on the CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(threshold, _BLOCK_BYTES)


if __name__ == "__main__":
    engine = Engine(TuneOptions(sys.argv[1]), Store(sys.argv[1]), Progress())
    trial = engine.store.load(sys.argv[2])
    outcome = engine.train(trial)
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")):
        engine.store.finish(trial, outcome)
