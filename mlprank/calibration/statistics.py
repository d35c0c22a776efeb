"""What calibration data shows of the neurons: norms, second moments, constants; memory does not grow with the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.calibration.data import Calibration
from mlprank.graph.axes import pieces
from mlprank.graph.layers import squares
from mlprank.graph.program import Fill
from mlprank.graph.records import Graph, Layer, Place, State

# A neuron whose variance is below this share of its mean square does not vary.
CONSTANT = 1e-12


@dataclass(frozen=True)
class Norms:
    """L2 norms over all calibration samples and positions."""

    read: Mapping[Place, Tensor]  # of every input of what a layer reads, shape (n_in,), or importance starts from
    made: Mapping[str, Tensor]  # of every neuron's output, shape (n_out,), by the layer's operation
    num_samples: int = 0


def measure_norms(graph: Graph, state: State, calibration: Calibration, *, chain: bool) -> Norms:
    """Run the calibration data through the network once.

    `chain` takes `relu(z)` of the layer's operation, whatever follows it, instead of what the neuron emits.
    """
    calls = {call.node: call for layer in graph.layers for call in layer.calls}
    readers = reading_nodes(graph, {call.place for call in calls.values()})
    begins = set() if chain else set(_beginnings(graph)) - set(readers.values())
    # Of every value that is watched when it is made: the operations that emit it, or none, and the dimensions.
    watched: defaultdict[str, list[tuple[str | None, int]]] = defaultdict(list)
    for node, call in calls.items():
        name, dim = (node, call.out_dim) if chain else call.emitted
        watched[name].append((node, dim))
    for name, dim in sorted(begins):
        watched[name].append((None, dim))
    read: defaultdict[Place, Tensor | float] = defaultdict(float)
    made: defaultdict[str, Tensor | float] = defaultdict(float)
    num_samples = 0
    for batch in calibration:
        num_samples += len(batch)
        for name, value, is_made in graph.program.observe(state, batch, read=readers, made=watched):
            if not is_made:
                read[readers[name]] += calls[name].kind.input_norms(value, readers[name][1])
                continue
            for maker, dim in watched[name]:
                if maker is None:
                    read[name, dim] += squares(value.to(torch.get_default_dtype()), dim)
                else:
                    made[maker] += squares(value.clamp(min=0) if chain else value, dim)
    norms_read = {place: calibration.reduce(torch.as_tensor(total)).sqrt() for place, total in sorted(read.items())}
    norms_made = {node: calibration.reduce(torch.as_tensor(total)).sqrt() for node, total in sorted(made.items())}
    for layer in graph.layers:
        for call in layer.calls:
            if not (torch.isfinite(norms_read[call.place]).all() and torch.isfinite(norms_made[call.node]).all()):
                raise ValueError(
                    f'layer "{layer.name}": calibration gives activations that are not finite; check data and weights'
                )
    return Norms(norms_read, norms_made, num_samples)


def _beginnings(graph: Graph) -> Iterable[Place]:
    """The values that importance starts from on its way to what layers read."""
    emitted = {call.emitted for layer in graph.layers for call in layer.calls}
    pending = [call.place for layer in graph.layers for call in layer.calls]
    seen: set[Place] = set()
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        parts = graph.flow[place].parts if place in graph.flow else ()
        pending += [(part.value, part.dim) for part in parts]
        if place not in emitted and not parts:
            yield place


@dataclass(frozen=True)
class Moments:
    """First and second moments of what a layer reads, float64."""

    count: float  # number of samples times positions
    mean: Float[Tensor, " n"]
    gram: Float[Tensor, "n n"]  # the sum over samples of the products of deviations from the mean

    def uncentred(self) -> Moments:
        """Return the same with deviations from zero, for a regression without an intercept."""
        products = self.gram + self.count * torch.outer(self.mean, self.mean)
        return Moments(self.count, torch.zeros_like(self.mean), products)


@dataclass(frozen=True)
class View:
    """Neurons of one group in what a layer reads: a segment of its axis. Their blocks count as positions."""

    places: tuple[Place, ...]  # the values that the layer reads, pooled where it is used in several places
    start: int  # the first entry
    width: int  # number of neurons
    block: int  # entries of each

    def rows(self, value: Tensor, dim: int) -> Float[Tensor, "rows n"]:
        """The neurons' values, float64."""
        part = value.narrow(dim, self.start, self.width * self.block).movedim(dim, -1)
        seen: Tensor = part.unflatten(-1, (self.width, self.block)).transpose(-1, -2)
        return seen.reshape(-1, self.width).double()


