"""Which trials can be one stack, and how many of them fit into memory."""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlprank.tuning.local import takes_several_devices
from mlprank.tuning.stack.network import CannotStackError, Plan
from mlprank.tuning.trial import Trial, without_places

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
    """Put trials together that can be one stack.

    Args:
        trials: In order.

    Returns:
        Groups, in the order of their first trial.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_frame(trial.config), []).append(trial)
    return list(groups.values())


def check_stackable(config: Mapping[str, Any]) -> None:
    """Refuse what a stack cannot do as training by itself does.

    Args:
        config: A trial's config.

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


def data_seed(config: Mapping[str, Any]) -> Any:
    """Return the seed of a trial's data.

    Args:
        config: A trial's config.
    """
    return (config["data"].get("init_args") or {}).get("seed")


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


_SHARE = 0.8
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_BELOW_BYTES = 1 << 30


def optimizer_copies(optimizer: Optimizer) -> int:
    """Return how many tensors of a parameter's shape an optimizer keeps for it: 2 for Adam, 0 for plain SGD.

    Args:
        optimizer: Any; it is left alone, one of its kind steps a parameter of its own.
    """
    group = {
        key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "fused", "foreach")
    }
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    kind: Any = type(optimizer)
    probe: Optimizer = kind([{**group, "params": [parameter]}])
    probe.step()
    return sum(
        isinstance(value, Tensor) and value.shape == parameter.shape for value in probe.state[parameter].values()
    )


def trial_bytes(model: nn.Module, optimizer: Optimizer, plan: Plan, *, batch_size: int) -> int:
    """Estimate what one trial of a stack takes: weights, gradients, optimizer, best weights, activations.

    Args:
        model: The network of one trial.
        optimizer: Its optimizer.
        plan: Its forward pass.
        batch_size: Images a batch.

    Returns:
        Bytes.
    """
    size = next(model.parameters()).element_size()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    numbers = sum(torch.Size(operation.shape).numel() for operation in plan.operations)
    inputs = 2 * torch.Size(plan.in_shape).numel()
    return weights * (3 + optimizer_copies(optimizer)) + batch_size * size * (2 * numbers + inputs)


def available_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device; for the CPU within the limits of the container.

    Args:
        device: CPU or CUDA.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_meminfo()] if Path("/proc/meminfo").is_file() else [_BELOW_BYTES * 4]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(free), 0)


def trials_that_fit(one: int, free: int) -> int:
    """Return how many trials of `one` bytes go into four fifths of `free` bytes, at least 1.

    Args:
        one: Bytes of one trial.
        free: Bytes that are free.
    """
    return max(int(free * _SHARE) // max(one, 1), 1)


def keep_large_blocks() -> bool:
    """Tell glibc to reuse large blocks instead of returning each to the kernel, for the rest of the process.

    A stack allocates gradients of tens of megabytes in every step; fresh pages for them halve its speed on the CPU.

    Returns:
        Whether it was done; other allocators are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _BELOW_BYTES)) and bool(libc.mallopt(_TRIM_THRESHOLD, _BELOW_BYTES))


def _meminfo() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024
