"""A template network as a list of operations that a stack of trials can carry out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlprank.graph.operations import is_in_place, is_pointwise

_EXAMPLES = 3
_RESHAPES = (
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.clone.default,
)
_STATEFUL = (torch.ops.aten.batch_norm.default, torch.ops.aten.dropout.default)


class CannotStackError(ValueError):
    """These trials cannot be trained as one stacked model; the text says what stands in the way."""


@dataclass(frozen=True)
class Value:
    """A reference to what an earlier operation made, to a parameter or to a buffer.

    Attributes:
        name: The operation's name, or the state dict's name of the tensor.
        stored: Whether it is a parameter or a buffer.
    """

    name: str
    stored: bool = False


@dataclass(frozen=True)
class Operation:
    """One operation of the template's forward pass.

    Attributes:
        name: Of the value that it makes.
        target: The ATen operation.
        args: Its arguments; values and tensors of the state dict as `Value`.
        kwargs: Its keyword arguments.
        shape: Of the value for one sample, without the batch dimension.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Which rule carries it out: `linear`, `batch_norm`, `dropout`, `reshape` or `pointwise`."""
        if self.target in _RESHAPES:
            return "reshape"
        if self.target is torch.ops.aten.linear.default:
            return "linear"
        if self.target in _STATEFUL:
            return str(self.target.overloadpacket.__name__)
        return "pointwise"


@dataclass(frozen=True)
class Plan:
    """The forward pass of a template.

    Attributes:
        source: Name of the input's value.
        operations: In the order of execution.
        result: Name of the value that the network returns, shape (classes,) a sample.
        in_shape: Shape of one input sample.
    """

    source: str
    operations: tuple[Operation, ...]
    result: str
    in_shape: tuple[int, ...]


def trace(network: nn.Module, in_shape: tuple[int, ...]) -> Plan:
    """Read a template's forward pass into operations that can be stacked.

    The network is copied, so that its mode and its weights stay as they are.

    Args:
        network: A network that takes a batch and returns one score a class: linear layers, element-wise operations,
            batch normalisation, dropout, flattening and additions.
        in_shape: Shape of one input sample.

    Returns:
        The plan that `Stack` carries out.

    Raises:
        CannotStackError: If an operation mixes samples, is not of these kinds, or weights are shared between names.
    """
    template = copy.deepcopy(network).eval().cpu()
    _refuse_tied_weights(template)
    dtype = next((p.dtype for p in template.parameters()), torch.float32)
    example = torch.zeros(_EXAMPLES, *in_shape, dtype=dtype)
    try:
        program = torch.export.export(template, (example,), strict=False)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CannotStackError(f"{type(network).__name__} cannot be traced by torch.export: {first}") from error
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = list(signature.user_inputs)
    outputs = list(signature.user_outputs)
    if len(inputs) != 1 or len(outputs) != 1:
        raise CannotStackError(
            f"{type(network).__name__} takes {len(inputs)} inputs and returns {len(outputs)} outputs; "
            "a stack needs one of each"
        )
    operations = _out_of_place([_operation(node, stored) for node in program.graph.nodes if node.op == "call_function"])
    shapes = {operation.name: operation.shape for operation in operations} | {str(inputs[0]): in_shape}
    for operation in operations:
        _check(operation, shapes)
    result = str(outputs[0])
    if len(shapes.get(result, ())) != 1:
        raise CannotStackError(
            f"{type(network).__name__} returns {shapes.get(result)} a sample; a stack needs one score a class"
        )
    return Plan(source=str(inputs[0]), operations=operations, result=result, in_shape=tuple(in_shape))


def _out_of_place(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """Replace operations that overwrite their input by those that do not, and let later readers read the new value."""
    root: dict[str, str] = {}
    renamed: dict[str, str] = {}
    stale: set[str] = set()
    result = []

    def current(argument: Any, reader: Operation) -> Any:
        if not isinstance(argument, Value) or argument.stored:
            return argument
        if argument.name in stale:
            raise CannotStackError(
                f"{reader.name!r}: {reader.target} reads {argument.name!r}, which was overwritten through a view; "
                "write that operation out of place"
            )
        return Value(renamed.get(argument.name, argument.name))

    for operation in operations:
        first = operation.args[0] if operation.args else None
        target = operation.target
        if is_in_place(target) and isinstance(first, Value):
            packet = getattr(torch.ops.aten, target.overloadpacket.__name__.removesuffix("_"), None)
            target = getattr(packet, target._overloadname, target)
        changed = replace(
            operation,
            target=target,
            args=tuple(current(argument, operation) for argument in operation.args),
            kwargs={key: current(argument, operation) for key, argument in operation.kwargs.items()},
        )
        result.append(changed)
        if isinstance(first, Value) and target is not operation.target:
            same = root.get(first.name, first.name)
            stale |= {name for name in (same, *root) if root.get(name, name) == same and name != first.name}
            renamed[first.name] = operation.name
        elif isinstance(first, Value) and operation.kind == "reshape":
            root[operation.name] = root.get(first.name, first.name)
    return tuple(result)


def _refuse_tied_weights(network: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        other = seen.setdefault(id(tensor), name)
        if other != name:
            raise CannotStackError(f"{other!r} and {name!r} are one tensor; a stack needs one name a tensor")


def _operation(node: fx.Node, stored: Mapping[str, str]) -> Operation:
    def convert(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            name = stored.get(argument.name)
            return Value(argument.name) if name is None else Value(name, stored=True)
        return argument

    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise CannotStackError(f"{node.name!r}: {node.target} makes no tensor, and cannot be stacked")
    if value.dim() < 2 or value.shape[0] != _EXAMPLES:
        raise CannotStackError(
            f"{node.name!r}: {node.target} makes {tuple(value.shape)} of {_EXAMPLES} samples; a stack needs every "
            "value to keep the samples in its first dimension"
        )
    arguments = fx.node.map_aggregate(node.args, convert)
    keywords = fx.node.map_aggregate(dict(node.kwargs), convert)
    return Operation(node.name, node.target, tuple(arguments), dict(keywords), tuple(value.shape[1:]))


def _is_random(target: object) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _check(operation: Operation, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what no rule can carry out."""
    used = [value for value in (*operation.args, *operation.kwargs.values()) if isinstance(value, Value)]
    unknown = [value.name for value in used if not value.stored and value.name not in shapes]
    place = f"{operation.name!r}: {operation.target}"
    if unknown:
        raise CannotStackError(f"{place} uses {unknown[0]!r}, which is no parameter, buffer or value of the network")
    if not used or used[0].stored:
        raise CannotStackError(f"{place} works on weights; a stack needs every operation to work on the samples")
    if operation.kind == "linear":
        if len(shapes[used[0].name]) != 1 or not all(value.stored for value in used[1:]):
            raise CannotStackError(f"{place} must read vectors and weights of the state dict to be stacked")
    elif operation.kind == "pointwise" and (not is_pointwise(operation.target) or _is_random(operation.target)):
        raise CannotStackError(
            f"{place} cannot be stacked; a stack knows linear layers, batch norm, dropout, flattening and "
            "element-wise operations"
        )
