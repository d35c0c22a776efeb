"""Spend a budget where it costs least: uneven widths from error curves, counted in neurons or in what they cost."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.methods.ranked import Local
from mlprank.utils.errors import check_choice, check_whole

Counted = Literal["neurons", "parameters", "flops", "bytes", "latency"]
COUNTED: tuple[Counted, ...] = ("neurons", "parameters", "flops", "bytes", "latency")
# A layer is narrowed in at most this many steps.
_STEPS = 128
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class Adaptive(Local):
    """Remove more neurons where that costs less of the output.

    Every layer has an error curve: what a number of kept neurons leaves unexplained of what the next layers compute, in
    units of the network's outputs, whose change was measured at one point of the curve. The sum of the curves is kept
    small under a budget, step by step: the next neurons go where the curve rises least for what is saved. Which neurons
    of a layer go, its scores decide, as with `Local`.

    Attributes:
        count: What `amount` is a share of: "neurons" (those of the prunable layers), "parameters", "flops" of one
            sample, "bytes" of the weights, or "latency" (measured on the device in use) of the whole network.
            Anything else is a ValueError.
        batch_size: Samples in the batch whose latency is measured.

    Examples:
        >>> Adaptive(count="parameters")
        Adaptive(count='parameters', batch_size=64)
    """

    count: Counted = "neurons"
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_choice("Adaptive: count", self.count, COUNTED)
        check_whole("Adaptive: ", batch_size=self.batch_size)


@dataclass(frozen=True)
class Term:
    """A product that grows with widths, such as the number of entries of a weight."""

    factor: float  # what one entry costs
    dims: tuple[tuple[float, Mapping[str, float]], ...]  # entries that stay, and for each unit how many a neuron adds

    def value(self, widths: Mapping[str, int]) -> float:
        """Return the product at these widths."""
        sizes = (fixed + sum(entries * widths[unit] for unit, entries in added.items()) for fixed, added in self.dims)
        return math.prod(sizes, start=self.factor)


class Costs:
    """What a network costs as a function of its widths: a constant and a sum of products."""

    def __init__(self, terms: list[Term], *, fixed: float = 0.0) -> None:
        self.fixed, self.terms, self._of = fixed, terms, defaultdict[str, list[Term]](list)
        for term in terms:
            for unit in set().union(*(per_neuron for _, per_neuron in term.dims)):
                self._of[unit].append(term)

    def total(self, widths: Mapping[str, int]) -> float:
        """Return the cost at these widths."""
        return self.fixed + sum(term.value(widths) for term in self.terms)

    def beside(self, unit: str) -> set[str]:
        """Return the units whose neurons cost more or less as this one's number changes, itself included."""
        return {unit}.union(*(per_neuron for term in self._of[unit] for _, per_neuron in term.dims))

    def saving(self, widths: Mapping[str, int], unit: str, gone: int) -> float:
        """Return what so many fewer neurons of a unit save."""
        fewer = {**widths, unit: widths[unit] - gone}
        return sum(term.value(widths) for term in self._of[unit]) - sum(term.value(fewer) for term in self._of[unit])


def error_curve(gains: Float[Tensor, " n"], total: float) -> Float[Tensor, " n_plus_1"]:
    """Return what keeping only the best k of n neurons costs, for k from 0: `log(total / explained)`, float64.

    `gains` are what each neuron explains, non-negative, of the `total`; the curve is falling, convex and at least 0.
    While little is unexplained it is the share that is unexplained. A layer that explains nothing lets nothing through,
    whatever the others explain, so its cost has no bound; without the logarithm a layer was emptied where its neurons
    are dear.
    """
    explained = torch.cat([gains.new_zeros(1).double(), gains.double().sort(descending=True).values.cumsum(0)])
    if total <= 0:
        return torch.zeros_like(explained)
    return (explained / total).clamp(_LEAST_SHARE, 1.0).log().abs()


def spend(
    curves: Mapping[str, Float[Tensor, " n_plus_1"]],
    costs: Costs,
    budget: float,
    *,
    widths: Mapping[str, int] | None = None,
    min_neurons: int = 1,
    round_to: int = 1,
) -> dict[str, int]:
    """Return the widths that keep a budget with the least error: neurons go where it rises least for what they save.

    `curves` are every unit's error with k of its n neurons kept, shape (n + 1,), convex, in one currency; `widths` the
    neurons to begin with, where some are gone already. At least `min_neurons` of every unit stay, and widths become
    multiples of `round_to`. A ValueError names the least that can be reached where no widths keep the budget.
    """
    left = {unit: len(curve) - 1 for unit, curve in curves.items()} | dict(widths or {})
    errors = {unit: curve.tolist() for unit, curve in curves.items()}
    least = {unit: min(left[unit], -(-min_neurons // round_to) * round_to) for unit in curves}
    strides = {unit: max(round_to, (len(curve) - 1) // _STEPS // round_to * round_to) for unit, curve in curves.items()}
    # Of every unit: the rise for what is saved, what is saved, negative as more is better, and the width.
    offers: dict[str, tuple[float, float, int]] = {}
    dense = cost = costs.total(left)
    changed: Iterable[str] = curves
    while cost > budget:
        for unit in changed:
            now = left[unit]
            after = max(least[unit], (now - 1) // round_to * round_to - strides[unit] + round_to)
            offers.pop(unit, None)
            if after < now:
                saved = costs.saving(left, unit, now - after)
                rise = max(0.0, errors[unit][after] - errors[unit][now])
                offers[unit] = (rise / saved if saved > 0 else math.inf, -saved, after)
        if not offers:
            raise ValueError(
                f"no widths keep a budget of {budget:,.6g}: the least that pruning reaches is {cost:,.6g} of "
                f"{dense:,.6g}"
            )
        unit = min(curves, key=lambda unit: offers.get(unit, (math.inf, math.inf, 0)))
        before, (_, change, after) = left[unit], offers[unit]
        cost += change
        left[unit] = after
        if cost <= budget:
            # A step takes several neurons: those that the budget leaves room for stay.
            for more in range(after + round_to, before, round_to):
                if costs.total({**left, unit: more}) > budget:
                    break
                left[unit] = more
        changed = costs.beside(unit) & curves.keys()
    return left
