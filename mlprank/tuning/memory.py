"""How much memory a stacked trial takes, how much there is, and how glibc is told to keep it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlprank.tuning.tracing import Plan

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
