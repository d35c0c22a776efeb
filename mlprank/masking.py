"""Masks on somebody's network, as `torch.nn.utils.prune` knows them."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune

from mlprank.removal import adopt_state
from mlprank.result import PruningResult


def apply_masks(module: nn.Module, result: PruningResult) -> None:
    """Give a network the masked one's weights, and torch's own pruning masks that keep the pruned rows at zero.

    Args:
        module: The network that was pruned, or another of the same class and sizes; changed in place.
        result: The pruning.
    """
    adopt_state(module, result.masked)
    masked = dict(result.masked.named_parameters())
    for parameter, rows in result.parameter_masks.items():
        owner, _, name = parameter.rpartition(".")
        shape = (-1,) + (1,) * (masked[parameter].dim() - 1)
        prune.custom_from_mask(module.get_submodule(owner), name, rows.view(shape).expand_as(masked[parameter]))  # type: ignore[no-untyped-call]
