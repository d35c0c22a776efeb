"""Which neurons a pruning may choose from: amounts by layer, protected layers, and neurons that only go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import Tensor

from mlprank.graph.axes import Axis, pieces
from mlprank.graph.layers import Linear
from mlprank.graph.records import Graph, Layer, describe_whole
from mlprank.methods import Method

_LEAST = 1e-300
"""A score above 0 that changes no other score in float64."""


@dataclass(frozen=True)
class Selection:
    """What may be pruned, and how much of it.

    Attributes:
        units: For every set of neurons that is masked as one the layers that make them, by the first layer's name. In dag mode a unit is
            a group, in chain mode a layer.
        amounts: The requested amount of every unit, in [0, 1).
        whole: Why each other layer stays whole, by name.
        already: For units that have been pruned before, shape (n,), False for neurons that are gone; they go first and count as removed.
    """

    units: Mapping[str, tuple[str, ...]]
    amounts: Mapping[str, float]
    whole: Mapping[str, str]
    already: Mapping[str, Tensor] = field(default_factory=dict)


def select(
    graph: Graph,
    *,
    amount: float | Mapping[str, float],
    protect: Sequence[str],
    protect_output: bool,
    chain: bool,
    already: Mapping[str, Tensor] = MappingProxyType({}),
) -> Selection:
    """Work out what may be pruned.

    Args:
        graph: The network's graph.
        amount: The share to remove, for all layers or by name pattern.
        protect: Name patterns of layers to keep whole.
        protect_output: Keep the output layers whole.
        chain: Mask every layer on its own.
        already: What is left of layers that have been pruned before, shape (n_out,), False for neurons that are gone.

    Returns:
        The selection; it holds at least one unit.

    Raises:
        ValueError: If an amount is not in [0, 1), a pattern matches no layer, tied layers are given different amounts, or nothing is left
            to prune; the message says why each layer stays whole.
    """
    names = [layer.name for layer in graph.layers]
    check_amount(amount)
    protected = set(_matches(protect, names, argument="protect"))
    requested = amounts_by_name(amount, names)
    units: dict[str, tuple[str, ...]] = {}
    amounts: dict[str, float] = {}
    reasons: dict[str, str] = {}
    left: dict[str, Tensor] = {}
    for index, group in enumerate(graph.groups):
        reason = group.whole
        if reason is not None and group.output and not protect_output and len(group.layers) == 1:
            reason = None
        if chain and not all(_in_chain(graph.by_name[name]) for name in group.layers):
            reason = 'graph="chain" prunes linear layers only; use graph="dag"'
        if protected & set(group.layers):
            reason = "it is protected" if len(group.layers) == 1 else "its group is protected"
        asked = {name: requested[name] for name in group.layers if name in requested}
        if reason is None and not asked:
            reason = "no amount was given for it"
        if reason is not None:
            reasons.update({name: reason for name in group.layers if name not in reasons})
            continue
        if not chain and len(set(asked.values())) > 1:
            raise ValueError(
                f"amount={asked}: these layers share their neurons (a residual addition or a shared batch norm ties them); give them one"
                ' amount, or use graph="chain"'
            )
        members = [(name, (name,)) for name in group.layers] if chain else [(group.name, group.layers)]
        for unit, layers in members:
            units[unit] = layers
            amounts[unit] = asked.get(unit, 0.0) if chain else next(iter(asked.values()))
            if all(name in already for name in layers):
                kept = [_of_group(already[name], graph.by_name[name].made, index) for name in layers]
                left[unit] = torch.stack(kept).any(0)
    pruned = {name for layers in units.values() for name in layers}
    whole = {**{name: reasons[name] for name in names if name in reasons and name not in pruned}, **graph.others}
    if not units:
        raise ValueError("there is nothing to prune: " + describe_whole(whole))
    return Selection(units, amounts, whole, {unit: mask for unit, mask in left.items() if not bool(mask.all())})


def choose(
    selection: Selection, scores: Mapping[str, Tensor], *, method: Method, min_neurons: int, round_to: int
) -> dict[str, Tensor]:
    """Return the masks of every selected unit that is scored, shape (n,), True for kept neurons.

    Neurons that have been pruned before rank below all others and count as removed.
    """
    units = {
        unit: _pruned_first(scores[unit], selection.already.get(unit)) for unit in selection.units if unit in scores
    }
    amounts = {unit: selection.amounts[unit] for unit in units}
    chosen = method(units, amounts, min_neurons=min_neurons, round_to=round_to) if units else {}
    return {
        unit: mask & selection.already[unit].to(mask.device) if unit in selection.already else mask
        for unit, mask in chosen.items()
    }


def _pruned_first(scores: Tensor, left: Tensor | None) -> Tensor:
    """Rank neurons that have been pruned before below all others; in float64 nothing else changes."""
    return scores if left is None else torch.where(left.to(scores.device), scores.double() + _LEAST, 0.0)


def _in_chain(layer: Layer) -> bool:
    """Whether a layer is one of a chain of linear layers."""
    return isinstance(layer.kind, Linear) and layer.kind.weight_out == 0 and len(layer.made) == 1


def _of_group(rows: Tensor, axis: Axis, index: int) -> Tensor:
    """Which neurons of a group have an output that is left."""
    parts = [
        rows[start : start + segment.size].unflatten(0, (segment.width, segment.block)).any(1)  # type: ignore[no-untyped-call]
        for start, segment in pieces(axis, index)
    ]
    return torch.stack(parts).any(0)


def check_amount(amount: float | Mapping[str, float]) -> None:
    """Raise a ValueError if an amount is not in [0, 1)."""
    for place, value in amount.items() if isinstance(amount, Mapping) else [("", amount)]:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1 or math.isnan(value):
            where = f' for "{place}"' if place else ""
            raise ValueError(
                f"amount={value!r}{where} is not in [0, 1); give the share of neurons to remove, such as 0.5"
            )


def amounts_by_name(amount: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Return the amount of every layer for which one was given; of several matching patterns the last counts."""
    if not isinstance(amount, Mapping):
        return dict.fromkeys(names, float(amount))
    return {name: amount[pattern] for pattern in amount for name in _matches([pattern], names, argument="amount")}


def _matches(patterns: Sequence[str], names: list[str], *, argument: str) -> list[str]:
    if isinstance(patterns, str):
        raise ValueError(f'{argument}="{patterns}" is one name; give a list of names')
    found: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matched:
            raise ValueError(
                f'{argument}: "{pattern}" matches no layer; the layers are {", ".join(_quoted_all(names))}'
            )
        found += matched
    return found


def _quoted_all(names: list[str]) -> list[str]:
    shown = names if len(names) <= 16 else [*names[:16], "…"]
    return [f'"{name}"' for name in shown]
