"""Read a network into its graph of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A value *carries neurons* when one of its dimensions runs along the neurons of a linear
layer. The rules below say where the neurons are after each kind of operation; two sets of neurons that meet elementwise become one
group; an operation without a rule keeps the neurons that it reads whole, and its name becomes the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mlprank.graph import Call, Flow, Graph, Group, Layer, Scale
from mlprank.program import Program

OUTPUT = "its neurons are outputs of the network"
_PASSING = {
    "dropout",
    "dropout_",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "detach",
    "alias",
    "contiguous",
}
_PASSING |= {"clone", "to", "_to_copy", "lift_fresh", "lift_fresh_copy", "expand", "identity"}
_RESHAPING = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "squeeze_"}
_REDUCING = {"mean", "sum", "amax", "amin", "select", "slice", "narrow"}
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}
_ACTIVATIONS = {
    "hardswish",
    "hardsigmoid",
    "relu6",
    "log_sigmoid",
    "logsigmoid",
    "softsign",
    "tanhshrink",
    "silu",
    "mish",
    "rrelu",
}


@dataclass
class _Neurons:
    """Where a value carries neurons: the index of their space, and the dimension along which they lie."""

    space: int
    dim: int


@dataclass
class _Space:
    """Neurons that must stay aligned; merged spaces point at their parent."""

    width: int
    parent: int
    reasons: list[str] = field(default_factory=list)


@dataclass
class _Reader:
    """What is known of the program while it is read."""

    model: nn.Module
    exported: ExportedProgram
    tensors: dict[str, str]
    spaces: list[_Space] = field(default_factory=list)
    values: dict[fx.Node, _Neurons] = field(default_factory=dict)
    flow: dict[fx.Node, Flow] = field(default_factory=dict)
    activations: set[fx.Node] = field(default_factory=set)
    slots: dict[tuple[str, int], int] = field(default_factory=dict)
    untracked: set[tuple[str, int]] = field(default_factory=set)
    claimed: dict[str, set[fx.Node]] = field(default_factory=lambda: defaultdict(set))
    linears: dict[str, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, str] = field(default_factory=dict)
    reshapes: list[str] = field(default_factory=list)
    varying: set[fx.Node] = field(default_factory=set)

    # -- spaces ---------------------------------------------------------------------------------------------------

    def root(self, space: int) -> int:
        while self.spaces[space].parent != space:
            space = self.spaces[space].parent
        return space

    def merge(self, one: int, other: int) -> None:
        one, other = sorted((self.root(one), self.root(other)))
        if one != other:
            self.spaces[other].parent = one
            self.spaces[one].reasons += self.spaces[other].reasons

    def keep_whole(self, node: fx.Node, reason: str) -> None:
        """Say why the neurons of a value cannot be removed."""
        if node in self.values:
            self.spaces[self.root(self.values[node].space)].reasons.append(reason)

    def claim(self, placeholder: fx.Node, dim: int, space: int | None, user: fx.Node) -> None:
        """Note that a dimension of a tensor runs along the neurons of a space (or along none that is followed)."""
        name = self.tensors[placeholder.name]
        self.claimed[name].add(user)
        if space is None:
            self.untracked.add((name, dim))
        elif (name, dim) in self.slots:
            self.merge(self.slots[name, dim], space)
        else:
            self.slots[name, dim] = space

    def is_tensor(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and node.name in self.tensors

    # -- one operation --------------------------------------------------------------------------------------------

    def read(self, node: fx.Node) -> None:
        """Follow the neurons through one operation."""
        if any(argument in self.varying for argument in node.all_input_nodes):
            self.varying.add(node)
        name = _operation(node)
        inputs = [argument for argument in node.all_input_nodes if not self.is_tensor(argument)]
        tracked = [argument for argument in inputs if argument in self.values]
        if name == "linear":
            self.read_linear(node)
        elif name.startswith("conv") and self.is_tensor(node.args[1]):
            self.others[_owner(node) or self.tensors[_node(node.args[1]).name]] = "convolution channels are not pruned"
            self.refuse(node, tracked)
        elif not tracked:
            return
        elif name == "batch_norm":
            self.read_batch_norm(node)
        elif name == "layer_norm":
            self.read_layer_norm(node, tracked)
        elif name == "prelu":
            self.read_prelu(node)
        elif name.rstrip("_") in _PASSING:
            self.move(node, tracked[0], self.values[tracked[0]].dim)
        elif name in _RESHAPING:
            self.read_reshape(node, tracked[0])
        elif name in {"permute", "transpose", "t", "swapaxes", "numpy_T"}:
            self.read_permute(node, tracked[0])
        elif name in _REDUCING:
            self.read_reduction(node, tracked[0])
        elif _is_pointwise(node, name):
            self.read_pointwise(node, name.rstrip("_"), tracked)
        else:
            self.refuse(node, tracked)

    def refuse(self, node: fx.Node, tracked: Iterable[fx.Node], why: str = "") -> None:
        """Keep whole what an operation reads that cannot be narrowed."""
        place = _owner(node)
        reason = why or f"they feed `{_operation(node)}`" + (f' in "{place}"' if place else "")
        for value in tracked:
            self.keep_whole(value, reason)

    def move(self, node: fx.Node, source: fx.Node, dim: int) -> None:
        """The neurons of `source` lie along `dim` of this value, unchanged."""
        self.values[node] = _Neurons(self.values[source].space, dim)
        self.flow[node] = Flow((source.name,))

    def read_linear(self, node: fx.Node) -> None:
        source, weight = _node(node.args[0]), node.args[1]
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if not self.is_tensor(weight) or not (bias is None or self.is_tensor(bias)):
            self.others[_owner(node) or node.name] = (
                "its weight is computed in the forward pass: remove masks or parametrisations first"
            )
            self.refuse(node, [value for value in node.all_input_nodes if value in self.values])
            return
        weight = _node(weight)
        shape = weight.meta["val"].shape
        read = self.values.get(source)
        if read is not None and read.dim != _ndim(source) - 1:
            self.refuse(node, [source], "a linear layer reads them across another dimension")
            read = None
        made = len(self.spaces)
        self.spaces.append(_Space(width=int(shape[0]), parent=made))
        self.claim(weight, 0, made, node)
        self.claim(weight, 1, None if read is None else read.space, node)
        if bias is not None:
            self.claim(_node(bias), 0, made, node)
        self.values[node] = _Neurons(made, _ndim(node) - 1)
        self.linears[self.tensors[weight.name]].append(node)

    def read_batch_norm(self, node: fx.Node) -> None:
        source, *tensors = (_node(argument) if argument is not None else None for argument in node.args[:5])
        assert source is not None
        neurons = self.values[source]
        if neurons.dim != 1 or tensors[3] is None or node.args[5]:
            self.refuse(
                node, [source], "a batch norm normalises them across another dimension or by the batch's own statistics"
            )
            return
        for tensor in tensors:
            if tensor is not None:
                self.claim(tensor, 0, neurons.space, node)
        self.values[node] = _Neurons(neurons.space, 1)
        weight = self.tensors[tensors[0].name] if tensors[0] is not None else None
        scale = Scale(weight, self.tensors[tensors[3].name], float(_number(node.args[7])))
        self.flow[node] = Flow((source.name,), scale)

    def read_layer_norm(self, node: fx.Node, tracked: list[fx.Node]) -> None:
        self.refuse(node, tracked)
        source, weight = tracked[0], node.args[2] if len(node.args) > 2 else None
        gain = self.tensors[_node(weight).name] if self.is_tensor(weight) and _ndim(_node(weight)) == 1 else None
        self.move(node, source, self.values[source].dim)
        self.flow[node] = Flow((source.name,), Scale(gain))

    def read_prelu(self, node: fx.Node) -> None:
        source, weight = _node(node.args[0]), _node(node.args[1])
        per_neuron = weight.meta["val"].numel() > 1
        if not self.is_tensor(weight) or (per_neuron and self.values[source].dim != 1):
            self.refuse(node, [source])
            return
        if per_neuron:
            self.claim(weight, 0, self.values[source].space, node)
        self.move(node, source, self.values[source].dim)
        self.activations.add(node)

    def read_reshape(self, node: fx.Node, source: fx.Node) -> None:
        dim = _dim_after_reshape(_shape(source), _shape(node), self.values[source].dim)
        if dim is None:
            self.refuse(node, [source], f"`{_operation(node)}` mixes them with another dimension")
            return
        if _operation(node) in {"view", "reshape", "_unsafe_view", "unflatten"}:
            self.reshapes.append(_source_line(node))
        self.move(node, source, dim)

    def read_permute(self, node: fx.Node, source: fx.Node) -> None:
        ndim, dim = _ndim(source), self.values[source].dim
        order = list(range(ndim))
        if _operation(node) == "permute":
            order = [int(_number(index)) % ndim for index in node.args[1]]  # type: ignore[union-attr]
        else:
            one, other = (int(_number(index)) % ndim for index in (node.args[1:3] if len(node.args) > 2 else (0, -1)))
            order[one], order[other] = other, one
        self.move(node, source, order.index(dim))

    def read_reduction(self, node: fx.Node, source: fx.Node) -> None:
        ndim, dim = _ndim(source), self.values[source].dim
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        gone = {
            int(_number(index)) % ndim
            for index in (dims if isinstance(dims, (list, tuple)) else [dims])
            if index is not None
        }
        if not gone or dim in gone or any(argument in self.values for argument in node.all_input_nodes[1:]):
            self.refuse(node, [source])
            return
        lost = _ndim(source) - _ndim(node)
        self.move(node, source, dim - sum(index < dim for index in gone) if lost else dim)

    def read_pointwise(self, node: fx.Node, name: str, tracked: list[fx.Node]) -> None:
        """Elementwise operations: neurons that meet here stay together; a tensor along them is narrowed with them."""
        from_right = {_ndim(value) - self.values[value].dim for value in tracked}
        widths = {self.spaces[self.root(self.values[value].space)].width for value in tracked}
        if len(from_right) > 1 or len(widths) > 1:
            self.refuse(node, tracked, f"`{name}` combines them across dimensions")
            return
        position, width = from_right.pop(), widths.pop()
        gain = None
        for other in node.all_input_nodes:
            if other in self.values:
                continue
            shape = _shape(other)
            size = (
                math.prod(size for size in shape if isinstance(size, int))
                if all(isinstance(s, int) for s in shape)
                else None
            )
            if size == 1 and other not in self.varying:
                continue
            if (
                self.is_tensor(other)
                and size == width
                and len(shape) >= position
                and shape[len(shape) - position] == width
            ):
                self.claim(other, len(shape) - position, self.values[tracked[0]].space, node)
                gain = self.tensors[other.name] if name == "mul" and len(shape) == 1 else None
            else:
                self.refuse(node, tracked, f"`{name}` combines them with a value that is no neuron's own")
        for value in tracked[1:]:
            self.merge(self.values[tracked[0]].space, self.values[value].space)
        self.values[node] = _Neurons(self.values[tracked[0]].space, _ndim(node) - position)
        self.flow[node] = Flow(tuple(value.name for value in tracked), Scale(gain) if gain else None)
        if name not in _ARITHMETIC and len(tracked) == 1:
            self.activations.add(node)

    # -- the graph ------------------------------------------------------------------------------------------------

    def finish(self) -> Graph:
        """Turn what was read into frozen records."""
        self.check_claims()
        order = {node: index for index, node in enumerate(self.exported.graph.nodes)}
        names = sorted(self.linears, key=lambda name: order[self.linears[name][0]])
        roots = list(dict.fromkeys(self.root(self.slots[name, 0]) for name in names))
        layers = tuple(self.layer(name, roots) for name in names)
        groups = tuple(self.group(index, root, layers) for index, root in enumerate(roots))
        reads = {node.name: _node(node.args[0]).name for nodes in self.linears.values() for node in nodes}
        return Graph(
            layers=layers,
            groups=groups,
            flow={node.name: flow for node, flow in self.flow.items()},
            program=Program(self.exported, self.tensors, reads),
            others=self.others,
            reshapes=tuple(dict.fromkeys(self.reshapes)),
        )

    def check_claims(self) -> None:
        """Keep whole the neurons along a tensor that something else reads, too."""
        for node in self.exported.graph.nodes:
            if not self.is_tensor(node):
                continue
            name = self.tensors[node.name]
            spaces = [(slot, space) for slot, space in self.slots.items() if slot[0] == name]
            strangers = [user for user in node.users if user not in self.claimed[name]]
            for slot, space in spaces:
                if strangers:
                    self.spaces[self.root(space)].reasons.append(f'`{_operation(strangers[0])}` reads "{name}", too')
                elif slot in self.untracked:
                    self.spaces[self.root(space)].reasons.append(f'"{name}" also reads values that are no neurons')

    def layer(self, weight: str, roots: list[int]) -> Layer:
        nodes = self.linears[weight]
        shape = nodes[0].args[1].meta["val"].shape  # type: ignore[union-attr]
        source = self.slots.get((weight, 1))
        return Layer(
            name=weight.removesuffix(".weight"),
            weight=weight,
            out_features=int(shape[0]),
            in_features=int(shape[1]),
            calls=tuple(self.call(node) for node in nodes),
            group=roots.index(self.root(self.slots[weight, 0])),
            source_group=None if source is None else roots.index(self.root(source)),
        )

    def call(self, node: fx.Node) -> Call:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        owner = _owner(node)
        scales, emitted = self.emission(node)
        return Call(
            node=node.name,
            source=_node(node.args[0]).name,
            emitted=emitted,
            scales=scales,
            bias=None if bias is None else self.tensors[_node(bias).name],
            owner=owner if owner and isinstance(self.model.get_submodule(owner), nn.Linear) else None,
        )

    def emission(self, node: fx.Node) -> tuple[tuple[Scale, ...], str]:
        """Walk from a linear operation to the activation; return the factors on the way and the value sent on."""
        scales: list[Scale] = []
        while len(node.users) == 1:
            (user,) = node.users
            flow = self.flow.get(user)
            if flow is None or len(flow.inputs) != 1 or _operation(user) == "layer_norm" or not self.last_dim(user):
                break
            if flow.scale is not None:
                scales.append(flow.scale)
            node = user
            if user in self.activations:
                break
        return tuple(scales), node.name

    def last_dim(self, node: fx.Node) -> bool:
        return self.values[node].dim == _ndim(node) - 1

    def group(self, index: int, root: int, layers: tuple[Layer, ...]) -> Group:
        readers = tuple(layer for layer in layers if layer.source_group == index)
        slots = [slot for slot, space in self.slots.items() if self.root(space) == root]
        slots += [(bias, 0) for layer in layers if layer.group == index for bias in layer.biases]
        reasons = list(dict.fromkeys(self.spaces[root].reasons))
        firm = [reason for reason in reasons if reason != OUTPUT]
        return Group(
            layers=tuple(layer.name for layer in layers if layer.group == index),
            width=self.spaces[root].width,
            slots=tuple(dict.fromkeys(slots)),
            readers=tuple(layer.name for layer in readers),
            whole=firm[0] if firm else (OUTPUT if reasons else None),
            output=OUTPUT in reasons,
        )


def read_graph(model: nn.Module, exported: ExportedProgram) -> Graph:
    """Read a traced network into its graph of neurons.

    Args:
        model: The network, to look up which module owns a tensor.
        exported: The same network as traced by `torch.export` in evaluation mode.

    Returns:
        The graph; it holds no reference to the model.
    """
    signature = exported.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    reader = _Reader(model=model, exported=exported, tensors=dict(tensors))
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in signature.user_inputs:
            reader.varying.add(node)
        elif node.op == "call_function":
            reader.read(node)
        elif node.op == "output":
            for value in node.all_input_nodes:
                reader.keep_whole(value, OUTPUT)
    return reader.finish()


def _operation(node: fx.Node) -> str:
    """Name an operation as a person would: `aten.relu_.default` is `relu_`."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return str(getattr(target, "__name__", target))


