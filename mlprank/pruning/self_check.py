"""The self-check: the removed network must give what the masked one gives."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.calibration.statistics import fills_of
from mlprank.graph.program import Inputs, as_inputs, operation
from mlprank.graph.records import Graph, State
from mlprank.surgery.masks import fill_norms
from mlprank.surgery.narrow import plan_removal, severed, with_state
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_SAMPLES = 256


def check_agreement(masked: nn.Module, narrow: nn.Module, example: Tensor | Inputs, graph: Graph) -> float:
    """Run both networks on a calibration batch and compare their outputs.

    Where they differ by more than the tolerance, the comparison in float64 says whether that is more than rounding on
    the way. Returned is the largest absolute difference of two outputs.
    """
    return _compared(masked, narrow, as_inputs(example).first(_NUM_SAMPLES), graph)


def keep_written(model: nn.Module, graph: Graph, state: State, example: Inputs) -> Graph:
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
        reason = (
            f"a width is written into the forward pass: {line}" if line else f"without one of them the network {fault}"
        )
        groups[index] = replace(groups[index], whole=reason)
    return replace(graph, groups=tuple(groups))


_SIZED = {
    "view", "reshape", "_unsafe_view", "unflatten", "split", "split_with_sizes", "chunk", "tensor_split", "slice",
    "narrow", "expand", "repeat", "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty",
}  # fmt: skip
"""Operations that may hold a width as a number."""


def _culprits(model: nn.Module, graph: Graph, state: State, groups: Sequence[int], example: Inputs) -> dict[int, str]:
    """Those of some groups that cannot lose a neuron, with what goes wrong: all are tried together, then halves."""
    fault = _fault_without(model, graph, state, groups, example)
    if fault is None or len(groups) == 1:
        return {} if fault is None else {groups[0]: fault}
    half = len(groups) // 2
    found = {}
    for part in (groups[:half], groups[half:]):
        found.update(_culprits(model, graph, state, part, example))
    return found


def _fault_without(model: nn.Module, graph: Graph, state: State, groups: Sequence[int], example: Inputs) -> str | None:
    """How a network without one neuron of each of some groups differs from itself, or None."""
    if not groups:
        return None
    masks = {graph.groups[index].name: torch.arange(graph.groups[index].width) > 0 for index in groups}
    silent = severed(graph, state, masks)
    removal = plan_removal(graph, silent, masks, None)
    masked, narrow = with_state(model, silent), with_state(model, removal.state)
    fill_norms(masked, {norm.module: fill for norm in graph.norms if (fill := fills_of(graph, masks).get(norm.node))})
    try:
        check_agreement(masked, narrow, example.first(2), graph)
    except ValueError as error:
        return str(error).partition("; ")[0].removeprefix("the narrow network ")
    fault = _fault_in_training(narrow, example.first(2))
    return f"cannot be trained ({fault})" if fault and not _fault_in_training(masked, example.first(2)) else None


def _fault_in_training(model: nn.Module, inputs: Inputs) -> str | None:
    """Why a network cannot run in training mode, or None."""
    with evaluating(model), torch.no_grad():
        model.train()
        try:
            inputs.cloned().feed(model)
        except (RuntimeError, ValueError, IndexError) as error:
            return first_line(error)
    return None


def _compared(masked: nn.Module, narrow: nn.Module, inputs: Inputs, graph: Graph) -> float:
    expected = _outputs(masked, inputs)
    try:
        got = _outputs(narrow, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"the narrow network cannot run ({first_line(error)}); " + _suspects(graph)) from error
    if (fault := _fault(expected, got)) and not _agree_in_float64(masked, narrow, inputs):
        raise ValueError(f"the narrow network {fault}; " + _suspects(graph))
    differences = [_difference(one, other) for one, other in zip(expected, got, strict=True) if one.numel()]
    return max(differences, default=0.0)


def _agree_in_float64(masked: nn.Module, narrow: nn.Module, inputs: Inputs) -> bool:
    floats = [tensor.dtype for tensor in (*masked.parameters(), *inputs.tensors) if tensor.is_floating_point()]
    dtype = floats[0] if floats else torch.float64
    if dtype == torch.float64:
        return False
    wide = inputs.mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    try:
        one, other = (_outputs(with_state(model, {}).double(), wide) for model in (masked, narrow))
    except RuntimeError:  # it casts to float32 on its own
        return False
    return _fault(one, other, tolerance=TOLERANCES.get(dtype, 0.0)) is None


def _fault(expected: list[Tensor], got: list[Tensor], *, tolerance: float | None = None) -> str | None:
    """Say how outputs differ by more than rounding, or None."""
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            return f"gives shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        scale = max(1.0, float(one.double().abs().max())) if one.numel() else 1.0
        difference = _difference(one, other) if one.numel() else 0.0
        if not difference <= (TOLERANCES.get(one.dtype, 0.0) if tolerance is None else tolerance) * scale:
            return f"differs from the masked one by {difference:.2g} on outputs up to {scale:.3g}"
    return None


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network in evaluation mode; draws that it makes there, too, are the same for every network."""
    # torch.manual_seed notes the whole stack for a CUDA that may come later, which takes longer than a small network.
    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs.tensors)
    seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
    inputs = inputs.cloned()
    with evaluating(model), torch.no_grad():
        seed(0)
        return [leaf for leaf in pytree.tree_leaves(inputs.feed(model)) if isinstance(leaf, Tensor)]


def _suspects(graph: Graph) -> str:
    if not graph.reshapes:
        return "its forward depends on a width in a way that tracing does not see; protect the layers concerned"
    lines = "; ".join(graph.reshapes)
    return (
        f"a width is written into the forward pass: {lines}; take sizes from the tensor (x.flatten(1), x.shape[-1]) "
        "or protect the layer"
    )
