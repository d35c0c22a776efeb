"""All trials at once on one device: groups that can be stacked, in batches that fit into memory."""

import copy
import ctypes
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from mlprank.grids.progress import Watcher
from mlprank.models.classifier import ImageClassifier
from mlprank.training.build import Built, build_trial, interruptible
from mlprank.training.runs import WholeCheckpointIO
from mlprank.tuning.grid import TuneOptions
from mlprank.tuning.local import LocalEngine, finish_loggers, name_loggers, outcome_of, takes_several_devices
from mlprank.tuning.stack.classifier import StackedClassifier, StackedDataModule
from mlprank.tuning.stack.network import CannotStackError
from mlprank.tuning.store import BEST, LAST, STACK, Store, Trial, without_places
from mlprank.utils.errors import FAILURES
from mlprank.utils.files import write_whole

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
    """Put trials together that can be one stack."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_frame(trial.config), []).append(trial)
    return list(groups.values())


def check_stackable(config: Mapping[str, Any]) -> None:
    """Refuse what a stack cannot do as training by itself does.

    Raises:
        CannotStackError: If an option stands in the way; the text names it.
    """
    trainer = config["trainer"]
    if takes_several_devices(config):
        raise CannotStackError(f"trainer.devices={trainer.get('devices')}: a stack trains on one device")
    if str(trainer.get("precision")).startswith(("16", "transformer-engine")):
        raise CannotStackError(
            f"trainer.precision={trainer['precision']}: one loss scale for all trials would let one disturb the others"
        )
    if trainer.get("limit_val_batches") == 0:
        raise CannotStackError("trainer.limit_val_batches=0: a stack keeps every trial's best epoch by its validation")
    for name, allowed in _PLAIN.items():
        if name in trainer and trainer[name] not in allowed:
            raise CannotStackError(f"trainer.{name}={trainer[name]}: a stack takes {allowed[0]} only")
    for callback in trainer.get("callbacks") or []:
        name = str(callback["class_path"]).rpartition(".")[2]
        if name not in _HARMLESS_CALLBACKS:
            raise CannotStackError(f"trainer.callbacks: {name} may act on one trial's training, a stack trains many")


def _frame(config: Mapping[str, Any]) -> str:
    """Return as text what must be equal in a stack."""
    plain = without_places(json.loads(json.dumps(config)))
    plain.pop("seed_everything", None)
    model = plain["model"]
    for name in _OWN_IN_MODEL:
        model.pop(name, None)
    model["optimizer"] = (model.get("optimizer") or {}).get("class_path")
    (plain["data"].get("init_args") or {}).pop("seed", None)
    return json.dumps(plain, sort_keys=True)


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
        for keys in store.open_stacks():
            unfinished = [key for key in keys if store.outcome(key) is None]
            if unfinished and all(key in pending for key in unfinished):
                everyone = [pending.get(key) or store.load(key, {}) for key in keys]
                self._run_group(everyone, store, watcher, whole=True)
                pending = {key: trial for key, trial in pending.items() if key not in keys}
        for group in group_trials(list(pending.values())):
            self._run_group(group, store, watcher, whole=False)

    def _run_group(self, group: Sequence[Trial], store: Store, watcher: Watcher, *, whole: bool) -> None:
        try:
            check_stackable(group[0].config)
            size = len(group) if whole else self._batch(group, store, watcher)
            for start in range(0, len(group), size):
                part = group[start : start + size]
                with ExitStack() as locks:
                    for trial in part:
                        locks.enter_context(store.training(trial.key))
                    self._train(part, store, watcher)
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
        one = trial_bytes(built.model.model, tuple(built.datamodule.in_shape), built.datamodule.batch_size)
        fit = min(trials_that_fit(one, free), self.options.trials_per_stack or len(group), len(group))
        batches = math.ceil(len(group) / fit)
        if batches > 1:
            watcher.note(
                f"{len(group)} trials in {batches} batches: one takes {one / 1e6:.0f} MB of {free / 1e6:.0f} MB"
            )
        return math.ceil(len(group) / batches)

    def _build(self, trial: Trial, store: Store, **options: Any) -> Built:
        trainer = {"devices": 1, "enable_checkpointing": False, **self.fallback.options, **options}
        return build_trial(trial.config, store.prepare(trial), trainer=trainer)

    def _train(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        watcher.started([trial for trial in trials if store.outcome(trial.key) is None])
        keys, start = [trial.key for trial in trials], time.perf_counter()
        first = self._build(trials[0], store)
        models = [first.model, *(self._build(trial, store).model for trial in trials[1:])]
        seeds = [(trial.config["data"].get("init_args") or {}).get("seed") for trial in trials]
        distinct = list(dict.fromkeys(seeds))
        datamodules = [copy.copy(first.datamodule) for _ in distinct]
        if len(distinct) > 1:
            for datamodule, seed in zip(datamodules, distinct, strict=True):
                datamodule.seed = seed
        module = StackedClassifier(
            models,
            in_shape=tuple(first.datamodule.in_shape),
            streams=[distinct.index(seed) for seed in seeds] if len(distinct) > 1 else None,
            seeds=[int(trial.config["seed_everything"] or 0) for trial in trials],
        )

        def record(place: int) -> None:
            trial, rows = trials[place], module.history[place]
            device = module.trainer.strategy.root_device
            outcome = outcome_of(rows, start=start, engine=self.name, device=device)
            if outcome.status == "done":
                save_best(module, place, store.directory(trial.key) / BEST)
            if store.finish(trial, outcome):
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
            trainer.fit(
                module, StackedDataModule(datamodules), ckpt_path=resumed, weights_only=resumed is not None or None
            )
        for place in range(len(trials)):
            record(place)
        if isinstance(trials[0].config["trainer"].get("logger"), (dict, list)):
            for trial in trials:
                self._log(trial, store)
        store.forget_stack(keys)

    def _log(self, trial: Trial, store: Store) -> None:
        """Tell the config's loggers about a trial, as if it had been trained by itself."""
        outcome = store.outcome(trial.key)
        assert outcome is not None
        loggers = build_trial(name_loggers(trial.config, trial, store), store.directory(trial.key)).loggers
        for logger in loggers:
            logger.log_hyperparams(dict(trial.config))
            for row in outcome.history:
                logger.log_metrics(dict(row), step=int(row["epoch"]))
        finish_loggers(loggers, outcome)


