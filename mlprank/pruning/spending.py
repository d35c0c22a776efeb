"""What the adaptive method goes by: every unit's error curve in units of the output, and what its neurons cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import PooledMoments
from mlprank.compensation import LeastSquares, Mean
from mlprank.compensation.readers import predict
from mlprank.costs.metrics import count_flops, measure_latency, size_bytes
from mlprank.graph.layers import Embedding
from mlprank.graph.program import Inputs, as_inputs
from mlprank.graph.records import Graph, Group, State
from mlprank.measures.reconstruction import reconstruction_gains
from mlprank.methods.adaptive import Adaptive, Costs, Counted, Term, error_curve, spend
from mlprank.pruning.selection import Selection, readers_of
from mlprank.surgery.narrow import plan_removal, with_state

_NUM_SAMPLES = 128
_UNEXPLAINED = 0.05


def error_curves(
    graph: Graph, state: State, units: Mapping[str, Group], *, moments: PooledMoments, calibration: Calibration
) -> dict[str, Float[Tensor, " n_plus_1"]]:
    """Return what k kept neurons cost of the outputs, for k from 0 to n.

    Shape (n + 1,), float64, for every unit. How the cost falls with k follows from what the readers can rebuild; how
    large it is, from the squared change of the outputs, summed over at most 128 samples, when the other neurons are
    predicted by so few that at least 5 % of what the readers compute is unexplained.

    Raises:
        ValueError: If the outputs hold no floating-point numbers, or they are not finite.
    """
    curves = {}
    batches = _some(calibration)
    dense = [_outputs(graph, state, batch) for batch in batches]
    for unit, group in units.items():
        readers = readers_of(graph, state, graph.group_by_name[group.name], moments)
        weights = [reader.weight.double() for reader in readers]
        total = sum(float(((w @ reader.gram) * w).sum()) for w, reader in zip(weights, readers, strict=True))
        # Neurons that nothing reads can all go.
        gains = reconstruction_gains(readers) if readers else torch.zeros(group.width, dtype=torch.float64)
        curve = error_curve(gains, total)
        fewest = max(0, int((curve >= _UNEXPLAINED).sum()) - 1)
        kept = torch.zeros(group.width, dtype=torch.bool, device=gains.device)
        kept[gains.argsort(descending=True, stable=True)[:fewest]] = True
        changed = state
        for layer in graph.readers_of(group):
            # What is tied can only be dropped; elsewhere it makes the very neurons that are gone.
            by = Mean() if layer.tied else LeastSquares()
            changed = predict(graph, changed, replace(layer, tied=False), {group.name: kept}, moments, by=by)
        change = sum(
            float((one - other).double().square().sum())
            for batch, expected in zip(batches, dense, strict=True)
            for one, other in zip(_outputs(graph, changed, batch), expected, strict=True)
        )
        change = float(calibration.reduce(torch.tensor(change, dtype=torch.float64)))  # all processes refuse together
        if not math.isfinite(change):
            raise ValueError('method="adaptive": outputs of the network are not finite; check the calibration data')
        curves[unit] = curve * (change / max(float(curve[fewest]), _UNEXPLAINED))
    return curves


def _some(calibration: Calibration) -> list[Inputs]:
    """The first 128 calibration samples, in batches."""
    found: list[Inputs] = []
    left = _NUM_SAMPLES
    for batch in calibration:
        found.append(batch.first(left))
        left -= len(found[-1])
        if left <= 0:
            break
    return found


def _outputs(graph: Graph, state: State, batch: Inputs) -> list[Tensor]:
    found = [each for each in graph.program.outputs(state, batch) if each.is_floating_point()]
    if not found:
        raise ValueError('method="adaptive": the network returns no floating-point numbers; use method="local"')
    return found


def measure_costs(
    graph: Graph,
    model: nn.Module,
    state: State,
    units: Mapping[str, Group],
    *,
    count: Counted,
    example: Tensor | Inputs,
) -> Costs:
    """Return what the network costs as a function of its units' widths.

    That is neurons, parameters, FLOPs of one sample, bytes as `torch.save` writes them, or seconds of the example.
    """
    example = as_inputs(example)
    if count == "neurons":
        return Costs([Term(1.0, ((0.0, {unit: 1.0}),)) for unit in units])
    if count == "latency":
        return _latency_costs(graph, model, state, units, example)
    sizes = _sizes(graph, state, units)
    if count == "flops":
        terms = [
            Term(2.0 * factor, sizes[layer.weight])
            for layer in graph.layers
            for factor in _positions(graph, layer.name)
        ]
        dense = float(count_flops(model, example.first(1)))
    else:
        parameters = {id(tensor) for tensor in model.parameters()}
        held = dict(model.named_parameters()) | (dict(model.named_buffers()) if count == "bytes" else {})
        terms = [
            Term(float(tensor.element_size() if count == "bytes" else 1), sizes[name])
            for name, tensor in held.items()
            if name in sizes and (count == "bytes" or id(tensor) in parameters)
        ]
        dense = float(size_bytes(model) if count == "bytes" else sum(each.numel() for each in model.parameters()))
    full = {unit: group.width for unit, group in units.items()}
    return Costs(terms, fixed=dense - Costs(terms).total(full))


def _sizes(
    graph: Graph, state: State, units: Mapping[str, Group]
) -> dict[str, tuple[tuple[float, Mapping[str, float]], ...]]:
    """For every tensor its dimensions as `Term.dims` has them."""
    dims: dict[str, list[tuple[float, Mapping[str, float]]]] = {
        name: [(float(size), {}) for size in tensor.shape] for name, tensor in state.items()
    }
    named = {graph.group_by_name[group.name]: unit for unit, group in units.items()}
    for (name, dim), axis in graph.slots.items():
        if name not in dims:
            continue
        fixed, per_neuron = 0.0, dict[str, float]()
        for segment in axis:
            if segment.space in named:
                per_neuron[named[segment.space]] = per_neuron.get(named[segment.space], 0.0) + segment.block
            else:
                fixed += segment.size
        dims[name][dim] = (fixed, per_neuron)
    return {name: tuple(each) for name, each in dims.items()}


def _positions(graph: Graph, layer: str) -> Iterator[float]:
    """For every use of a layer, how often a sample multiplies with its weight."""
    nodes = {node.name: node for node in graph.program.exported.graph.nodes}
    for call in graph.by_name[layer].calls:
        shape = nodes[call.node].meta["val"].shape
        positions = [size for dim, size in enumerate(shape) if dim not in (0, call.out_dim)]
        yield 0.0 if isinstance(call.kind, Embedding) else math.prod(int(size) for size in positions)


def _latency_costs(graph: Graph, model: nn.Module, state: State, units: Mapping[str, Group], example: Inputs) -> Costs:
    """Time the network with one unit after the other at half its width."""
    networks: dict[str, nn.Module] = {"": model}
    for unit, group in units.items():
        mask = torch.arange(group.width) % 2 == 0
        removal = plan_removal(graph, state, {group.name: mask}, None)
        networks[unit] = with_state(model, removal.state)
    seconds = {name: each.median_s for name, each in measure_latency(networks, example).items()}
    per_neuron = {
        unit: max(seconds[""] - seconds[unit], 1e-3 * seconds[""] / len(units)) / (group.width // 2 or 1)
        for unit, group in units.items()
    }
    saved = sum(per_neuron[unit] * group.width for unit, group in units.items())
    return Costs([Term(per_neuron[unit], ((0.0, {unit: 1.0}),)) for unit in units], fixed=seconds[""] - saved)


def spent_amounts(
    selection: Selection,
    curves: Mapping[str, Tensor],
    costs: Costs,
    *,
    method: Adaptive,
    min_neurons: int,
    round_to: int,
) -> dict[str, float]:
    """Return the share of its neurons that every unit loses when one amount of what the method counts is spent best.

    Raises:
        ValueError: If several amounts were given, or no widths keep the budget.
    """
    requested = set(selection.amounts.values())
    if len(requested) > 1:
        given = ", ".join(f'"{name}": {amount}' for name, amount in selection.amounts.items())
        raise ValueError(
            f'method="adaptive" spends one amount over all layers, but was given {given}; use method="local" for an'
            " amount per layer"
        )
    amount = requested.pop()
    widths = {unit: len(curve) - 1 for unit, curve in curves.items()}
    left = widths | {unit: int(kept.sum()) for unit, kept in selection.already.items()}
    budget = costs.total(widths) * (1 - amount)
    if method.count == "neurons":
        total = sum(widths.values())
        least = sum(min(left[unit], -(-min_neurons // round_to) * round_to) for unit in widths)
        budget = max(least, total - round(amount * total))
    try:
        kept = spend(curves, costs, budget, widths=left, min_neurons=min_neurons, round_to=round_to)
    except ValueError as error:
        raise ValueError(
            f'method="adaptive", amount={amount:g} of the {method.count}: {error}; lower the amount'
        ) from error
    return {unit: 1 - kept[unit] / widths[unit] for unit in widths}
