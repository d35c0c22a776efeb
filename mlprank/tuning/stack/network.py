"""K networks of one shape as one module: a template read into operations that all of them carry out together."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.export import ShapesCollection

from mlprank.graph.program import Inputs, is_in_place, is_pointwise
from mlprank.graph.trace import export_program

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
    """A reference to what an earlier operation made, or by its name in the state dict to a stored tensor."""

    name: str
    stored: bool = False


@dataclass(frozen=True)
class Operation:
    """One operation of ATen in the template's forward pass, and the shape that it makes of one sample."""

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
    """The forward pass of a template, from the value of its input to its result, of shape (classes,) a sample."""

    source: str
    operations: tuple[Operation, ...]
    result: str
    in_shape: tuple[int, ...]


def trace(network: nn.Module, in_shape: tuple[int, ...]) -> Plan:
    """Read a template's forward pass into operations that can be stacked.

    The network is copied, so that its mode and its weights stay as they are.

    Raises:
        CannotStackError: If an operation mixes samples, is not of these kinds, or weights are shared between names.
    """
    template = copy.deepcopy(network).eval().cpu()
    _refuse_tied_weights(template)
    dtype = next((p.dtype for p in template.parameters()), torch.float32)
    example = torch.zeros(_EXAMPLES, *in_shape, dtype=dtype)
    try:
        program = export_program(template, Inputs((example,), {}), ShapesCollection())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CannotStackError(f"{type(network).__name__} cannot be traced by torch.export: {first}") from error
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = list(signature.user_inputs)
    outputs = list(signature.user_outputs)
    if len(inputs) != 1 or len(outputs) != 1:
        raise CannotStackError(
            f"{type(network).__name__} takes {len(inputs)} inputs and returns {len(outputs)} outputs; a stack needs "
            "one of each"
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


def _check(operation: Operation, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what no rule can carry out."""
    used = [value for value in (*operation.args, *operation.kwargs.values()) if isinstance(value, Value)]
    unknown = [value.name for value in used if not value.stored and value.name not in shapes]
    place = f"{operation.name!r}: {operation.target}"
    if unknown:
        raise CannotStackError(f"{place} uses {unknown[0]!r}, which is no parameter, buffer or value of the network")
    if not used or used[0].stored:
        raise CannotStackError(f"{place} works on weights; a stack needs every operation to work on the samples")
    if operation.kind == "linear" and (len(shapes[used[0].name]) != 1 or not all(value.stored for value in used[1:])):
        raise CannotStackError(f"{place} must read vectors and weights of the state dict to be stacked")
    random = torch.Tag.nondeterministic_seeded in getattr(operation.target, "tags", ())
    if operation.kind == "pointwise" and (random or not is_pointwise(operation.target)):
        raise CannotStackError(
            f"{place} cannot be stacked; a stack knows linear layers, batch norm, dropout, flattening and "
            "element-wise operations"
        )


_SEPARATOR = "/"


class Stack(nn.Module):
    """K networks of one shape that are computed together, each on its own samples or all on the same.

    Parameters have a leading dimension K. Activations are feature-major, (K, features, B), so that the gradient of a
    weight comes out in the weight's own layout. Trials never meet: no value of one enters the result of another.

    Raises:
        CannotStackError: If the networks differ in shape or hold an operation that cannot be stacked.
    """

    def __init__(
        self, networks: Sequence[nn.Module], *, in_shape: tuple[int, ...], seeds: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks is empty; a stack needs at least one network")
        self.plan: Plan = trace(networks[0], tuple(in_shape))
        states = [network.state_dict() for network in networks]
        parameters = dict(networks[0].named_parameters())
        self.names: tuple[str, ...] = tuple(states[0])
        self.weights = nn.ParameterDict()
        for name, first in states[0].items():
            tensors = [state.get(name) for state in states]
            if any(tensor is None or tensor.shape != first.shape or tensor.dtype != first.dtype for tensor in tensors):
                raise CannotStackError(f"{name!r} has not the same shape in every network; a stack needs one shape")
            stacked = torch.stack([tensor.detach() for tensor in tensors if tensor is not None])
            if name in parameters:
                self.weights[_key(name)] = nn.Parameter(stacked, requires_grad=parameters[name].requires_grad)
            else:
                self.register_buffer(_key(name), stacked)
        self.num_trials = len(networks)
        self._bound: list[tuple[Tensor, list[nn.Parameter]]] = []
        self.generators = [torch.Generator().manual_seed(seed) for seed in (seeds or range(self.num_trials))]

    def tensor(self, name: str) -> Tensor:
        """Return the stacked tensor of a state dict's name, shape (K, ...)."""
        key = _key(name)
        return self.weights[key] if key in self.weights else self.get_buffer(key)

    def forward(self, batch: Tensor) -> Float[Tensor, "K classes B"]:
        """Compute the scores of every network."""
        shared = batch.dim() == 1 + len(self.plan.in_shape)
        if not shared and batch.shape[0] != self.num_trials:
            raise ValueError(f"batch of shape {tuple(batch.shape)} holds no batch for each of {self.num_trials} trials")
        values = {self.plan.source: (batch.unsqueeze(0) if shared else batch).movedim(1, -1)}
        for operation in self.plan.operations:
            values[operation.name] = getattr(self, f"_{operation.kind}")(operation, values)
        return values[self.plan.result].expand(self.num_trials, -1, -1)

    def unstack(self, trial: int) -> dict[str, Tensor]:
        """Return the state dict of one trial, with the template's own names."""
        return {name: self.tensor(name)[trial].detach().clone() for name in self.names}

    def bind(self, networks: Sequence[nn.Module]) -> None:
        """Make ordinary networks share their parameters and buffers with the stack: what changes one changes the other.

        To be called again after the stack moved to another device or lost a trial.
        """
        for trial, network in enumerate(networks):
            for name, tensor in network.state_dict(keep_vars=True).items():
                tensor.data = self.tensor(name).data[trial]
        names = [name for name, _ in networks[0].named_parameters()]
        self._bound = [(self.tensor(name), [network.get_parameter(name) for network in networks]) for name in names]

    def share_gradients(self) -> None:
        """Give every bound network its slice of the stacked gradients, or None where there are none."""
        for stacked, slices in self._bound:
            gradient = stacked.grad
            if gradient is None:
                for parameter in slices:
                    parameter.grad = None
            else:
                for parameter, part in zip(slices, gradient.unbind(0), strict=True):
                    parameter.grad = part

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state of the generators, for the checkpoint."""
        return {"generators": torch.stack([generator.get_state() for generator in self.generators])}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of the generators."""
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value.cpu().clone())  # a view with an offset is refused

    def _get(self, argument: Any, values: Mapping[str, Tensor]) -> Any:
        if isinstance(argument, Value):
            return self.tensor(argument.name) if argument.stored else values[argument.name]
        return argument

    def _linear(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor
        weight: Tensor
        x, weight, *rest = (self._get(argument, values) for argument in operation.args)
        bias = rest[0].unsqueeze(-1) if rest and rest[0] is not None else None
        x = x.expand(len(weight), -1, -1)
        return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias, weight, x)

    def _batch_norm(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        names = operation.args[1:5]
        weight, bias, mean, variance = (None if name is None else self._get(name, values).flatten() for name in names)
        x: Tensor = self._get(operation.args[0], values)
        x = x.expand(self.num_trials, *x.shape[1:])
        momentum, eps = operation.args[6:8]
        if self.training and isinstance(names[2], Value):
            counter = names[2].name.rpartition(".")[0] + ".num_batches_tracked"
            if counter in self.names:
                self.tensor(counter).add_(1)
        out = F.batch_norm(
            x.reshape(1, x.shape[0] * x.shape[1], -1),
            mean,
            variance,
            weight,
            bias,
            training=self.training or bool(operation.args[5]),
            momentum=momentum,
            eps=eps,
        )
        return out.view(x.shape)

    def _dropout(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor
        x, p, always = (self._get(argument, values) for argument in operation.args)
        if not (self.training or always) or p == 0:
            return x
        kept = torch.empty(self.num_trials, *x.shape[1:], dtype=x.dtype)
        for mask, generator in zip(kept, self.generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        return x * kept.to(x.device).div_(1 - p) if p < 1 else x * 0

    def _reshape(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        x: Tensor = self._get(operation.args[0], values)
        return x.reshape(x.shape[0], *operation.shape, x.shape[-1])

    def _pointwise(self, operation: Operation, values: Mapping[str, Tensor]) -> Tensor:
        dims = len(operation.shape)

        def align(argument: Any) -> Any:
            tensor = self._get(argument, values)
            if not isinstance(argument, Value):
                return argument
            if argument.stored:
                shape = tensor.shape[1:][-dims:] if tensor.dim() > 1 else ()
                return tensor.reshape(-1, *(1,) * (dims - len(shape)), *shape, 1)
            return tensor.reshape(tensor.shape[0], *(1,) * (dims + 2 - tensor.dim()), *tensor.shape[1:])

        arguments = [align(argument) for argument in operation.args]
        result: Tensor = operation.target(*arguments, **{key: align(value) for key, value in operation.kwargs.items()})
        return result


def _key(name: str) -> str:
    return name.replace(".", _SEPARATOR)
