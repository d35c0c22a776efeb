"""Methods: from scores to masks; the thesis's two, and one that spends a budget where it costs least.

A new method is one class here, one line in `METHODS` and one slow loop in ``tests/reference.py``; or an instance of
somebody else's, given to `mlprank.prune` as it is.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.measures.record import check_non_negative
from mlprank.utils.errors import check_amount, check_choice, check_whole
from mlprank.utils.registry import Registry

Counted = Literal["neurons", "parameters", "flops", "bytes", "latency"]
COUNTED: tuple[Counted, ...] = ("neurons", "parameters", "flops", "bytes", "latency")
# A layer is narrowed in at most this many steps.
_STEPS = 128
_LEAST_SHARE = 1e-12

Scores = Mapping[str, Float[Tensor, " n_out"]]
Amounts = Mapping[str, float]
Masks = dict[str, Bool[Tensor, " n_out"]]


@runtime_checkable
class Method(Protocol):
    """Anything that turns scores into masks.

    A method that chooses in every layer by that layer's scores alone says so by the attribute ``layer_by_layer =
    True``; measures with ``reads_pruned`` then rank a layer after the layers below it have been pruned.
    """

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps.

        Args:
            scores: Each layer's scores, shape (n_out,); larger means keep.
            amounts: The fraction to remove, in [0, 1), by layer; the same keys.
            min_neurons: How many neurons every layer keeps at least (all, if it has fewer).
            round_to: What the number of kept neurons is rounded up to a multiple of, where the layer has as many.

        Returns:
            Masks by layer, shape (n_out,), True is kept. The guards may remove less than was asked for, never more.

        Raises:
            ValueError: If the keys differ, an amount, `min_neurons` or `round_to` is out of range, or a layer's scores
                are empty, not a vector, or have a negative, NaN or infinite entry.
        """


@dataclass(frozen=True)
class Local:
    """In every layer, remove the ``round(amount * n_out)`` neurons with the smallest scores.

    Rounding is Python's: a half goes to the even number. Of equal scores the lower index goes first.

    Examples:
        >>> import torch
        >>> scores = {"fc1": torch.tensor([0.4, 0.1, 0.3, 0.2]), "fc2": torch.tensor([0.6, 0.4])}
        >>> Local()(scores, {"fc1": 0.5, "fc2": 0.5})["fc1"]
        tensor([ True, False,  True, False])
    """

    layer_by_layer: ClassVar[bool] = True

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps; see `Method`."""
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        guards = {"min_neurons": min_neurons, "round_to": round_to}
        return {
            name: _kept(values, len(values) - round(amounts[name] * len(values)), **guards)
            for name, values in scores.items()
        }


@dataclass(frozen=True)
class Global:
    """Over all layers together, remove the ``ceil(amount * total)`` neurons with the smallest scores.

    All layers have one amount. Of equal scores the earlier layer goes first, within a layer the lower index. The
    `min_neurons` best neurons of every layer are not candidates: others go in their place, as long as there are any.

    Attributes:
        normalise: ``"width"`` multiplies a layer's scores by its width, so that their mean is 1 in every layer;
            ``"none"`` compares them as they are, as published, which empties the widest layers first. Anything else is
            a ValueError.

    Examples:
        >>> import torch
        >>> scores = {"fc1": torch.tensor([0.4, 0.1, 0.3, 0.2]), "fc2": torch.tensor([0.6, 0.4])}
        >>> Global()(scores, {"fc1": 0.5, "fc2": 0.5})["fc1"]
        tensor([ True, False,  True, False])
    """

    normalise: Literal["width", "none"] = "width"

    def __post_init__(self) -> None:
        check_choice("Global: normalise", self.normalise, ("width", "none"))

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps; see `Method`."""
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        if not scores:
            return {}
        wide, sizes = self.normalise == "width", [len(values) for values in scores.values()]
        device = next(iter(scores.values())).device
        flat = torch.cat([own.to(device, torch.float64) * (len(own) if wide else 1) for own in scores.values()])
        removed = math.ceil(sole_amount(amounts, method="global") * len(flat))
        for part in torch.split(flat, sizes):
            part[keep_largest(part, min(min_neurons, len(part)))] = math.inf
        candidates = int(flat.isfinite().count_nonzero())
        masks = torch.split(keep_largest(flat, len(flat) - min(removed, candidates)), sizes)
        guards = {"min_neurons": min_neurons, "round_to": round_to}
        return {
            name: _kept(values, int(mask.count_nonzero()), **guards)
            for (name, values), mask in zip(scores.items(), masks, strict=True)
        }


def sole_amount(amounts: Amounts, *, method: str) -> float:
    """Return the amount of a method that looks at all layers together."""
    amount, *others = set(amounts.values())
    if others:
        given = ", ".join(f'"{name}": {amount}' for name, amount in amounts.items())
        raise ValueError(
            f'method="{method}" takes one amount for all layers, but was given {given}; use method="local" for several'
        )
    return amount


def keep_largest(scores: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Return the mask of the `count` largest scores, from 0 to n; of equal scores the lower index goes first."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    mask[scores.detach().argsort(stable=True)[: len(scores) - count]] = False
    return mask


def _kept(scores: Float[Tensor, " n"], wanted: int, *, min_neurons: int, round_to: int) -> Bool[Tensor, " n"]:
    """Return the mask of the `wanted` largest scores, of more where the guards ask for them."""
    return keep_largest(scores, min(-(-max(wanted, min_neurons) // round_to) * round_to, len(scores)))


def check_request(scores: Scores, amounts: Amounts, *, min_neurons: int, round_to: int) -> None:
    """Raise the errors of `Method`; the message names the layer."""
    check_whole(min_neurons=min_neurons, round_to=round_to)
    for name in scores.keys() ^ amounts.keys():
        has, lacks = ("scores", "amount") if name in scores else ("an amount", "scores")
        raise ValueError(f'layer "{name}" has {has} but no {lacks}; give amounts the same keys as scores')
    check_amount(amounts)
    for name, values in scores.items():
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(f'layer "{name}": scores of shape {tuple(values.shape)}; they must be a vector, not empty')
        check_non_negative(values, argument="scores", place=f'layer "{name}": ')


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


METHODS: Registry[Method] = Registry(
    "method",
    Method,
    {"local": Local, "global": Global, "adaptive": Adaptive},
    # The thesis compares scores of different layers as they are.
    {"Local": ("local", {}), "Global": ("global", {"normalise": "none"})},
)

register_method = METHODS.register
"""Make a method known by a name, for Python, YAML and the command line; see `Registry.register`."""

get_method = METHODS.find
"""Return a method by name (the thesis's "Global" does not normalise), dotted path, description, class or as it is."""