class _LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` of a stack at the end of an epoch when the last one is old enough."""

    def __init__(self, directory: Path, keys: Sequence[str], *, every_s: float) -> None:
        self.directory, self.keys, self.every_s = directory, list(keys), every_s
        self.path = directory / LAST
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, after everything else of the epoch is done."""
        if time.monotonic() - self._written >= self.every_s and not trainer.should_stop:
            write_whole(self.directory / STACK, json.dumps({"keys": self.keys}))
            trainer.save_checkpoint(self.path)
            self._written = time.monotonic()


def save_best(module: StackedClassifier, place: int, path: Path) -> None:
    """Write an ordinary checkpoint of the best epoch of the trial at a place of a trained stack."""
    classifier: ImageClassifier = copy.copy(module.classifiers[place])
    network = copy.deepcopy(classifier.model).cpu()
    network.load_state_dict(module.best_state(place))
    classifier._modules = {**classifier._modules, "model": network}
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    with torch.random.fork_rng():
        trainer = Trainer(accelerator="cpu", devices=1, plugins=[WholeCheckpointIO()], **quiet)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(path, weights_only=True)


_SHARE = 0.8
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_BELOW_BYTES = 1 << 30


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
    free, meminfo = [_BELOW_BYTES * 4], Path("/proc/meminfo")
    if meminfo.is_file():
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = [int(rows["MemAvailable"].split()[0]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


def trials_that_fit(one: int, free: int) -> int:
    """Return how many trials of `one` bytes go into four fifths of `free` bytes, at least 1."""
    return max(int(free * _SHARE) // max(one, 1), 1)


def keep_large_blocks() -> bool:
    """Tell glibc to reuse large blocks instead of returning each to the kernel, for the rest of the process.

    A stack allocates gradients of tens of megabytes in every step; fresh pages for them halve its speed on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _BELOW_BYTES)) and bool(libc.mallopt(_TRIM_THRESHOLD, _BELOW_BYTES))