def _is_pointwise(node: fx.Node, name: str) -> bool:
    target: Any = node.target
    plain = name.rstrip("_")
    overloads = [
        target,
        getattr(getattr(torch.ops.aten, plain, None), getattr(target, "_overloadname", "default"), None),
    ]
    return plain in _ACTIVATIONS or any(torch.Tag.pointwise in getattr(overload, "tags", ()) for overload in overloads)


def _owner(node: fx.Node) -> str:
    """The path of the module that an operation belongs to; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _source_line(node: fx.Node) -> str:
    """The line of the forward pass that an operation came from, with its place."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    return f"{lines[-1]} ({lines[-2]})" if len(lines) > 1 else _operation(node)


def _node(argument: Any) -> fx.Node:
    assert isinstance(argument, fx.Node), argument
    return argument


def _number(argument: Any) -> float:
    assert isinstance(argument, (int, float)), argument
    return argument


def _shape(node: fx.Node) -> tuple[int | str, ...]:
    """The shape of a value; sizes that depend on the batch are given by name."""
    value = node.meta.get("val")
    return (
        tuple(size if isinstance(size, int) else str(size) for size in value.shape) if isinstance(value, Tensor) else ()
    )


def _ndim(node: fx.Node) -> int:
    return len(_shape(node))


def _dim_after_reshape(before: tuple[int | str, ...], after: tuple[int | str, ...], dim: int) -> int | None:
    """Find the dimension that still runs along the neurons after a reshape, or None if they were mixed with another."""

    def size(shape: tuple[int | str, ...]) -> tuple[int, tuple[str, ...]]:
        return math.prod(s for s in shape if isinstance(s, int)), tuple(s for s in shape if isinstance(s, str))

    for index, width in enumerate(after):
        if width == before[dim] and size(after[index + 1 :]) == size(before[dim + 1 :]):
            return index
    return None
