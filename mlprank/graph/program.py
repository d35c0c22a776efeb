"""A traced network as a function of its weights: the same program runs dense, masked or half pruned."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from mlprank.utils.errors import first_line


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

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with other tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def __getitem__(self, index: slice | list[int] | Tensor) -> Inputs:
        """Some of the samples: of tensors that share the first tensor's number of samples."""
        size = len(self)
        return self.mapped(lambda leaf: leaf[index] if leaf.dim() and len(leaf) == size else leaf)

    def outputs(self, model: Callable[..., Any]) -> list[Tensor]:
        """Call a network, which may overwrite its inputs, and return every tensor that it gives."""
        own = self.mapped(torch.clone)
        return [leaf for leaf in pytree.tree_leaves(model(*own.args, **own.kwargs)) if isinstance(leaf, Tensor)]

    def __str__(self) -> str:
        keywords = [f"{key}={_described(arg)}" for key, arg in self.kwargs.items()]
        return f"({', '.join([*map(_described, self.args), *keywords])})"


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
    """A traced network: what `torch.export` gave."""

    exported: ExportedProgram
    tensors: Mapping[str, str]  # the state dict's name for every placeholder that is a parameter or a buffer
    # For operations that add no bias: the name of the one that can be created, and the dimension of the operation's
    # value along it. Weights to run with that hold it are run with it.
    created: Mapping[str, tuple[str, int]]

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The operations in order, inputs first."""
        return list(self.exported.graph_module.graph.nodes)

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The place of every operation."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def in_spec(self) -> Any:
        """The structure of a call; torch makes a new class of named tuples whenever it is asked."""
        return self.exported.call_spec.in_spec

    @cached_property
    def last_uses(self) -> Mapping[str, list[str]]:
        """For every operation the values that nothing behind it needs."""
        last = {argument.name: node.name for node in self.nodes for argument in node.all_input_nodes}
        dead: dict[str, list[str]] = {}
        for argument, node in last.items():
            dead.setdefault(node, []).append(argument)
        return dead

    def observe(
        self,
        state: Mapping[str, Tensor],
        inputs: Inputs,
        *,
        read: Mapping[str, tuple[str, int]],
        made: Collection[str] = (),
        fills: Mapping[str, Fill] | None = None,
    ) -> Iterator[tuple[str, Tensor, bool]]:
        """Run the program on a batch as far as needed and yield values on the way, which nobody may keep or change.

        `read` gives for operations the value that each is watched reading, and a dimension: it comes with the
        operation's name at the moment of reading, before another one overwrites it in place. Values that are `made`
        come with their names, and True.
        """
        end = 1 + max((self.order[name] for name in (*read, *made) if name in self.order), default=-1)
        run = Run(self, state, inputs, fills)
        for node in self.nodes[:end]:
            if node.name in read:
                yield node.name, run.value_of(read[node.name][0]), False
            run.step()
            if node.name in made:
                yield node.name, run.value_of(node.name), True

    def outputs(self, state: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
        """Run the program to its end and return every tensor that it returns."""
        run, names = Run(self, state, inputs), self.exported.graph_signature.user_outputs
        run.until(self.nodes[-1].name)
        values = [run.value_of(str(name)) for name in names if name in self.order]
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Fill:
    """What a normalisation reads in place of pruned neurons."""

    kept: Tensor  # which entries are kept, shape (n,)
    dim: int  # the dimension along them
    sets: int  # equal parts of the axis that are filled one by one
    centred: bool  # fill with the mean of what is kept of the set, otherwise with 0

    def __call__(self, value: Tensor) -> Tensor:
        """Return the value with its pruned entries filled."""
        dim, last = self.dim % value.dim(), value.dim() - 1
        mask = self.kept.to(value.device).view(-1, *[1] * (last - dim))
        if not self.centred:
            return value * mask.to(value.dtype)
        split = value.unflatten(dim, (self.sets, -1))
        weights = mask.to(value.dtype).unflatten(0, (self.sets, -1)).expand(split.shape)
        # A layer norm's mean runs along the neurons, a group norm's along their positions, too.
        along = list(range(dim + 1, split.dim()))
        mean = (split * weights).sum(along, keepdim=True) / weights.sum(along, keepdim=True).clamp(min=1)
        return torch.where(mask, value, mean.expand(split.shape).flatten(dim, dim + 1))


class Run:
    """A batch on its way through the program; weights are looked up when they are used, and can change behind it.

    Inputs and buffers are copied. A ValueError says that the program takes other arguments.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, Tensor],
        inputs: Inputs,
        fills: Mapping[str, Fill] | None = None,
    ) -> None:
        self.program, self.state, self.inputs, self.fills, self.position = program, state, inputs, fills or {}, 0
        held, signature = program.exported.constants, program.exported.graph_signature
        constants = {**signature.inputs_to_lifted_tensor_constants, **signature.inputs_to_lifted_custom_objs}
        wanted = [each.arg for each in signature.input_specs if each.kind == InputKind.USER_INPUT]
        keywords = [key for key in program.in_spec.children()[1].context or [] if key in inputs.kwargs]
        leaves, spec = pytree.tree_flatten((inputs.args, {key: inputs.kwargs[key] for key in keywords}))
        if len(leaves) != len(wanted) or spec != program.in_spec:
            raise ValueError(
                f"calibration: a batch gives {inputs}, another structure than the first one; give calls of one "
                "structure"
            )
        copies = pytree.tree_map_only(Tensor, torch.clone, leaves)
        self.values: dict[str, Any] = {name: held[constant] for name, constant in constants.items()}
        self.values |= {name: state[buffer].clone() for name, buffer in signature.inputs_to_buffers.items()}
        self.values |= {argument.name: leaf for argument, leaf in zip(wanted, copies, strict=True)}

    def until(self, name: str) -> None:
        """Run up to an operation, which is not run."""
        while self.position < self.program.order[name]:
            self.step()

    def fork(self) -> Run:
        """A run that goes on from here and leaves this one where it is."""
        other = copy.copy(self)
        other.values = pytree.tree_map_only(Tensor, torch.clone, self.values)
        return other

    def step(self) -> None:
        """Compute the next operation, and let go of the values that nothing behind it needs."""
        node = self.program.nodes[self.position]
        self.position += 1
        if node.op == "get_attr":
            self.values[node.name] = getattr(self.program.exported.graph_module, str(node.target))
        elif callable(node.target):
            given: Any = fx.node.map_arg((node.args, node.kwargs), lambda each: self.value_of(each.name))
            args, kwargs = given
            if node.name in self.fills:
                args = (self.fills[node.name](args[0]), *args[1:])
            try:
                with torch.no_grad():
                    value = node.target(*args, **kwargs)
                    bias, dim = self.program.created.get(node.name, ("", 0))
                    if bias in self.state:  # compensation has created it
                        value = value + self.state[bias].view(-1, *[1] * (value.dim() - 1 - dim))
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError) as error:
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.inputs.tensors)
                raise ValueError(
                    f"calibration: the traced network cannot run a batch of shape {shapes} ({first_line(error)}); give "
                    "batches of one shape, and write the forward for any batch size"
                ) from error
            self.values[node.name] = value
        for dead in self.program.last_uses.get(node.name, ()):
            self.values.pop(dead, None)

    def value_of(self, name: str) -> Any:
        """A value that is there by now: a weight, an input, or what an operation gave."""
        return self.values[name] if name in self.values else self.state[self.program.tensors[name]]


