"""Scores of every layer: a measure, carried along the graph from the input to the output.

**chain**, the published reading: the linear layers in forward order; each one's scores, divided by their sum, are the `previous` of
the next; whatever stands between two linear layers is not part of the graph.

**dag**, the true graph of neurons. Every value v has an importance pi(v), non-negative with sum 1:

- a value made by no followed neuron (the network's input, what attention or a softmax gives): `pi = a / sum(a)`, with `a` its norm
  on the calibration data;
- a linear layer, `z = W x + b`, then a normalisation with the per-channel factor g (1 where there is none), then an activation:
  `pi = measure(diag(|g|) W, previous=pi(x), a_out)`, with `a_out` the norm of what the neuron emits after both;
- an activation, dropout, reshape, pooling over positions: `pi` of what it reads;
- a normalisation or gain g behind an activation: `pi ~ |g| * pi(x)`;
- an addition (or another elementwise meeting) of u and v: an edge of weight 1 from each: `pi ~ pi(u) + pi(v)`;
- neurons tied by a meeting or by a shared normalisation are one group: its score is the sum of its layers' scores.

On a chain of linear layers and ReLUs the two readings agree on every hidden layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mlprank.calibration.statistics import Norms, PooledMoments
from mlprank.graph.records import Call, Graph, Group, Layer, State
from mlprank.measures.record import LayerRecord, Measure, Reader

Readers = Callable[[Group], tuple[Reader, ...]]


def score_layers(
    graph: Graph,
    state: State,
    norms: Norms,
    *,
    measure: Measure,
    amounts: Mapping[str, float],
    readers: Readers,
    chain: bool,
) -> dict[str, Tensor]:
    """Score the neurons of every linear layer.

    Args:
        graph: The network's graph.
        state: Its weights.
        norms: Its norms on the calibration data.
        measure: What scores a layer.
        amounts: The requested amount of every layer, for measures that look at it.
        readers: Gives the layers that read a group, with their Gram matrices, to measures that ask.
        chain: Whether to read the network as a chain of linear layers.

    Returns:
        Scores of every layer, shape (n_out,), each non-negative with sum 1; in dag mode the layers of a group share them.

    Raises:
        ValueError: If a measure gives a wrong shape, a negative or a non-finite score; measure and layer are named.
    """
    scorer = _Scorer(graph, state, norms, measure, amounts, readers, chain=chain)
    own = scorer.chain_scores() if chain else scorer.dag_scores()
    if chain:
        return own
    shared = {group: sum((own[name] for name in group.layers[1:]), own[group.layers[0]]) for group in graph.groups}
    return {layer.name: _normalised(shared[graph.groups[layer.group]]) for layer in graph.layers}


def score_group(
    graph: Graph, state: State, norms: Norms, group: Group, *, measure: Measure, readers: tuple[Reader, ...]
) -> dict[str, Tensor]:
    """Score one group on a network that is already pruned below it, for measures that ask for that (`reads_pruned`).

    Args:
        graph: The network's graph.
        state: The weights, pruned below the group.
        norms: Norms of the dense network; what the group reads counts by them.
        group: The group to score.
        measure: What scores a layer.
        readers: The layers that read the group, with Gram matrices on the pruned network.

    Returns:
        The group's scores, shape (n,), non-negative with sum 1, for each of its layers.
    """
    scorer = _Scorer(graph, state, norms, measure, {}, lambda group: readers, chain=False)
    parts = [
        scorer.score(layer, call, scorer.norm(norms.read[call.source]))
        for layer in map(graph.by_name.__getitem__, group.layers)
        for call in layer.calls
    ]
    return dict.fromkeys(group.layers, _normalised(torch.stack(parts).sum(0)))


def readers_of(graph: Graph, state: State, group: Group, moments: PooledMoments) -> tuple[Reader, ...]:
    """Return the layers that read a group as measures see them."""
    return tuple(Reader(state[layer.weight], moments[layer.sources].gram) for layer in graph.readers_of(group))


class _Scorer:
    """Carries importance along the graph; lives for one scoring."""

    def __init__(
        self,
        graph: Graph,
        state: State,
        norms: Norms,
        measure: Measure,
        amounts: Mapping[str, float],
        readers: Readers,
        *,
        chain: bool,
    ) -> None:
        self.graph, self.state, self.norms, self.measure = graph, state, norms, measure
        self.amounts, self.readers, self.chain = amounts, readers, chain
        self.importance: dict[str, Tensor] = {}

    def chain_scores(self) -> dict[str, Tensor]:
        calls = [(layer, call) for layer in self.graph.layers for call in layer.calls]
        order = {node: index for index, node in enumerate(self.graph.program.reads)}
        totals: dict[str, Tensor] = {}
        previous: Tensor | None = None
        for layer, call in sorted(calls, key=lambda pair: order[pair[1].node]):
            if previous is None:
                previous = self.norm(self.norms.read[call.source])
            if len(previous) != layer.in_features:
                raise ValueError(
                    f'graph="chain": layer "{layer.name}" reads {layer.in_features} values, the linear layer before it makes {len(previous)};'
                    ' the network is no chain of linear layers, use graph="dag"'
                )
            previous = self.score(layer, call, previous)
            totals[layer.name] = totals[layer.name] + previous if layer.name in totals else previous
        return {name: _normalised(total) for name, total in totals.items()}

    def dag_scores(self) -> dict[str, Tensor]:
        order = {node: index for index, node in enumerate(self.graph.program.reads)}
        calls = [(layer, call) for layer in self.graph.layers for call in layer.calls]
        totals: dict[str, Tensor] = {}
        for layer, call in sorted(calls, key=lambda pair: order[pair[1].node]):
            scores = self.score(layer, call, self.pi(call.source))
            self.importance[call.emitted] = scores
            totals[layer.name] = totals[layer.name] + scores if layer.name in totals else scores
        return {name: _normalised(total) for name, total in totals.items()}

    def pi(self, value: str) -> Tensor:
        """The importance of a value, shape (n,), sum 1."""
        if value not in self.importance:
            flow = self.graph.flow.get(value)
            if flow is None:
                self.importance[value] = self.norm(self.norms.read[value])
            else:
                parts = [self.pi(source) for source in flow.inputs]
                total = sum(parts[1:], parts[0])
                self.importance[value] = _normalised(
                    total if flow.scale is None else total * flow.scale.factor(self.state)
                )
        return self.importance[value]

    def score(self, layer: Layer, call: Call, previous: Tensor) -> Tensor:
        weight = self.state[layer.weight]
        if not self.chain:
            for scale in call.scales:
                factor = scale.factor(self.state)
                weight = weight * (factor[:, None] if isinstance(factor, Tensor) else factor)
        made = self.norms.made[call.node]
        if float(made.sum()) == 0:
            warnings.warn(
                f'layer "{layer.name}": every neuron is dead on the calibration data; their norms count as equal',
                stacklevel=6,
            )
            made = torch.ones_like(made)
        record = LayerRecord(
            name=layer.name,
            weight=weight.detach(),
            previous=previous,
            input_norms=self.norms.read[call.source].to(previous.dtype),
            output_norms=made.to(previous.dtype),
            amount=self.amounts.get(layer.name, 0.0),
            readers=lambda: self.readers(self.graph.groups[layer.group]),
        )
        return _checked(self.measure(record), layer, self.measure).to(previous)

    def norm(self, norms: Tensor) -> Tensor:
        """Norms as scores, in the precision that scores are computed in: float32, or float64 for a float64 network."""
        double = any(tensor.dtype == torch.float64 for tensor in self.state.values())
        return _normalised(norms).to(torch.float64 if double else torch.float32)


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