def views_of(layer: Layer, group: int) -> list[View]:
    """What a layer sees of a group: a view for every segment of its axis."""
    return [View(layer.sources, start, each.width, each.block) for start, each in pieces(layer.read, group)]


PooledMoments = Mapping[View, Moments]


class MomentSums:
    """Sums from which moments are worked out, for several views at once."""

    def __init__(self, views: Collection[View]) -> None:
        self.views = tuple(dict.fromkeys(views))
        self._sums: dict[View, Tensor] = {}

    def add(self, place: Place, value: Tensor) -> None:
        """Take in a value that was read."""
        for view in self.views:
            if place in view.places:
                seen = view.rows(value, place[1])
                seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
                self._sums[view] = self._sums.get(view, 0) + seen.T @ seen

    def moments(self, calibration: Calibration) -> dict[View, Moments]:
        """Sum over processes and work out the moments."""
        found = {}
        for view in (view for view in self.views if view in self._sums):
            sums = calibration.reduce(self._sums[view])
            count, products = float(sums[-1, -1]), sums[:-1, :-1]
            mean = sums[-1, :-1] / max(count, 1.0)
            # What is left of a constant neuron is rounding, of either sign.
            gram = products - count * torch.outer(mean, mean)
            constant = gram.diagonal() <= CONSTANT * products.diagonal()
            found[view] = Moments(count, mean, gram.masked_fill(constant[:, None] | constant[None, :], 0.0))
        return found


def reading_nodes(graph: Graph, places: Collection[Place]) -> dict[str, Place]:
    """For values that layers read, the operations that read them first."""
    calls = [call for layer in graph.layers for call in layer.calls if call.place in places]
    calls.sort(key=lambda call: graph.program.order[call.node], reverse=True)
    first = {call.place: call.node for call in calls}
    return {node: place for place, node in reversed(first.items())}


def measure_moments(
    graph: Graph,
    state: State,
    calibration: Calibration,
    views: Collection[View],
    *,
    fills: Mapping[str, Fill] | None = None,
) -> PooledMoments:
    """Measure moments of what layers read, in one pass that ends behind the last of them.

    `fills` are what normalisations read in place of pruned neurons.
    """
    sums = MomentSums(views)
    nodes = reading_nodes(graph, {place for view in sums.views for place in view.places})
    for batch in calibration:
        for node, value, _ in graph.program.observe(state, batch, read=nodes, fills=fills):
            sums.add(nodes[node], value)
    return sums.moments(calibration)


@dataclass(frozen=True)
class Arriving:
    """What zeroed neurons send to a layer, per input."""

    value: Float[Tensor, " n_in"]  # at the first position
    uniform: Bool[Tensor, " n_in"]  # the same arrives at every position of every sample; False where none arrives
    finite: Bool[Tensor, " n_in"]  # it is finite everywhere


def measure_constants(
    graph: Graph, state: State, calibration: Calibration, *, fills: Mapping[str, Fill] | None = None
) -> dict[Place, Arriving]:
    """Run one batch through a network whose rows are zero, to see what such neurons send to their readers.

    `state` are weights in which every row that may be pruned is zero.
    """
    places = {call.place for layer in graph.layers for call in layer.calls if layer.read_groups}
    nodes = reading_nodes(graph, places)
    arriving: dict[Place, Arriving] = {}
    for node, value, _ in graph.program.observe(state, calibration.example[:16], read=nodes, fills=fills):
        seen = value.movedim(nodes[node][1], -1)
        seen = seen.reshape(-1, seen.shape[-1])
        arrives = len(seen) > 0
        seen = seen if arrives else seen.new_zeros(1, seen.shape[1])
        low, high = seen.amin(0), seen.amax(0)
        finite = torch.isfinite(low) & torch.isfinite(high)
        arriving[nodes[node]] = Arriving(seen[0].clone(), (low == high) & arrives, finite)
    return arriving


def fills_of(graph: Graph, kept: Mapping[str, Tensor]) -> dict[str, Fill]:
    """What normalisations read in place of pruned neurons, by operation.

    `kept` are masks of groups by name, shape (width,), True for kept neurons.
    """
    fills = {}
    for norm in graph.norms:
        mask = graph.kept_entries(kept, norm.axis)
        if not bool(mask.all()):
            fills[norm.node] = Fill(mask, norm.dim, norm.sets, norm.centred)
    return fills
