"""Engines that train trials: one by one, as stacks on one device, or both on all devices by Ray.

`python -m mlprank.tuning.engines OUT KEY` is for trials on several devices, whose processes Lightning starts by running
the same command again.
"""

import copy
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
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from mlprank.grids.progress import Watcher
from mlprank.grids.ray import run_units
from mlprank.training.build import Built, build_trial, interruptible
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import finish_wandb
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.stack import CannotStackError, StackedClassifier, StackedDataModule
from mlprank.tuning.store import BEST, LAST, METRICS, MONITOR, STACK, Outcome, Store, Trial, without_places
from mlprank.utils.errors import FAILURES
from mlprank.utils.files import write_whole


class LocalEngine:
    """Trains trials one after another; `options` of the Trainer override the trials', and `name` is recorded."""

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
    one = trainer.get("devices") in ("auto", None, 1, "1", -1, "-1", [0])
    return not one or int(trainer.get("num_nodes") or 1) > 1


def _train_in_processes(trial: Trial, store: Store) -> Outcome:
    store.prepare(trial)
    command = [sys.executable, "-m", "mlprank.tuning.engines", str(store.out), trial.key]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    outcome = store.outcome(trial.key)
    if outcome is None:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"the trial's processes ended with code {done.returncode}: {last}")
    return outcome


def train(trial: Trial, store: Store, watcher: Watcher, *, options: Mapping[str, Any], name: str) -> Outcome:
    """Train one trial from scratch and record nothing; its best epoch's weights are in `best.ckpt` afterwards."""
    directory = store.prepare(trial)
    (directory / BEST).unlink(missing_ok=True)
    best = ModelCheckpoint(
        directory,
        filename=BEST.removesuffix(".ckpt"),
        monitor=MONITOR,
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
    )
    history = _History(lambda row: watcher.epoch(trial, row))
    single = {} if takes_several_devices(trial.config) else {"devices": 1}
    trainer = {"logger": history, "enable_checkpointing": True, **single, **options}
    built = build_trial(name_loggers(trial, store), directory, callbacks=[best], trainer=trainer)
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


