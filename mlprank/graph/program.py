"""A traced network as a function of its weights: the same program runs dense, masked or half pruned."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from mlprank.utils.errors import first_line

Observer = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Inputs:
    """One call of a network: positional and keyword arguments, tensors and whatever else it takes."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __len__(self) -> int:
        """Number of samples: the size of the first tensor's first dimension."""
        return next((len(leaf) for leaf in self.tensors if leaf.dim()), 0)

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        return [leaf for leaf in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    @property
    def sole(self) -> Tensor | Inputs:
        """The tensor, where the call is one tensor and nothing else; otherwise the call."""
        sole = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return sole if isinstance(sole, Tensor) else self

    def feed(self, model: Callable[..., Any]) -> Any:
        """Call a network with it."""
        return model(*self.args, **self.kwargs)

    def to(self, device: torch.device) -> Inputs:
        """The same call on a device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with other tensors."""
        args, kwargs = pytree.tree_map(
            lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, dict(self.kwargs))
        )
        return Inputs(args, kwargs)

    def first(self, count: int) -> Inputs:
        """The first samples: tensors that share the first tensor's number of samples are cut."""
        size = len(self)
        return self.mapped(lambda leaf: leaf[:count] if leaf.dim() and len(leaf) == size else leaf)

    def repeated(self, count: int) -> Inputs:
        """The only sample so many times."""
        return self.mapped(
            lambda leaf: leaf.repeat(count, *[1] * (leaf.dim() - 1)) if leaf.dim() and len(leaf) == 1 else leaf
        )

    def taken(self, index: Tensor | slice) -> Inputs:
        """Some of the samples."""
        size = len(self)
        return self.mapped(lambda leaf: leaf[index] if leaf.dim() and len(leaf) == size else leaf)

    def cloned(self) -> Inputs:
        """A copy that may be overwritten."""
        return self.mapped(torch.clone)

    def __str__(self) -> str:
        shown = [_described(arg) for arg in self.args] + [
            f"{key}={_described(arg)}" for key, arg in self.kwargs.items()
        ]
        return f"({', '.join(shown)})"


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The samples of several calls in one."""
    first, leaves = parts[0], [part.tensors for part in parts]
    whole = iter([torch.cat(each) if each[0].dim() else each[0] for each in zip(*leaves, strict=True)])
    return first.mapped(lambda _: next(whole))


def as_inputs(example: Tensor | Inputs) -> Inputs:
    """A call of a network; a tensor stands for a call with that tensor."""
    return example if isinstance(example, Inputs) else Inputs((example,), {})


def _described(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"{str(argument.dtype).removeprefix('torch.')} {tuple(argument.shape)}"
    if isinstance(argument, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in argument.items()) + "}"
    if isinstance(argument, (list, tuple)):
        return "[" + ", ".join(_described(value) for value in argument) + "]"
    return repr(argument)


@dataclass(frozen=True)
class Program:
    """A traced network.

    Attributes:
        exported: What `torch.export` gave.
        tensors: The state dict's name for every placeholder that is a parameter or a buffer.
        reads: For every operation of a layer the value that it reads, in forward order.
        created: For operations that add no bias: the name of the one that can be created, and the dimension of the
            operation's value along it. Weights to run with that hold it are run with it.
    """

    exported: ExportedProgram
    tensors: Mapping[str, str]
    reads: Mapping[str, str]
    created: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @cached_property
    def overwrites(self) -> bool:
        """Whether an operation overwrites a value in place."""
        return any(is_in_place(node.target) for node in self.nodes)

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The operations in order, inputs first."""
        return list(self.exported.graph_module.graph.nodes)

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The place of every operation."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def lifted(self) -> Mapping[str, str]:
        """The constants' names by placeholder."""
        signature = self.exported.graph_signature
        return {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_lifted_custom_objs}

    @cached_property
    def in_spec(self) -> pytree.TreeSpec:
        """The structure of a call; torch makes a new class of named tuples whenever it is asked."""
        spec: pytree.TreeSpec | None = self.exported.call_spec.in_spec
        assert spec is not None
        return spec

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Placeholders that are buffers."""
        return frozenset(self.exported.graph_signature.inputs_to_buffers)

    @cached_property
    def last_uses(self) -> Mapping[fx.Node, tuple[fx.Node, ...]]:
        """For every operation the values that nothing behind it needs."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for argument in node.all_input_nodes:
                last[argument] = node
        dead: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for argument, node in last.items():
            dead[node] = (*dead.get(node, ()), argument)
        return dead

    def start(self, state: Mapping[str, Tensor], inputs: Inputs) -> Run:
        """Begin a run of the program on a batch; nothing is computed yet.

        Args:
            state: The weights to run with, by the names of the state dict; left as they are.
            inputs: A batch; left as it is.

        Raises:
            ValueError: If the program takes other arguments.
        """
        if self.overwrites:
            inputs = inputs.cloned()
        return Run(self, state, self._placeholders(inputs))

    def _placeholders(self, inputs: Inputs) -> dict[str, Any]:
        spec = self.in_spec
        given: Any = (inputs.args, {key: inputs.kwargs[key] for key in _keyword_order(spec) if key in inputs.kwargs})
        leaves, found = pytree.tree_flatten(given)
        wanted = [each.arg for each in self.exported.graph_signature.input_specs if each.kind == InputKind.USER_INPUT]
        if len(leaves) != len(wanted) or found != spec:
            raise ValueError(
                f"calibration: a batch gives {inputs}, another structure than the first one; give calls of one "
                "structure"
            )
        return {
            argument.name: leaf
            for argument, leaf in zip(wanted, leaves, strict=True)
            if not isinstance(argument, ConstantArgument)
        }

    def observe(
        self,
        state: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        read: Mapping[str, str] | None = None,
        on_read: Observer | None = None,
        made: Collection[str] = (),
        on_made: Observer | None = None,
        fills: Mapping[str, Fill] | None = None,
    ) -> None:
        """Run the program on a batch as far as needed and show values on the way.

        Args:
            state: The weights to run with; left as they are.
            inputs: A batch; left as it is.
            read: Operations, and the value that each is watched reading: shown at the moment of reading, so that an
                operation that later overwrites it in place changes nothing.
            on_read: Called with the operation's name and the value; it must not keep or change it.
            made: Values to show when they are made.
            on_made: Called with the name and the value of those, likewise.
            fills: What normalisations read in place of pruned neurons; see `Fill`.

        Raises:
            ValueError: If the program cannot run this batch.
        """
        read = read or {}
        watched = [self.order[name] for name in (*read, *made) if name in self.order]
        if not watched:
            return
        run = self.start(state, inputs)
        run.fills = fills or {}
        for node in self.nodes[: max(watched) + 1]:
            if on_read is not None and node.name in read:
                on_read(node.name, run.argument(node, read[node.name]))
            run.step(node)
            if on_made is not None and node.name in made:
                on_made(node.name, run.value_of(node))
            run.forget(node)

    def outputs(self, state: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
        """Run the program to its end and return every tensor that it returns."""
        run = self.start(state, inputs)
        for node in self.nodes:
            if node.op == "output":
                return run.returned(node)
            run.step(node)
            run.forget(node)
        return []


def _keyword_order(spec: pytree.TreeSpec) -> list[str]:
    keywords = spec.children()[1]
    return list(keywords.context or [])


@dataclass(frozen=True)
class Fill:
    """What a normalisation reads in place of pruned neurons.

    Attributes:
        kept: Which entries are kept, shape (n,).
        dim: The dimension along them.
        sets: Equal parts of the axis that are filled one by one.
        centred: Fill with the mean of what is kept of the set, otherwise with 0.
    """

    kept: Tensor
    dim: int
    sets: int
    centred: bool

    def __call__(self, value: Tensor) -> Tensor:
        """Return the value with its pruned entries filled."""
        kept = self.kept.to(value.device)
        shape = [1] * value.dim()
        shape[self.dim] = len(kept)
        mask = kept.view(shape)
        if not self.centred:
            return value * mask.to(value.dtype)
        split = value.unflatten(self.dim, (self.sets, -1))
        weights = mask.unflatten(self.dim, (self.sets, -1)).to(value.dtype)
        # A layer norm's mean runs along the neurons, a group norm's along their positions, too.
        along = [self.dim % value.dim() + 1]
        if self.dim % value.dim() != value.dim() - 1:
            along += list(range(along[0] + 1, split.dim()))
        count = weights.expand(split.shape).sum(along, keepdim=True)
        mean = (split * weights).sum(along, keepdim=True) / count.clamp(min=1)
        return torch.where(
            mask, value, mean.expand(split.shape).flatten(self.dim % value.dim(), self.dim % value.dim() + 1)
        )


class Run:
    """A batch on its way through the program; weights are looked up when they are used, and can change behind it.

    Args:
        program: The program.
        state: The weights.
        values: The inputs by placeholder.
    """

    def __init__(self, program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> None:
        self.program, self.state, self.inputs = program, state, inputs
        self.values: dict[fx.Node, Any] = {}
        self.position = 0
        self.fills: Mapping[str, Fill] = {}
        self._buffers: dict[str, Tensor] = {}

    def until(self, name: str) -> None:
        """Run up to an operation, which is not run."""
        stop = self.program.order[name]
        while self.position < stop:
            node = self.program.nodes[self.position]
            self.step(node)
            self.forget(node)
            self.position += 1

    def fork(self) -> Run:
        """A run that goes on from here and leaves this one where it is."""
        other = Run(self.program, self.state, self.inputs)
        overwrites = self.program.overwrites
        other.values = {
            node: value.clone() if overwrites and isinstance(value, Tensor) else value
            for node, value in self.values.items()
        }
        other.position, other.fills = self.position, self.fills
        other._buffers = {name: value.clone() for name, value in self._buffers.items()}
        return other

    def step(self, node: fx.Node) -> None:
        """Compute one operation."""
        if node.op in ("placeholder", "output"):
            return
        if node.op == "get_attr":
            self.values[node] = getattr(self.program.exported.graph_module, str(node.target))
            return
        assert callable(node.target)
        args: tuple[Any, ...] = fx.node.map_arg(node.args, self.value_of)
        kwargs = fx.node.map_arg(node.kwargs, self.value_of)
        if node.name in self.fills:
            args = (self.fills[node.name](args[0]), *args[1:])
        try:
            with torch.no_grad():
                self.values[node] = self._with_created_bias(node, node.target(*args, **kwargs))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            shapes = [tuple(value.shape) for value in self.inputs.values() if isinstance(value, Tensor)]
            shown = ", ".join(map(str, shapes))
            raise ValueError(
                f"calibration: the traced network cannot run a batch of shape {shown} ({first_line(error)}); give "
                "batches of one shape, and write the forward for any batch size"
            ) from error

    def _with_created_bias(self, node: fx.Node, value: Any) -> Any:
        """Add the bias that compensation has created for an operation that adds none of its own."""
        name, dim = self.program.created.get(node.name, ("", 0))
        if name not in self.state:
            return value
        shape = [1] * value.dim()
        shape[dim] = -1
        return value + self.state[name].view(shape)

    def returned(self, node: fx.Node) -> list[Tensor]:
        """The tensors that the network returns, at the program's last node."""
        number = len(self.program.exported.graph_signature.user_outputs)
        leaves = pytree.tree_leaves(fx.node.map_arg(node.args[0], self.value_of))
        return [leaf for leaf in leaves[len(leaves) - number :] if isinstance(leaf, Tensor)]

    def forget(self, node: fx.Node) -> None:
        """Let go of the values that nothing behind an operation needs."""
        for dead in self.program.last_uses.get(node, ()):
            self.values.pop(dead, None)

    def argument(self, node: fx.Node, name: str) -> Any:
        """The value of an operation's argument."""
        return self.value_of(next(each for each in node.all_input_nodes if each.name == name))

    def value_of(self, node: fx.Node) -> Any:
        """A value that is there by now: a weight, an input, or what an operation gave."""
        if node in self.values:
            return self.values[node]
        name = node.name
        if name in self.program.tensors:
            return self._tensor(self.program.tensors[name], name)
        if name in self.inputs:
            return self.inputs[name]
        return self.program.exported.constants[self.program.lifted[name]]

    def _tensor(self, name: str, placeholder: str) -> Tensor:
        """A weight; of a buffer that a run may overwrite a copy of its own."""
        if not self.program.overwrites or placeholder not in self.program.buffers:
            return self.state[name]
        if name not in self._buffers:
            self._buffers[name] = self.state[name].clone()
        return self._buffers[name]


# -- operations of a program, as rules see them --------------------------------------------------------------------

_TORCH = os.path.dirname(torch.__file__)
_ACTIVATIONS = {
    "leaky_relu", "hardswish", "hardsigmoid", "relu6", "log_sigmoid", "logsigmoid", "softsign", "tanhshrink", "silu",
    "mish", "rrelu",
}  # fmt: skip


def operation(node: fx.Node) -> str:
    """Name an operation as a person would: `aten.relu_.default` is `relu_`."""
    return _name_of(node.target)


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return str(getattr(target, "__name__", target))


def is_pointwise(target: object) -> bool:
    """Whether an operation of ATen works on every element for itself."""
    plain = _name_of(target).rstrip("_")
    overloads = [
        target,
        getattr(getattr(torch.ops.aten, plain, None), getattr(target, "_overloadname", "default"), None),
    ]
    return plain in _ACTIVATIONS or any(torch.Tag.pointwise in getattr(overload, "tags", ()) for overload in overloads)


def is_in_place(target: object) -> bool:
    """Whether an operation of ATen overwrites its first argument."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.arguments:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def owner_of(node: fx.Node) -> str:
    """The path of the module that an operation belongs to; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def source_line(node: fx.Node) -> str:
    """The line of the forward pass that an operation came from, with its place."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    return f"{lines[-1]} ({lines[-2]})" if len(lines) > 1 else operation(node)


def as_node(argument: Any) -> fx.Node:
    """Narrow an argument that can only be a value of the program."""
    assert isinstance(argument, fx.Node), argument
    return argument


def as_number(argument: Any) -> float:
    """Narrow an argument that can only be a number."""
    assert isinstance(argument, (int, float)), argument
    return argument


def shape_of(node: fx.Node) -> tuple[int | str, ...]:
    """The shape of a value; sizes that depend on the batch are given by name."""
    value = node.meta.get("val")
    return (
        tuple(size if isinstance(size, int) else str(size) for size in value.shape) if isinstance(value, Tensor) else ()
    )


def ndim_of(node: fx.Node) -> int:
    """Number of dimensions of a value; 0 for what is no tensor."""
    return len(shape_of(node))


def sizes_of(node: fx.Node) -> list[Any]:
    """The sizes of a value; those that depend on the batch as expressions, which can be multiplied and compared."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return []
    return [size if isinstance(size, int) else size.node.expr for size in value.shape]


def user_line(node: fx.Node) -> str:
    """The innermost line of someone's own code that an operation came from, with its place; empty if there is none."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for place, line in reversed(list(itertools.pairwise(lines))):
        if place.startswith("File ") and _TORCH not in place and not line.startswith("File "):
            file, number = place.split(", line ")[:2]
            return f"`{line}` ({file.removeprefix('File ').strip(chr(34))}:{number.split(',')[0]})"
    return ""
