"""Which neurons stay: scores of every layer by a measure, what may be pruned, and masks.

In a **chain** a linear layer's scores are the `previous` of the next one; in the true graph (**dag**) every value has
an importance pi, non-negative with sum 1, as docs/how-it-works.md defines it.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from mlprank.calibration.statistics import Norms, PooledMoments, views_of
from mlprank.graph.axes import Axis, pieces, size_of
from mlprank.graph.layers import Linear, matrix
from mlprank.graph.records import Call, Graph, Layer, Part, Place, State, describe_whole, quoted
from mlprank.measures.record import LayerRecord, Measure, Reader, normalise_scores
from mlprank.pruning.recipe import Recipe

# -- scores ----------------------------------------------------------------------------------------------------------


def group_scores(graph: Graph, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores of every group, shape (width,), sum 1, from those of its first layer."""
    found = {}
    for index, group in enumerate(graph.groups):
        made, own = graph.by_name[group.layers[0]].made, scores[group.layers[0]]
        found[group.name] = own if _is_simple(made) else _shares(_per_neuron(own, made, index))
    return found


def layer_scores(layer: Layer, of_groups: Mapping[int, Tensor]) -> Tensor:
    """Return the scores of a layer, sum 1, from those of its groups."""
    found = _along(layer.made, of_groups)
    return found if _is_simple(layer.made) else found / found.sum()


def readers_of(graph: Graph, state: State, index: int, moments: PooledMoments) -> tuple[Reader, ...]:
    """Return what reads a group, a record for every segment of a reader's axis; kernels are further outputs."""
    found = []
    for layer in graph.readers_of(graph.groups[index]):
        flat = layer.kind.flat(state[layer.weight])  # (groups, outputs, inputs, patch)
        for view in views_of(layer, index):
            if view in moments:
                part, inside = divmod(view.start, flat.shape[2])
                weights = flat[part, :, inside : inside + view.width * view.block]
                weights = weights.reshape(len(weights), view.width, view.block, -1).permute(0, 2, 3, 1)
                found.append(Reader(weights.reshape(-1, view.width), moments[view].gram))
    return tuple(found)


def _is_simple(axis: Axis) -> bool:
    """Whether an axis is the neurons of one group, each once."""
    return len(axis) == 1 and axis[0].block == 1


def _along(axis: Axis, of_groups: Mapping[int, Tensor]) -> Tensor:
    """Values of groups' neurons, laid out along an axis."""
    return torch.cat([of_groups[each.space].repeat_interleave(each.block) for each in axis if each.space is not None])


def _per_neuron(values: Tensor, axis: Axis, index: int) -> Tensor:
    """The sum of the values along an axis that every neuron of a group has."""
    parts: list[Tensor] = [
        values[start : start + each.size].unflatten(0, (each.width, each.block)).sum(1)
        for start, each in pieces(axis, index)
    ]
    return sum(parts[1:], parts[0])


def _shares(values: Tensor) -> Tensor:
    """Non-negative values as shares of their sum; equal ones where that is 0."""
    total = values.sum()
    return values / total if float(total) > 0 else torch.full_like(values, 1 / len(values))


