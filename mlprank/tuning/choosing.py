"""Which engine trains the trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch.nn import functional as F

from mlprank.training.build import TrialBuilder
from mlprank.tuning.batched_engine import BatchedEngine
from mlprank.tuning.engine import Engine, Watcher
from mlprank.tuning.local import LocalEngine
from mlprank.tuning.losses import stacked_cross_entropy
from mlprank.tuning.memory import keep_large_blocks
from mlprank.tuning.optimizers import merge_optimizers
from mlprank.tuning.options import TuneOptions
from mlprank.tuning.stack import Stack
from mlprank.tuning.stacking import check_stackable, group_trials
from mlprank.tuning.tracing import CannotStackError
from mlprank.tuning.trial import Trial

_STEPS = 3
_OVERHEAD_S = 5e-4
"""What Lightning adds to a step of one network, whether it is stacked or not."""


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
        from mlprank.tuning.ray_engine import RayEngine

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
