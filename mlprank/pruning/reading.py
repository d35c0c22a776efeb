"""From a network to the graph that it is pruned by, remembered, and the proof that a narrower one computes the same."""

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.calibration.statistics import fills_of
from mlprank.graph.layers import KINDS
from mlprank.graph.program import Inputs, as_inputs, operation
from mlprank.graph.records import Graph, State
from mlprank.graph.trace import agrees, run_alike, trace
from mlprank.surgery.masks import fill_norms
from mlprank.surgery.narrow import plan_removal, severed, with_state
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating, tensors_of

_read: WeakKeyDictionary[nn.Module, tuple[list[Any], Graph]] = WeakKeyDictionary()
_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_SAMPLES = 256
_SIZED = {
    "view", "reshape", "_unsafe_view", "unflatten", "split", "split_with_sizes", "chunk", "tensor_split", "slice",
    "narrow", "expand", "repeat", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty",
}  # fmt: skip
"""Operations that may hold a width as a number."""


def read_network(
    owner: nn.Module, model: nn.Module, state: State, example: Inputs, varying: Collection[tuple[int, int]]
) -> Graph:
    """Read a network, or take what was read of it before, if it still has the same parts and gives the same outputs.

    What is read of `model`, with the weights `state`, is remembered for its `owner` if their parameters are the same.
    """
    parts = _parts(model, example, varying)
    known, graph = _read.get(owner, (None, None))
    if graph is None or known != parts or not agrees(model, graph.program, example):
        graph = _keep_written(model, trace(model, example, varying=varying), state, example)
        if {id(parameter) for parameter in owner.parameters()} >= {id(parameter) for parameter in model.parameters()}:
            _read[owner] = parts, graph
    return graph


def _parts(model: nn.Module, example: Inputs, varying: Collection[tuple[int, int]]) -> list[Any]:
    """What a graph depends on, as far as it can be compared: modules, plain attributes, tensors, the call, kinds."""
    plain = (bool, int, float, str, type(None))
    tensors = tensors_of(model)
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    return [
        *((name, type(module)) for name, module in model.named_modules()),
        *(
            {name: value for name, value in vars(module).items() if isinstance(value, plain) and name != "training"}
            for module in model.modules()
        ),
        *((name, first[id(each)], each.shape, each.dtype, each.device) for name, each in tensors.items()),
        *(
            (leaf.shape[1:], leaf.dtype, leaf.dim() > 0 and len(leaf) == len(example))
            if isinstance(leaf, Tensor)
            else repr(leaf)
            for leaf in leaves
        ),
        (spec, sorted(varying), list(KINDS)),
    ]


def _keep_written(model: nn.Module, graph: Graph, state: State, example: Inputs) -> Graph:
    """Keep neurons whole whose number is written into the forward pass, such as `x.view(-1, 512)` or `x[:, :256]`.

    Only trying can tell: a network that lost one neuron of each group, which nobody listens to, has to give what it
    gave with that neuron, and to run in training mode where something is not used but there.
    """
    program = graph.program
    used = {program.tensors[node.name] for node in program.nodes if node.name in program.tensors and node.users}
    unused = [name for name in state if name not in used and not name.endswith("num_batches_tracked")]
    if not unused and not any(operation(node) in _SIZED for node in program.nodes):
        return graph
    suspects = [index for index, group in enumerate(graph.groups) if group.whole is None and group.width > 1]
    suspects.sort(key=lambda index: (graph.groups[index].written or "", index))
    groups, pending = list(graph.groups), [suspects]
    while pending:  # all are tried together, then halves
        tried = pending.pop()
        fault = _fault_without(model, graph, state, tried, example) if tried else None
        if fault is not None and len(tried) > 1:
            pending += [tried[: len(tried) // 2], tried[len(tried) // 2 :]]
        elif fault is not None:
            line = groups[tried[0]].written
            why = f"without one of them the network {fault}"
            why = f"a width is written into the forward pass: {line}" if line else why
            groups[tried[0]] = replace(groups[tried[0]], whole=why)
    return replace(graph, groups=tuple(groups))


def _fault_without(model: nn.Module, graph: Graph, state: State, groups: Sequence[int], example: Inputs) -> str | None:
    """How a network without one neuron of each of some groups differs from itself, or None."""
    masks = {graph.groups[index].name: torch.arange(graph.groups[index].width) > 0 for index in groups}
    silent = severed(graph, state, masks)
    (state, _), fills = plan_removal(graph, silent, masks, {}), fills_of(graph, masks)
    masked, narrow = with_state(model, silent), with_state(model, state)
    fill_norms(masked, {norm.module: fills[norm.node] for norm in graph.norms if norm.node in fills})
    inputs = example[:2]
    try:
        check_agreement(masked, narrow, inputs, graph)
    except ValueError as error:
        return str(error).partition("; ")[0].removeprefix("the narrow network ")
    faults = {}
    for name, network in (("narrow", narrow), ("masked", masked)):
        with evaluating(network), torch.no_grad():
            network.train()
            try:
                inputs.outputs(network)
            except (RuntimeError, ValueError, IndexError) as error:
                faults[name] = first_line(error)
    return f"cannot be trained ({faults['narrow']})" if [*faults] == ["narrow"] else None


# -- the self-check: the removed network must give what the masked one gives ------------------------------------------


def check_agreement(masked: nn.Module, narrow: nn.Module, example: Tensor | Inputs, graph: Graph) -> float:
    """Run both networks on a calibration batch and compare their outputs.

    Where they differ by more than the tolerance, the comparison in float64 says whether that is more than rounding on
    the way. Returned is the largest absolute difference of two outputs.
    """
    inputs = as_inputs(example)[:_NUM_SAMPLES]
    suspects = "its forward depends on a width in a way that tracing does not see; protect the layers concerned"
    if lines := dict.fromkeys(group.written for group in graph.groups if group.written):
        places = f"a width is written into the forward pass: {'; '.join(lines)}"
        suspects = f"{places}; take sizes from the tensor (x.flatten(1), x.shape[-1]) or protect the layer"
    expected = run_alike(masked, inputs)
    try:
        got = run_alike(narrow, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"the narrow network cannot run ({first_line(error)}); {suspects}") from error
    fault, difference = _compared(expected, got)
    dtypes = [tensor.dtype for tensor in (*masked.parameters(), *inputs.tensors) if tensor.is_floating_point()]
    if fault and dtypes and dtypes[0] != torch.float64:
        wide = inputs.mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        with suppress(RuntimeError):  # of a network that casts to float32 on its own
            one, other = (run_alike(with_state(model, {}).double(), wide) for model in (masked, narrow))
            fault = fault if _compared(one, other, tolerance=_TOLERANCES.get(dtypes[0], 0.0))[0] else ""
    if fault:
        raise ValueError(f"the narrow network {fault}; {suspects}")
    return difference


def _compared(expected: list[Tensor], got: list[Tensor], *, tolerance: float | None = None) -> tuple[str, float]:
    """Say how outputs differ by more than rounding, if they do, and the largest difference."""
    fault, largest = "", 0.0
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            return f"gives shape {tuple(other.shape)} instead of {tuple(one.shape)}", math.inf
        if one.numel():
            scale = max(1.0, float(one.double().abs().max()))
            difference = float((one.double() - other.double()).abs().max())
            largest = max(largest, difference)
            if not difference <= (_TOLERANCES.get(one.dtype, 0.0) if tolerance is None else tolerance) * scale:
                fault = fault or f"differs from the masked one by {difference:.2g} on outputs up to {scale:.3g}"
    return fault, largest