@dataclass
class Scorer:
    """Scores neurons by a measure, carrying importance along the graph; lives for one scoring.

    `amounts` and `readers` (by a group's index, with their Gram matrices) are for measures that ask. A ValueError names
    the measure and the layer of scores that are none.
    """

    graph: Graph
    state: State
    norms: Norms
    measure: Measure
    readers: Callable[[int], tuple[Reader, ...]]
    chain: bool = False
    amounts: Mapping[str, float] = field(default_factory=dict)
    importance: dict[Place, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        double = any(tensor.dtype == torch.float64 for tensor in self.state.values())
        self.dtype = torch.float64 if double else torch.float32

    def layers(self) -> dict[str, Tensor]:
        """Score every layer (in chain mode every linear one), shape (n_out,), sum 1; in dag mode groups share."""
        calls = [(layer, call) for layer in self.graph.layers for call in layer.calls]
        totals: dict[str, Tensor] = {}
        previous: Tensor | None = None
        for layer, call in sorted(calls, key=lambda pair: self.graph.program.order[pair[1].node]):
            if not self.chain:
                previous = self.score(layer, call, self.pi(call.place))
                self.importance[call.emitted] = previous
            elif isinstance(call.kind, Linear):
                previous = self.read(call) if previous is None else previous
                if len(previous) != layer.in_features:
                    raise ValueError(
                        f'graph="chain": layer "{layer.name}" reads {layer.in_features} values, the linear layer '
                        f'before it makes {len(previous)}; the network is no chain of linear layers, use graph="dag"'
                    )
                previous = self.score(layer, call, previous)
            else:
                continue
            totals[layer.name] = totals[layer.name] + previous if layer.name in totals else previous
        found = {name: _shares(total) for name, total in totals.items()}
        if self.chain:
            return found
        shared = {}
        for index, group in enumerate(self.graph.groups):
            parts = [_per_neuron(found[name], self.graph.by_name[name].made, index) for name in group.layers]
            shared[index] = torch.stack(parts).sum(0)
        return {layer.name: _shares(_along(layer.made, shared)) for layer in self.graph.layers}

    def group(self, index: int) -> Tensor:
        """Score one group, shape (width,), by a `state` pruned below it and `norms` of the dense network."""
        parts = [
            _per_neuron(self.score(layer, call, self.read(call), group=index), layer.made, index)
            for layer in map(self.graph.by_name.__getitem__, self.graph.groups[index].layers)
            for call in layer.calls
        ]
        return _shares(torch.stack(parts).sum(0))

    def read(self, call: Call) -> Tensor:
        """Norms of what a use of a layer reads, as shares."""
        return _shares(self.norms.read[call.place]).to(self.dtype)

    def pi(self, place: Place) -> Tensor:
        """The importance of the entries of a value along a dimension, shape (n,), sum 1; all 0 where the value is."""
        if place not in self.importance:
            flow = self.graph.flow.get(place)
            if flow is None or not flow.parts:
                total = self.norms.read[place]
            else:
                parts = [self._part(part) for part in flow.parts]
                # Side by side values count as much as they have entries, values that meet alike.
                total = torch.cat([len(part) * part for part in parts]) if flow.joined else sum(parts[1:], parts[0])
                total = total * (1.0 if flow.scale is None else flow.scale.factor(self.state))
            self.importance[place] = (_shares(total) if float(total.sum()) else total).to(self.dtype)
        return self.importance[place]

    def _part(self, part: Part) -> Tensor:
        """What a value sends on, sum 1: a slice what it takes; a block of entries of one neuron equal shares of it."""
        taken = self.pi((part.value, part.dim))
        if part.stop - part.start < len(taken):
            taken = taken[part.start : part.stop]
            taken = _shares(taken) if float(taken.sum()) else taken
        if part.block > 1:
            taken = taken.repeat_interleave(part.block) / part.block
        return taken.repeat(part.repeat) / part.repeat if part.repeat > 1 else taken

    def score(self, layer: Layer, call: Call, previous: Tensor, *, group: int | None = None) -> Tensor:
        """Score what one use of a layer makes, shape (n_out,), from the importance of what it reads."""
        weight, input_norms = self.state[layer.weight], self.norms.read[call.place]
        flat, seen, kernels = call.kind.flat(weight), matrix(call.kind, weight), None
        blocks = any(segment.block > 1 for segment in layer.read)
        if flat.shape[3] > 1 or blocks:
            kernels = flat.flatten(2).flatten(0, 1)
        if blocks:  # what belongs to one neuron is taken together
            sizes = torch.tensor([segment.block for segment in layer.read for _ in range(segment.width)])
            cells = torch.arange(len(sizes)).repeat_interleave(sizes).to(seen.device)
            seen = seen.new_zeros(len(seen), len(sizes)).index_add_(1, cells, seen.abs())
            previous = previous.new_zeros(len(sizes)).index_add_(0, cells, previous)
            input_norms = input_norms.new_zeros(len(sizes)).index_add_(0, cells, input_norms.square()).sqrt()
        for scale in () if self.chain else call.scales:
            factor = scale.factor(self.state)
            if isinstance(factor, Tensor):
                seen = seen * factor[:, None]
                kernels = None if kernels is None else kernels * factor[:, None]
        if not float(previous.sum()):
            previous = torch.full_like(previous, 1 / len(previous))
        made = self.norms.made[call.node]
        if float(made.sum()) == 0:
            warnings.warn(
                f'layer "{layer.name}": every neuron is dead on the calibration data; their norms count as equal',
                stacklevel=5,
            )
            made = torch.ones_like(made)
        record = LayerRecord(
            name=layer.name,
            weight=seen.detach(),
            previous=previous,
            input_norms=input_norms.to(previous.dtype),
            output_norms=made.to(previous.dtype),
            amount=self.amounts.get(layer.name, 0.0),
            kernels=None if kernels is None else kernels.detach(),
            readers=lambda: tuple(
                _widened(reader, layer.made, index)
                for index in (layer.made_groups if group is None else (group,))
                for reader in self.readers(index)
            ),
        )
        scores: Any = self.measure(record)
        place = f'layer "{layer.name}": measure {type(self.measure).__name__} gave '
        if not isinstance(scores, Tensor) or scores.shape != (layer.out_features,):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"{place}{shape} instead of scores of shape ({layer.out_features},)")
        scores = scores if scores.is_floating_point() else scores.double()
        return normalise_scores(scores, argument=f"{place}scores").to(previous)


