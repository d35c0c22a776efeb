"""What the adaptive method goes by: every unit's error curve in units of the output, and what its neurons cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import PooledMoments, views_of
from mlprank.compensation import cholesky
from mlprank.costs.metrics import count_flops, measure_latency, size_bytes
from mlprank.graph.layers import Embedding, rows
from mlprank.graph.program import Inputs, as_inputs
from mlprank.graph.records import Graph, Group, State
from mlprank.measures.reconstruction import reconstruction_gains
from mlprank.measures.record import Reader
from mlprank.methods.adaptive import Adaptive, Costs, Counted, Term, error_curve, spend
from mlprank.pruning.selection import Selection
from mlprank.surgery.narrow import plan_removal, with_state

_PROBES = 4
_MOST_SAMPLES = 1024
_JITTER = 1e-10


def measure_sensitivities(graph: Graph, state: State, calibration: Calibration) -> dict[str, Float[Tensor, "m m"]]:
    """Measure how the outputs answer to every layer, by gradients of random combinations of the outputs.

    With `r` random signs over the outputs and `g` the gradient of `r @ outputs` to a layer, the mean of `g g^T` is `J^T
    J`, J the Jacobian of the outputs (Hutchinson's estimator). At most 1,024 samples are looked at.

    Returns:
        For every layer, by name, shape (m, m), float64: `d @ matrix @ d` is the expected squared change of all outputs
        of a sample when every position of the layer changes by d, changes at different positions taken as independent.

    Raises:
        ValueError: If the network computes something that has no gradient.
    """
    nodes = {call.node: (layer.name, call.out_dim) for layer in graph.layers for call in layer.calls}
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    count = 0
    for batch in calibration:
        if count >= _MOST_SAMPLES:
            break
        count += len(batch)
        made, outputs = _run_with_gradients(graph, state, batch, nodes)
        for _ in range(_PROBES):
            signs = [torch.randint(2, each.shape, generator=generator).to(each) * 2 - 1 for each in outputs]
            gradients: Sequence[Any] = torch.autograd.grad(
                outputs, list(made.values()), signs, retain_graph=True, allow_unused=True
            )
            for node, gradient in zip(made, gradients, strict=True):
                name, dim = nodes[node]
                if gradient is None:
                    continue
                seen = rows(gradient, dim).double()
                seen = seen.T @ seen / _PROBES
                sums[name] = sums[name] + seen if name in sums else seen
    total = float(calibration.reduce(torch.tensor(float(count))))
    found = {}
    for layer in graph.layers:
        zero = torch.zeros(layer.out_features, layer.out_features, dtype=torch.float64, device=calibration.device)
        found[layer.name] = calibration.reduce(sums.get(layer.name, zero)) / total
    return found


def _run_with_gradients(
    graph: Graph, state: State, batch: Inputs, nodes: Collection[str]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run the program so that its outputs can be differentiated with respect to what the given operations make."""
    run = graph.program.start({name: tensor.detach() for name, tensor in state.items()}, batch.cloned())
    run.gradients = True
    made: dict[str, Tensor] = {}
    outputs: list[Tensor] = []
    try:
        with torch.inference_mode(False):
            for node in graph.program.nodes:
                if node.op == "output":
                    outputs = [leaf for leaf in run.returned(node) if leaf.requires_grad]
                    break
                run.step(node)
                if node.name in nodes:
                    value = run.values[node]
                    # Gradients start at layers, not at weights: running statistics have none.
                    made[node.name] = value if value.requires_grad else value.detach().requires_grad_()
                    run.values[node] = made[node.name].clone()  # what follows may overwrite it
                run.forget(node)
    except ValueError as error:
        raise ValueError(f'method="adaptive": the network has no gradient ({error}); use method="local"') from error
    if not outputs:
        raise ValueError('method="adaptive": no output of the network has a gradient; use method="local"')
    return made, outputs


def error_curves(
    graph: Graph,
    state: State,
    units: Mapping[str, Group],
    *,
    moments: PooledMoments,
    sensitivities: Mapping[str, Tensor],
) -> dict[str, Float[Tensor, " n_plus_1"]]:
    """Return what k kept neurons leave unexplained of what the readers compute, for k from 0 to n.

    Shape (n + 1,), float64, for every unit: the mean over the samples of the squared change of the outputs.
    """
    curves = {}
    for unit, group in units.items():
        readers, total = [], 0.0
        for layer in graph.readers_of(group):
            root, flat = root_of(sensitivities[layer.name]), layer.kind.flat(state[layer.weight]).double()
            outputs, per_group = flat.shape[1:3]
            for view in views_of(layer, graph.group_by_name[group.name]):
                if view not in moments:
                    continue
                part, inside = divmod(view.start, per_group)
                own = flat[part, :, inside : inside + view.width * view.block]
                own = own.reshape(outputs, view.width, view.block, -1)
                weight = torch.einsum("om,owbp->mbpw", root[part * outputs : (part + 1) * outputs], own)
                weight, gram = weight.reshape(-1, view.width), moments[view].gram / moments[view].count
                readers.append(Reader(weight, gram))
                total += float(((weight @ gram) * weight).sum())
        # Neurons that nothing reads can all go.
        gains = reconstruction_gains(readers) if readers else torch.zeros(group.width, dtype=torch.float64)
        curves[unit] = error_curve(gains, total)
    return curves


def root_of(matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """Return R with `R @ R.T = matrix`, positive semi-definite."""
    return cholesky(matrix, ridge=_JITTER, scale=float(matrix.diagonal().mean()) or 1.0)


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
