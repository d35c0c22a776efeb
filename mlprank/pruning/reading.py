"""From a network to the graph that it is pruned by: read once, and remembered as long as the network is there."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.calibration.statistics import fills_of
from mlprank.graph.layers import KINDS
from mlprank.graph.program import Inputs, operation
from mlprank.graph.records import Graph, State
from mlprank.graph.trace import agrees, trace
from mlprank.pruning.self_check import check_agreement
from mlprank.surgery.masks import fill_norms
from mlprank.surgery.narrow import plan_removal, severed, with_state
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating, tensors_of

_read: WeakKeyDictionary[nn.Module, tuple[list[Any], Graph]] = WeakKeyDictionary()
_SIZED = {
    "view", "reshape", "_unsafe_view", "unflatten", "split", "split_with_sizes", "chunk", "tensor_split", "slice",
    "narrow", "expand", "repeat", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty",
}  # fmt: skip
"""Operations that may hold a width as a number."""


def read_network(
    owner: nn.Module, model: nn.Module, state: State, example: Inputs, varying: Collection[tuple[int, int]]
) -> Graph:
    """Read a network, or take what was read of it before, if it still has the same parts and gives the same outputs.

    What is read of the `owner` is remembered if `model`, the copy of it that is read, with the weights `state`, is made
    around its own parameters. `example` and `varying` are those of `trace`.
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

    Whether a number in the traced program was one in the forward pass, too, or was taken from a tensor, only trying can
    tell: a network that lost one neuron of each group, which nobody listens to, has to give what it gave with that
    neuron, and to run in training mode where something is not used but there.
    """
    program = graph.program
    used = {program.tensors[node.name] for node in program.nodes if node.name in program.tensors and node.users}
    unused = [name for name in state if name not in used and not name.endswith("num_batches_tracked")]
    if not unused and not any(operation(node) in _SIZED for node in program.nodes):
        return graph
    suspects = [index for index, group in enumerate(graph.groups) if group.whole is None and group.width > 1]
    suspects.sort(key=lambda index: (graph.groups[index].written or "", index))
    groups = list(graph.groups)
    for index, fault in _culprits(model, graph, state, suspects, example).items():
        line = groups[index].written
        why = (
            f"a width is written into the forward pass: {line}" if line else f"without one of them the network {fault}"
        )
        groups[index] = replace(groups[index], whole=why)
    return replace(graph, groups=tuple(groups))


def _culprits(model: nn.Module, graph: Graph, state: State, groups: Sequence[int], example: Inputs) -> dict[int, str]:
    """Those of some groups that cannot lose a neuron, with what goes wrong: all are tried together, then halves."""
    fault = _fault_without(model, graph, state, groups, example) if groups else None
    if fault is None or len(groups) == 1:
        return {} if fault is None else {groups[0]: fault}
    first, second = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    return {
        **_culprits(model, graph, state, first, example),
        **_culprits(model, graph, state, second, example),
    }


def _fault_without(model: nn.Module, graph: Graph, state: State, groups: Sequence[int], example: Inputs) -> str | None:
    """How a network without one neuron of each of some groups differs from itself, or None."""
    masks = {graph.groups[index].name: torch.arange(graph.groups[index].width) > 0 for index in groups}
    silent = severed(graph, state, masks)
    removal, fills = plan_removal(graph, silent, masks, None), fills_of(graph, masks)
    masked, narrow = with_state(model, silent), with_state(model, removal.state)
    fill_norms(masked, {norm.module: fills[norm.node] for norm in graph.norms if norm.node in fills})
    inputs = example.first(2)
    try:
        check_agreement(masked, narrow, inputs, graph)
    except ValueError as error:
        return str(error).partition("; ")[0].removeprefix("the narrow network ")
    faults = {}
    for name, network in (("narrow", narrow), ("masked", masked)):
        with evaluating(network), torch.no_grad():
            network.train()
            try:
                inputs.cloned().feed(network)
            except (RuntimeError, ValueError, IndexError) as error:
                faults[name] = first_line(error)
    return f"cannot be trained ({faults['narrow']})" if [*faults] == ["narrow"] else None
