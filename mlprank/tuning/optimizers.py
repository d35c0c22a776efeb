"""Torch's own optimizers over the trials of a stack: every trial keeps its own learning rate, decay and momentum."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from mlprank.tuning.tracing import CannotStackError

_FUSED_DEVICES = ("cpu", "cuda")
_NORM_EPS = 1e-6


def merge_optimizers(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Join the trials' optimizers into one that steps them all.

    It is of the trials' own class and holds the groups of all. Every group keeps its options, and the group dicts stay
    those of the trials' optimizers, so that a scheduler on a trial's optimizer sets that trial's rate.
    Groups that leave the implementation open use torch's fused one, which reads and writes every parameter once.

    Args:
        optimizers: One a trial, not stepped yet, of one class.

    Returns:
        The joined one; its groups are those of trial 0, then of trial 1, and so on.

    Raises:
        CannotStackError: If the classes differ or the class needs a closure.
    """
    first = optimizers[0]
    for optimizer in optimizers:
        if type(optimizer) is not type(first):
            raise CannotStackError(
                f"the trials use {type(first).__name__} and {type(optimizer).__name__}; a stack needs one kind"
            )
    if isinstance(first, LBFGS):
        raise CannotStackError("LBFGS evaluates the loss again within a step; it cannot step a stack of trials")
    merged = copy.copy(first)
    merged.state = defaultdict(dict)
    merged.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in merged.param_groups:
        _choose_fused(group)
    for optimizer in optimizers:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn: only the joined one is stepped
    return merged


def _choose_fused(group: dict[str, Any]) -> None:
    wanted = (
        "fused" in group and group["fused"] is None and not group.get("foreach") and not group.get("differentiable")
    )
    parameters: Sequence[Tensor] = group["params"]
    if wanted and all(p.is_floating_point() and p.device.type in _FUSED_DEVICES for p in parameters):
        group["fused"] = True
        group["foreach"] = False


def separate_groups(merged: Optimizer, optimizers: Sequence[Optimizer]) -> None:
    """Give the trials' optimizers the groups of the joined one again, after `load_state_dict` replaced them.

    Args:
        merged: What `merge_optimizers` returned for `optimizers`.
        optimizers: The trials' optimizers.
    """
    groups = iter(merged.param_groups)
    for optimizer in optimizers:
        optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]


def clip_gradients(gradients: Sequence[Tensor], *, value: float, algorithm: str = "norm") -> None:
    """Clip the gradients of every trial by themselves, in place.

    Args:
        gradients: Stacked gradients, each of shape (K, ...).
        value: Largest norm of one trial's gradients, or largest absolute value of an entry.
        algorithm: `norm` (as `torch.nn.utils.clip_grad_norm_`) or `value` (as `clip_grad_value_`).
    """
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-value, value)
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factor = (value / (torch.linalg.vector_norm(norms, dim=0) + _NORM_EPS)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *(1,) * (gradient.dim() - 1)))