def _widened(reader: Reader, axis: Axis, index: int) -> Reader:
    """What a reader sees of a group as if it saw all outputs of a layer: the others it does not hear."""
    if _is_simple(axis):
        return reader
    (start, segment), *_ = pieces(axis, index)
    at = start + torch.arange(segment.width, device=reader.gram.device) * segment.block
    weight = reader.weight.new_zeros(len(reader.weight), size_of(axis))
    weight[:, at] = reader.weight
    gram = reader.gram.new_zeros(size_of(axis), size_of(axis))
    gram[at[:, None], at] = reader.gram
    return Reader(weight, gram)


# -- what may be pruned, and what is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """What may be pruned, and how much of it."""

    units: Mapping[str, tuple[str, ...]]  # layers of what is masked as one, a group (in a chain a layer), by the first
    amounts: Mapping[str, float]  # the requested amount of every unit, in [0, 1)
    whole: Mapping[str, str]  # why each other layer stays whole, by name
    already: Mapping[str, Tensor]  # of units pruned before, shape (n,), False for neurons that are gone


def select(graph: Graph, recipe: Recipe, *, already: Mapping[str, Tensor]) -> Selection:
    """Work out what may be pruned by a recipe: at least one unit; `already` is by layer, shape (n_out,)."""
    names, chain = [layer.name for layer in graph.layers], recipe.chain
    protected = set(_matches(recipe.protect, names, argument="protect"))
    requested = amounts_by_name(recipe.amount, names)
    units: dict[str, tuple[str, ...]] = {}
    amounts: dict[str, float] = {}
    reasons: dict[str, str] = {}
    left: dict[str, Tensor] = {}
    for index, group in enumerate(graph.groups):
        layers = [graph.by_name[name] for name in group.layers]
        asked = {name: requested[name] for name in group.layers if name in requested}
        reason = group.whole
        if group.output and not recipe.protect_output and len(layers) == 1:
            reason = None
        if chain and not all(
            isinstance(each.kind, Linear) and each.kind.weight_out == 0 and len(each.made) == 1 for each in layers
        ):
            reason = 'graph="chain" prunes linear layers only; use graph="dag"'
        if protected & set(group.layers):
            reason = "it is protected" if len(layers) == 1 else "its group is protected"
        if reason is None and not asked:
            reason = "no amount was given for it"
        if reason is not None:
            reasons = {**dict.fromkeys(group.layers, reason), **reasons}
            continue
        if not chain and len(set(asked.values())) > 1:
            raise ValueError(
                f"amount={asked}: these layers share their neurons (a residual addition or a shared batch norm ties "
                'them); give them one amount, or use graph="chain"'
            )
        for unit, members in [(each.name, [each]) for each in layers] if chain else [(group.name, layers)]:
            units[unit] = tuple(each.name for each in members)
            amounts[unit] = asked.get(unit, 0.0) if chain else next(iter(asked.values()))
            if all(each.name in already for each in members):
                kept = [_per_neuron(already[each.name].int(), each.made, index) for each in members]
                left[unit] = sum(kept[1:], kept[0]) > 0
    pruned = {name for layers in units.values() for name in layers}
    whole = {**{name: reasons[name] for name in names if name in reasons and name not in pruned}, **graph.others}
    if not units:
        raise ValueError("there is nothing to prune: " + describe_whole(whole))
    return Selection(units, amounts, whole, {unit: mask for unit, mask in left.items() if not bool(mask.all())})


def amounts_by_name(amount: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Return the amount of every layer for which one was given; of several matching patterns the last counts."""
    if not isinstance(amount, Mapping):
        return dict.fromkeys(names, float(amount))
    return {name: amount[pattern] for pattern in amount for name in _matches([pattern], names, argument="amount")}


def _matches(patterns: Sequence[str], names: list[str], *, argument: str) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matched:
            raise ValueError(f'{argument}: "{pattern}" matches no layer; the layers are {", ".join(quoted(names))}')
        found += matched
    return found
