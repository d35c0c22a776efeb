"""Which neurons stay: scores of every layer by a measure, what may be pruned, and masks.

Scores are carried along the graph from the input to the output.

**chain**, the published reading: the linear layers in forward order; each one's scores, divided by their sum, are the
`previous` of the next; whatever stands between two linear layers is not part of the graph.

**dag**, the true graph of neurons. Every value v has an importance pi(v), non-negative with sum 1:

- a value made by no followed neuron (the network's input, what attention, a softmax or a layer across another axis
  gives): `pi = a / sum(a)`, with `a` its norm on the calibration data; a value that is 0 on all of it carries nothing
  into an addition;
- a layer, `z = W x + b` with W the weights, or the sums of their kernels' absolute values, then a normalisation with
  the per-channel factor g (1 where there is none), then an activation: `pi = measure(diag(|g|) W, previous=pi(x),
  a_out)`, with `a_out` the norm of what the neuron emits after both;
- an activation, dropout, reshape, pooling over positions: `pi` of what it reads;
- a normalisation or gain g behind an activation: `pi ~ |g| * pi(x)`;
- an addition (or another elementwise meeting) of u and v: an edge of weight 1 from each: `pi ~ pi(u) + pi(v)`;
- values side by side: each as much as it has entries; a slice: what it takes; a block of entries of one neuron: equal
  shares of its pi;
- neurons tied by a meeting or by a shared normalisation are one group: its score is the sum of its layers' scores.

On a chain of linear layers and ReLUs the two readings agree on every hidden layer.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import Tensor

from mlprank.calibration.statistics import Norms, PooledMoments, views_of
from mlprank.graph.axes import Axis, pieces, size_of
from mlprank.graph.layers import Linear, matrix
from mlprank.graph.records import Call, Graph, Group, Layer, Part, Place, State, describe_whole, quoted
from mlprank.measures.record import LayerRecord, Measure, Reader
from mlprank.methods import Method
from mlprank.utils.errors import check_amount

Readers = Callable[[Group], tuple[Reader, ...]]
_LEAST = 1e-300
"""A score above 0 that changes no other score in float64."""

# -- scores ----------------------------------------------------------------------------------------------------------


def shared_scores(graph: Graph, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every neuron of a group the sum of what its layers' own scores give it."""
    shared = {
        index: torch.stack([_per_neuron(own[name], graph.by_name[name].made, index) for name in group.layers]).sum(0)
        for index, group in enumerate(graph.groups)
    }
    return {layer.name: _normalised(_along(layer.made, shared)) for layer in graph.layers}