# -- operations of a program, as rules see them --------------------------------------------------------------------

_TORCH, _STDLIB = (os.path.dirname(module.__file__ or "") for module in (torch, os))
_ACTIVATIONS = {
    "leaky_relu", "hardswish", "hardsigmoid", "relu6", "log_sigmoid", "logsigmoid", "softsign", "tanhshrink", "silu",
    "mish", "rrelu",
}  # fmt: skip


def operation(node: fx.Node) -> str:
    """Name an operation as a person would: `aten.relu_.default` is `relu_`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return str(getattr(target, "__name__", target))


def is_pointwise(node: fx.Node) -> bool:
    """Whether an operation of ATen works on every element for itself; in place likewise."""
    name = operation(node).rstrip("_")
    plain = getattr(getattr(torch.ops.aten, name, None), getattr(node.target, "_overloadname", "default"), None)
    tags = (*getattr(node.target, "tags", ()), *getattr(plain, "tags", ()))
    return name in _ACTIVATIONS or torch.Tag.pointwise in tags


def owner_of(node: fx.Node) -> str:
    """The path of the module that an operation belongs to; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def as_node(argument: Any) -> fx.Node:
    """Narrow an argument that can only be a value of the program."""
    assert isinstance(argument, fx.Node), argument
    return argument


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation of ATen by name, defaults included."""
    schema = node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()
    defaults = {each.name: each.default_value if each.has_default_value() else None for each in schema}
    return defaults | {each.name: given for each, given in zip(schema, node.args, strict=False)} | node.kwargs


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The shape of a value; sizes that depend on the batch as expressions, which can be multiplied and compared."""
    value = node.meta.get("val")
    shape = value.shape if isinstance(value, Tensor) else ()
    return tuple(size if isinstance(size, int) else size.node.expr for size in shape)


def ndim_of(node: fx.Node) -> int:
    """Number of dimensions of a value; 0 for what is no tensor."""
    return len(shape_of(node))


def user_line(stack: str | None) -> str:
    """The innermost line of someone's own code in a stack as Python writes it, with its place; empty without one."""
    for file, number, line in reversed(re.findall(r'File "(.+)", line (\d+).*\n +(?!File ")(.+)', stack or "")):
        if not file.startswith(_TORCH) and ("site-packages" in file or not file.startswith(_STDLIB)):
            return f"`{line}` ({file}:{number})"
    return ""
