"""How a network is pruned: every choice in one frozen record, and as plain types for a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlprank.compensation import COMPENSATIONS, Compensation
from mlprank.measures import MEASURES, Measure
from mlprank.methods import METHODS, Local, Method
from mlprank.pruning.selection import Selection

_LEAST = 1e-300
"""A score above 0 that changes no other score in float64."""


@dataclass(frozen=True)
class Recipe:
    """The choices of one pruning; see `mlprank.prune` for what they mean."""

    amount: float | Mapping[str, float]
    measure: Measure
    method: Method
    compensation: Compensation
    chain: bool
    protect_output: bool
    protect: tuple[str, ...]
    min_neurons: int
    round_to: int

    def __post_init__(self) -> None:
        for argument in ("min_neurons", "round_to"):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument}={value!r} must be a whole number of at least 1")

    @property
    def scores_on_pruned(self) -> bool:
        """Whether a group is scored after the groups below it have been pruned."""
        return bool(getattr(self.measure, "on_pruned", False)) and isinstance(self.method, Local) and not self.chain

    def masks(self, selection: Selection, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of every selected layer that is scored, shape (n_out,), True for kept neurons."""
        units = {
            unit: _pruned_first(scores[unit], selection.already.get(unit)) for unit in selection.units if unit in scores
        }
        amounts = {unit: selection.amounts[unit] for unit in units}
        chosen = self.method(units, amounts, min_neurons=self.min_neurons, round_to=self.round_to) if units else {}
        for unit, left in selection.already.items():
            chosen.update({unit: chosen[unit] & left.to(chosen[unit].device)} if unit in chosen else {})
        return {name: mask for unit, mask in chosen.items() for name in selection.units[unit]}

    def plain(self) -> dict[str, Any]:
        """Return the choices as plain types, short names where there are some."""
        return {
            "amount": dict(self.amount) if isinstance(self.amount, Mapping) else self.amount,
            "measure": _described(self.measure, MEASURES),
            "method": _described(self.method, METHODS),
            "compensation": _described(self.compensation, COMPENSATIONS),
            "graph": "chain" if self.chain else "dag",
            "protect_output": self.protect_output,
            "protect": list(self.protect),
            "min_neurons": self.min_neurons,
            "round_to": self.round_to,
        }


def _pruned_first(scores: Tensor, left: Tensor | None) -> Tensor:
    """Rank neurons that have been pruned before below all others; in float64 nothing else changes."""
    return scores if left is None else torch.where(left.to(scores.device), scores.double() + _LEAST, 0.0)


def _described(part: object, names: Mapping[str, type[Any]]) -> dict[str, Any]:
    """Name and parameters of a measure, method or compensation."""
    cls = type(part)
    name = next(
        (short for short, registered in names.items() if registered is cls), f"{cls.__module__}.{cls.__qualname__}"
    )
    parameters = dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else {}
    plain = {key: value for key, value in parameters.items() if isinstance(value, (bool, int, float, str, type(None)))}
    return {"name": name, **plain}