class _History(Logger):
    """Keeps the metrics of every epoch in memory, and calls `on_epoch` with them when they are complete."""

    name, version = "history", 0

    def __init__(self, on_epoch: Callable[[Mapping[str, float]], None]) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self._on_epoch = on_epoch

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = int(metrics["epoch"]) if "epoch" in metrics else len(self.rows)
        row = self.rows.setdefault(epoch, {"epoch": epoch})
        row.update({name: float(value) for name, value in metrics.items() if name in METRICS})
        if "train_loss" in metrics:
            self._on_epoch(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing: the trial's directory has the config."""


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


_OWN_IN_MODEL = ("lr_scheduler", "label_smoothing", "bias_weight_decay", "norm_weight_decay")
_HARMLESS_CALLBACKS = ("LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "RichModelSummary", "Timer")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "strategy": ("auto",),
    "val_check_interval": (None, 1.0),
    "check_val_every_n_epoch": (1,),
    "detect_anomaly": (False,),
    "fast_dev_run": (False, 0),
    "barebones": (False,),
    "profiler": (None,),
    "plugins": (None, []),
    "max_time": (None,),
}
"""Options of the Trainer that a stack takes with these values only."""


def group_trials(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Put trials together that can be one stack: they differ in nothing but what each may have of its own."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        plain = without_places(json.loads(json.dumps(trial.config)))
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
    for name, allowed in _PLAIN.items():
        if name in trainer and trainer[name] not in allowed:
            return f"trainer.{name}={trainer[name]}: a stack takes {allowed[0]} only"
    for callback in trainer.get("callbacks") or []:
        name = str(callback["class_path"]).rpartition(".")[2]
        if name not in _HARMLESS_CALLBACKS:
            return f"trainer.callbacks: {name} may act on one trial's training, a stack trains many"
    return None


def choose_engine(
    options: TuneOptions, trials: Sequence[Trial], watcher: Watcher
) -> "LocalEngine | BatchedEngine | RayEngine":
    """Return the engine that the options ask for; `auto` tells the watcher what it chose, and why."""
    name = options.engine
    if name == "auto":
        gpus, groups = torch.cuda.device_count(), group_trials(trials)
        reasons = [reason for group in groups if (reason := obstacle(group[0].config))]
        if len(groups) == len(trials):
            reasons = ["no two trials can be stacked: they differ in more than optimizer, seeds and smoothing"]
        if not reasons and options.address is None:
            name, why = "batched", "the trials can be stacked"
        elif gpus > 1 or options.address is not None:
            name, why = "ray", f"{gpus} GPUs" if options.address is None else f"the cluster at {options.address}"
        else:
            name, why = "local", reasons[0]
        watcher.note(f"engine {name}: {why}")
    if name == "ray":
        return RayEngine(options)
    return LocalEngine() if name == "local" else BatchedEngine(LocalEngine(), options)


class BatchedEngine:
    """Trains trials as stacked models; what cannot be stacked is trained by `fallback`, with the reason said.

    Its Trainer options are those of `fallback`; without `trials_per_stack` a stack has as many as fit into memory.
    """

    def __init__(self, fallback: LocalEngine, options: TuneOptions) -> None:
        self.fallback, self.options = fallback, options
        self.name = "batched" if fallback.name == "local" else fallback.name

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials: first the stacks that were interrupted, then the others."""
        pending = {trial.key: trial for trial in trials}
        for stack, keys in store.stacks().items():
            unfinished = {key for key in keys if store.outcome(key) is None}
            if (stack / LAST).is_file() and unfinished and unfinished <= pending.keys():
                everyone = [pending.pop(key) if key in pending else store.load(key) for key in keys]
                self._run_group(everyone, store, watcher, whole=True)
        for group in group_trials(list(pending.values())):
            self._run_group(group, store, watcher, whole=False)

    def _run_group(self, group: Sequence[Trial], store: Store, watcher: Watcher, *, whole: bool) -> None:
        try:
            if reason := obstacle(group[0].config):
                raise CannotStackError(reason)
            size = len(group) if whole else self._size(group, store, watcher)
            for start in range(0, len(group), size):
                part = group[start : start + size]
                with ExitStack() as locks:
                    for trial in part:
                        locks.enter_context(store.training(trial.key))
                    self._train(part, store, watcher)
        except FAILURES as error:
            left = [trial for trial in group if store.outcome(trial.key) is None]
            if isinstance(error, torch.OutOfMemoryError) and len(left) > 1:
                watcher.note(f"{len(left)} trials do not fit into memory; half of them are tried")
                torch.cuda.empty_cache()
                for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                    self._run_group(half, store, watcher, whole=True)
                return
            kind = "" if isinstance(error, CannotStackError) else f"{type(error).__name__}: "
            watcher.note(f"{len(left)} trials are trained one by one: {kind}{error}")
            self.fallback.run(left, store, watcher)

    def _size(self, group: Sequence[Trial], store: Store, watcher: Watcher) -> int:
        """How many trials of a group are trained at once: they take at most four fifths of the free memory."""
        built = self._build(group[0], store)
        free = available_bytes(built.trainer.strategy.root_device)
        one = trial_bytes(built.model.model, tuple(built.datamodule.in_shape), built.datamodule.batch_size)
        fit = min(max(4 * free // (5 * one), 1), self.options.trials_per_stack or len(group), len(group))
        batches = math.ceil(len(group) / fit)
        if batches > 1:
            watcher.note(
                f"{len(group)} trials in {batches} batches: one takes {one / 1e6:.0f} MB of {free / 1e6:.0f} MB"
            )
        return math.ceil(len(group) / batches)

    def _build(self, trial: Trial, store: Store, **options: Any) -> Built:
        trainer = {"devices": 1, "enable_checkpointing": False, **self.fallback.options, **options}
        return build_trial(name_loggers(trial, store), store.prepare(trial), trainer=trainer)

    def _train(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        watcher.started([trial for trial in trials if store.outcome(trial.key) is None])
        keys, start = [trial.key for trial in trials], time.perf_counter()
        built = [self._build(trial, store) for trial in trials]
        data = built[0].datamodule
        seeds = [(trial.config["data"].get("init_args") or {}).get("seed") for trial in trials]
        distinct = list(dict.fromkeys(seeds))
        datamodules = [copy.copy(data) for _ in distinct]
        if len(distinct) > 1:
            for datamodule, seed in zip(datamodules, distinct, strict=True):
                datamodule.seed = seed
        module = StackedClassifier(
            [each.model for each in built],
            in_shape=tuple(data.in_shape),
            streams=[distinct.index(seed) for seed in seeds] if len(distinct) > 1 else None,
            seeds=[int(trial.config["seed_everything"] or 0) for trial in trials],
        )

        def record(place: int) -> None:
            """Write the best epoch as an ordinary checkpoint, and what came out; the config's loggers hear of it."""
            trial, trainer, loggers = trials[place], built[place].trainer, built[place].loggers
            device = module.trainer.strategy.root_device
            outcome = outcome_of(module.history[place], start=start, engine=self.name, device=device)
            if outcome.status == "done":
                single = copy.deepcopy(module.classifiers[place])
                single.model.load_state_dict(module.best_state(place), assign=True)
                trainer.strategy.connect(single)
                trainer.save_checkpoint(store.directory(trial.key) / BEST, weights_only=True)
            if store.finish(trial, outcome):
                for logger in loggers:
                    logger.log_hyperparams(dict(trial.config))
                    for row in outcome.history:
                        logger.log_metrics(dict(row), step=int(row["epoch"]))
                finish_loggers(loggers, outcome)
                watcher.finished(trial, outcome)

        def show(module: StackedClassifier) -> None:
            for place, trial in enumerate(trials):
                if place not in module.diverged:
                    watcher.epoch(trial, module.history[place][-1])
                elif store.outcome(trial.key) is None:
                    record(place)

        module.on_epoch = show
        last = _LastCheckpoint(store.stack_directory(keys), keys, every_s=60 * self.options.checkpoint_minutes)
        trainer = self._build(trials[0], store, enable_checkpointing=True, callbacks=[last]).trainer
        if trainer.strategy.root_device.type == "cpu":
            keep_large_blocks()
        resumed = last.path if last.path.is_file() else None
        with interruptible(trainer):
            weights_only = True if resumed else None
            trainer.fit(module, StackedDataModule(datamodules), ckpt_path=resumed, weights_only=weights_only)
        for place in range(len(trials)):
            record(place)
        shutil.rmtree(last.path.parent, ignore_errors=True)


class _LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` of a stack at the end of an epoch when the last one is old enough."""

    def __init__(self, directory: Path, keys: Sequence[str], *, every_s: float) -> None:
        self.keys, self.every_s = list(keys), every_s
        self.path, self._written = directory / LAST, time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, after everything else of the epoch is done."""
        if time.monotonic() - self._written >= self.every_s and not trainer.should_stop:
            write_whole(self.path.with_name(STACK), json.dumps({"keys": self.keys}))
            trainer.save_checkpoint(self.path)
            self._written = time.monotonic()


def trial_bytes(network: nn.Module, in_shape: tuple[int, ...], batch_size: int) -> int:
    """Estimate the memory of one trial of a stack: weights, gradients, best weights, moments, activations."""
    weights = {p.untyped_storage().data_ptr(): p.numel() * p.element_size() for p in network.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    sample = torch.zeros(1, *in_shape, dtype=next(network.parameters()).dtype)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network(sample)
    return 6 * sum(weights.values()) + 2 * batch_size * (sum(kept.values()) + sample.nbytes)


def available_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device; for the CPU within the limits of the container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free, meminfo = [_BLOCK_BYTES * 4], Path("/proc/meminfo")
    if meminfo.is_file():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = [int(rows["MemAvailable"].split()[0]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _BLOCK_BYTES = -1, -3, 1 << 30  # the first two are of glibc's malloc.h


def keep_large_blocks() -> None:
    """Tell glibc to reuse large blocks instead of returning each to the kernel, for the rest of the process.

    A stack allocates gradients of tens of megabytes in every step; fresh pages for them halve its speed on the CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            ctypes.CDLL(None).mallopt(threshold, _BLOCK_BYTES)


class RayEngine:
    """Trains trials by Ray, in a directory that all nodes see under the same path.

    A worker or a node that dies loses the trial that it was at, which starts again.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train trials that have no record yet."""
        o = self.options

        def units(slots: int, gpu: bool) -> list[tuple[list[Trial], Callable[[], None]]]:
            run = partial(train_unit, str(store.out.resolve()), options=o, gpu=gpu)
            return [(part, partial(run, part)) for part in split(trials, slots=slots, watcher=watcher)]

        def tell(ended: Sequence[Trial], nothing: None) -> None:
            for trial in ended:
                outcome, failure = store.outcome(trial.key), store.failure(trial.key)
                if outcome is not None:
                    watcher.finished(trial, outcome)
                elif failure is not None:
                    watcher.failed(trial, failure)

        placed: dict[str, Any] = {"address": o.address, "cpus": o.cpus_per_trial, "gpus": o.gpus_per_trial}
        run_units(units, tell, watcher, option="--tune.{}_per_trial", **placed)


def split(trials: Sequence[Trial], *, slots: int, watcher: Watcher) -> list[list[Trial]]:
    """Split trials into what one process trains at a time: stacks of even size where that can be, else one each."""
    units: list[list[Trial]] = []
    for group in group_trials(trials):
        if reason := obstacle(group[0].config):
            watcher.note(f"{len(group)} trials are trained one by one: {reason}")
        size = 1 if reason else -(-len(group) // slots)
        units += [list(group[start : start + size]) for start in range(0, len(group), size)]
    return units


def train_unit(out: str, trials: Sequence[Trial], *, options: TuneOptions, gpu: bool) -> None:
    """Train what has no record yet, in a process of Ray's that takes the next unit afterwards.

    Without a GPU of its own (`gpu`) it sees them all, and must not use them.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.pop("SLURM_NTASKS", None)  # else Lightning takes every process for a task of the job
    store, precision = Store(out), torch.get_float32_matmul_precision()
    pending = [trial for trial in trials if store.is_open(trial.key)]
    local = LocalEngine(options={} if gpu else {"accelerator": "cpu"}, name="ray")
    engine = BatchedEngine(local, options) if len(pending) > 1 else local
    try:
        engine.run(pending, store, Watcher())
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(False)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finish_wandb(failed=True)  # a run that ended well is finished already


def _main(out: str, key: str) -> None:
    """Train the trial of a store's directory and a key; the first process records it."""
    store = Store(out)
    trial = store.load(key)
    outcome = train(trial, store, Watcher(), options={}, name="local")
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")):
        store.finish(trial, outcome)


if __name__ == "__main__":
    _main(*sys.argv[1:])