def group_scores(graph: Graph, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores of every group, shape (width,), sum 1, from those of its first layer."""
    found = {}
    for index, group in enumerate(graph.groups):
        made, own = graph.by_name[group.layers[0]].made, scores[group.layers[0]]
        found[group.name] = own if _is_simple(made) else _normalised(_per_neuron(own, made, index))
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
        per_group = flat.shape[2]
        for view in views_of(layer, index):
            if view not in moments:
                continue
            part, inside = divmod(view.start, per_group)
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
    parts = [
        values[start : start + each.size].unflatten(0, (each.width, each.block)).sum(1)
        if each.block > 1
        else values[start : start + each.size]
        for start, each in pieces(axis, index)
    ]
    return sum(parts[1:], parts[0])


@dataclass
class Scorer:
    """Scores neurons by a measure, carrying importance along the graph; lives for one scoring.

    `amounts` and `readers` (the layers that read a group, with their Gram matrices) are for measures that ask. A
    ValueError names the measure and the layer of scores that are none.
    """

    graph: Graph
    state: State
    norms: Norms
    measure: Measure
    readers: Readers
    chain: bool = False
    amounts: Mapping[str, float] = field(default_factory=dict)
    importance: dict[Place, Tensor] = field(default_factory=dict)

    def layers(self) -> dict[str, Tensor]:
        """Score every layer (in chain mode every linear one), shape (n_out,), sum 1; in dag mode groups share."""
        totals: dict[str, Tensor] = {}
        previous: Tensor | None = None
        for layer, call in self._calls():
            if not self.chain:
                previous = self.score(layer, call, self.pi(call.place))
                self.importance[call.emitted, call.emitted_dim] = previous
            elif isinstance(call.kind, Linear):
                previous = self.norm(self.norms.read[call.place]) if previous is None else previous
                if len(previous) != layer.in_features:
                    raise ValueError(
                        f'graph="chain": layer "{layer.name}" reads {layer.in_features} values, the linear layer '
                        f"before it makes {len(previous)}; the network is no chain of linear layers, use "
                        'graph="dag"'
                    )
                previous = self.score(layer, call, previous)
            else:
                continue
            totals[layer.name] = totals[layer.name] + previous if layer.name in totals else previous
        found = {name: _normalised(total) for name, total in totals.items()}
        return found if self.chain else shared_scores(self.graph, found)

    def group(self, index: int) -> Tensor:
        """Score one group, shape (width,), by a `state` pruned below it and `norms` of the dense network."""
        parts = [
            _per_neuron(self.score(layer, call, self.norm(self.norms.read[call.place]), group=index), layer.made, index)
            for layer in map(self.graph.by_name.__getitem__, self.graph.groups[index].layers)
            for call in layer.calls
        ]
        return _normalised(torch.stack(parts).sum(0))

    def _calls(self) -> list[tuple[Layer, Call]]:
        """Every use of a layer in forward order."""
        order = self.graph.program.order
        calls = [(layer, call) for layer in self.graph.layers for call in layer.calls]
        return sorted(calls, key=lambda pair: order[pair[1].node])

    def pi(self, place: Place) -> Tensor:
        """The importance of the entries of a value along a dimension, shape (n,), sum 1; all 0 where the value is."""
        if place not in self.importance:
            flow = self.graph.flow.get(place)
            if flow is None or not flow.parts:
                norms = self.norms.read[place]
                self.importance[place] = self.norm(norms) if float(norms.sum()) else self._typed(norms)
            else:
                parts = [self._part(part) for part in flow.parts]
                total = torch.cat([len(part) * part for part in parts]) if flow.joined else sum(parts[1:], parts[0])
                factor = 1.0 if flow.scale is None else flow.scale.factor(self.state)
                self.importance[place] = _normalised(total * factor) if float(total.sum()) else total
        return self.importance[place]

    def _part(self, part: Part) -> Tensor:
        """What a value sends on, sum 1."""
        taken = self.pi((part.value, part.dim))
        if part.stop - part.start < len(taken):
            taken = taken[part.start : part.stop]
            taken = _normalised(taken) if float(taken.sum()) else taken
        if part.block > 1:
            taken = taken.repeat_interleave(part.block) / part.block
        return taken.repeat(part.repeat) / part.repeat if part.repeat > 1 else taken

    def score(self, layer: Layer, call: Call, previous: Tensor, *, group: int | None = None) -> Tensor:
        """Score what one use of a layer makes, shape (n_out,), from the importance of what it reads."""
        weight = self.state[layer.weight]
        kernels = None
        seen, cells = matrix(call.kind, weight), _cells(layer.read)
        if cells is not None:
            seen = seen.new_zeros(len(seen), int(cells[-1]) + 1).index_add_(1, cells.to(seen.device), seen.abs())
        flat = call.kind.flat(weight)
        if flat.shape[3] > 1 or cells is not None:
            kernels = flat.flatten(2).flatten(0, 1)
        if not self.chain:
            for scale in call.scales:
                factor = scale.factor(self.state)
                if isinstance(factor, Tensor):
                    seen = seen * factor[:, None]
                    kernels = None if kernels is None else kernels * factor[:, None]
        input_norms = self.norms.read[call.place]
        if cells is not None:
            at = cells.to(previous.device)
            previous = previous.new_zeros(seen.shape[1]).index_add_(0, at, previous)
            input_norms = input_norms.new_zeros(seen.shape[1]).index_add_(0, at, input_norms.square()).sqrt()
        if not float(previous.sum()):
            previous = torch.full_like(previous, 1 / len(previous))
        made = self.norms.made[call.node]
        if float(made.sum()) == 0:
            warnings.warn(
                f'layer "{layer.name}": every neuron is dead on the calibration data; their norms count as equal',
                stacklevel=5,
            )
            made = torch.ones_like(made)
        groups = layer.made_groups if group is None else (group,)
        record = LayerRecord(
            name=layer.name,
            weight=seen.detach(),
            previous=previous,
            input_norms=input_norms.to(previous.dtype),
            output_norms=made.to(previous.dtype),
            amount=self.amounts.get(layer.name, 0.0),
            kernels=None if kernels is None else kernels.detach(),
            readers=lambda: self._readers(layer, groups),
        )
        return _checked(self.measure(record), layer, self.measure).to(previous)

    def _readers(self, layer: Layer, groups: tuple[int, ...]) -> tuple[Reader, ...]:
        """The readers of a layer's neurons, widened to all outputs where those are of several groups or blocks."""
        return tuple(
            _widened(reader, layer.made, index) for index in groups for reader in self.readers(self.graph.groups[index])
        )

    def _typed(self, values: Tensor) -> Tensor:
        """In the precision that scores are computed in: float32, or float64 for a float64 network."""
        double = any(tensor.dtype == torch.float64 for tensor in self.state.values())
        return values.to(torch.float64 if double else torch.float32)

    def norm(self, norms: Tensor) -> Tensor:
        """Norms as scores."""
        return self._typed(_normalised(norms))


def _cells(axis: Axis) -> Tensor | None:
    """For every entry along an axis the neuron that it belongs to; None where every neuron has one.

    Neurons are counted along the axis.
    """
    if all(segment.block == 1 for segment in axis):
        return None
    cells, start = [], 0
    for segment in axis:
        cells.append(start + torch.arange(segment.width).repeat_interleave(segment.block))
        start += segment.width
    return torch.cat(cells)


def _widened(reader: Reader, axis: Axis, index: int) -> Reader:
    """What a reader sees of a group as if it saw all outputs of a layer: the others it does not hear."""
    if _is_simple(axis):
        return reader
    size = size_of(axis)
    (start, segment), *_ = pieces(axis, index)
    at = start + torch.arange(segment.width, device=reader.gram.device) * segment.block
    weight = reader.weight.new_zeros(len(reader.weight), size)
    weight[:, at] = reader.weight
    gram = reader.gram.new_zeros(size, size)
    gram[at[:, None], at] = reader.gram
    return Reader(weight, gram)


def _normalised(scores: Tensor) -> Tensor:
    total = scores.sum()
    return scores / total if float(total) > 0 else torch.full_like(scores, 1 / len(scores))


def _checked(scores: Tensor, layer: Layer, measure: Measure) -> Tensor:
    place = f'layer "{layer.name}": measure {type(measure).__name__}'
    if not isinstance(scores, Tensor) or scores.shape != (layer.out_features,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{place} gave {shape} instead of scores of shape ({layer.out_features},)")
    if not torch.isfinite(scores).all():
        raise ValueError(f"{place} gave scores that are not finite; every score must be a number")
    if (scores < 0).any():
        raise ValueError(
            f"{place} gave negative scores (smallest {float(scores.min()):.3g}); larger means keep, 0 is least"
        )
    return _normalised(scores)


# -- what may be pruned, and what is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """What may be pruned, and how much of it."""

    # for every set of neurons that is masked as one the layers that make them, by the first layer's name. In dag mode a
    # unit is a group, in chain mode a layer
    units: Mapping[str, tuple[str, ...]]
    amounts: Mapping[str, float]  # the requested amount of every unit, in [0, 1)
    whole: Mapping[str, str]  # why each other layer stays whole, by name
    # for units that have been pruned before, shape (n,), False for neurons that are gone; they go first and count as
    # removed
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
    """Work out what may be pruned: at least one unit. Arguments are those of `Recipe`.

    `already` is what is left of layers that have been pruned before, shape (n_out,), False for neurons that are gone.
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
                f"amount={asked}: these layers share their neurons (a residual addition or a shared batch norm ties "
                "them); give them one"
                ' amount, or use graph="chain"'
            )
        members = [(name, (name,)) for name in group.layers] if chain else [(group.name, group.layers)]
        for unit, layers in members:
            units[unit] = layers
            amounts[unit] = asked.get(unit, 0.0) if chain else next(iter(asked.values()))
            if all(name in already for name in layers):
                kept = [_per_neuron(already[name].int(), graph.by_name[name].made, index) for name in layers]
                left[unit] = sum(kept[1:], kept[0]) > 0
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
    units = {unit: scores[unit] for unit in selection.units if unit in scores}
    for unit in selection.already.keys() & units.keys():
        left = selection.already[unit].to(units[unit].device)
        units[unit] = torch.where(left, units[unit].double() + _LEAST, 0.0)
    amounts = {unit: selection.amounts[unit] for unit in units}
    chosen = method(units, amounts, min_neurons=min_neurons, round_to=round_to) if units else {}
    return {
        unit: mask & selection.already[unit].to(mask.device) if unit in selection.already else mask
        for unit, mask in chosen.items()
    }


def _in_chain(layer: Layer) -> bool:
    """Whether a layer is one of a chain of linear layers."""
    return isinstance(layer.kind, Linear) and layer.kind.weight_out == 0 and len(layer.made) == 1


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
            raise ValueError(f'{argument}: "{pattern}" matches no layer; the layers are {", ".join(quoted(names))}')
        found += matched
    return found
