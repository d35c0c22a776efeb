"""Read a network into its graph of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A value *carries neurons* when one of its dimensions runs along the neurons of a linear
layer. The rules below say where the neurons are after each kind of operation; two sets of neurons that meet elementwise become one
group; an operation without a rule keeps the neurons that it reads whole, and its name becomes the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.export import ExportedProgram

from mlprank.graph.building import bias_of, build_graph
from mlprank.graph.neurons import OUTPUT, Neurons, Notes
from mlprank.graph.operations import (
    as_node,
    as_number,
    dim_after_reshape,
    is_pointwise,
    ndim_of,
    operation,
    owner_of,
    shape_of,
    source_line,
)
from mlprank.graph.records import Flow, Graph, Scale

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
_PASSING |= {"clone", "to", "_to_copy", "lift_fresh", "lift_fresh_copy", "identity"}
_RESHAPING = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "squeeze_"}
_REDUCING = {"mean", "sum", "amax", "amin", "select", "slice", "narrow"}
_PERMUTING = {"permute", "transpose", "t", "swapaxes", "numpy_T"}
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}


@dataclass
class _Rules:
    """Where the neurons are after an operation: one method for every kind of operation."""

    notes: Notes

    def read(self, node: fx.Node) -> None:
        """Follow the neurons through one operation."""
        if any(argument in self.notes.varying for argument in node.all_input_nodes):
            self.notes.varying.add(node)
        name = operation(node)
        inputs = [argument for argument in node.all_input_nodes if not self.notes.is_tensor(argument)]
        tracked = [argument for argument in inputs if argument in self.notes.values]
        if name == "linear":
            self.read_linear(node)
        elif name.startswith("_assert"):
            return  # a check that the trace added, of a dtype for example
        elif not tracked:
            self.note_other(node, name)
        elif name == "batch_norm":
            self.read_batch_norm(node, tracked)
        elif name == "layer_norm":
            self.read_layer_norm(node, tracked)
        elif name == "prelu":
            self.read_prelu(node)
        elif "dropout" in name and bool(node.args[2]):
            self.notes.refuse(node, tracked, f"`{name}` drops them in evaluation mode, too")
        elif name.rstrip("_") in _PASSING:
            self.notes.move(node, tracked[0], self.notes.values[tracked[0]].dim)
        elif name in _RESHAPING:
            self.read_reshape(node, tracked[0])
        elif name == "expand":
            self.read_expand(node, tracked[0])
        elif name in _PERMUTING:
            self.read_permute(node, tracked[0])
        elif name in _REDUCING:
            self.read_reduction(node, tracked[0])
        elif is_pointwise(node.target):
            self.read_pointwise(node, name.rstrip("_"), tracked)
        else:
            self.note_other(node, name)
            self.notes.refuse(node, tracked)

    def note_other(self, node: fx.Node, name: str) -> None:
        """Say of weights that no rule is for that they stay whole."""
        if is_pointwise(node.target) or name in _PASSING | _RESHAPING | _PERMUTING | _REDUCING | {"expand"}:
            return
        for argument in node.all_input_nodes:
            if self.notes.is_tensor(argument) and argument.meta["val"].is_floating_point() and ndim_of(argument) > 1:
                what = "convolution channels are" if name.startswith("conv") else f"weights of `{name}` are"
                self.notes.others[owner_of(node) or self.notes.tensors[argument.name]] = f"{what} not pruned"

    def read_linear(self, node: fx.Node) -> None:
        source, weight = as_node(node.args[0]), node.args[1]
        bias = bias_of(node)
        if not self.notes.is_tensor(weight) or not (bias is None or self.notes.is_tensor(bias)):
            self.notes.others[owner_of(node) or node.name] = (
                "its weight is no parameter but computed in the forward pass: remove masks and parametrisations first"
            )
            tracked = [value for value in node.all_input_nodes if value in self.notes.values]
            self.notes.refuse(node, tracked, "they feed a linear layer whose weight is computed in the forward pass")
            return
        weight = as_node(weight)
        shape = weight.meta["val"].shape
        read = self.notes.values.get(source)
        if read is not None and read.dim != ndim_of(source) - 1:
            self.notes.refuse(node, [source], "a linear layer reads them across another dimension")
            read = None
        made = self.notes.new_space(int(shape[0]))
        self.notes.claim(weight, 0, made, node)
        self.notes.claim(weight, 1, None if read is None else read.space, node)
        if bias is not None:
            self.notes.claim(bias, 0, made, node)
        self.notes.values[node] = Neurons(made, ndim_of(node) - 1)
        self.notes.linears[self.notes.tensors[weight.name]].append(node)

    def read_batch_norm(self, node: fx.Node, tracked: list[fx.Node]) -> None:
        source, weight, bias, mean, variance = node.args[:5]
        source, tensors = as_node(source), [tensor for tensor in (weight, bias, mean, variance) if tensor is not None]
        neurons = self.notes.values.get(source)
        by_batch = mean is None or variance is None or bool(node.args[5])
        if (
            neurons is None
            or neurons.dim != 1
            or by_batch
            or not all(self.notes.is_tensor(tensor) for tensor in tensors)
        ):
            why = "a batch norm normalises them across another dimension or by the batch's own statistics"
            self.notes.refuse(node, tracked, why)
            return
        for tensor in tensors:
            self.notes.claim(as_node(tensor), 0, neurons.space, node)
        self.notes.values[node] = Neurons(neurons.space, 1)
        gain = None if weight is None else self.notes.tensors[as_node(weight).name]
        scale = Scale(gain, self.notes.tensors[as_node(variance).name], float(as_number(node.args[7])))
        self.notes.flow[node] = Flow((source.name,), scale)

    def read_layer_norm(self, node: fx.Node, tracked: list[fx.Node]) -> None:
        self.notes.refuse(node, tracked)
        source, weight = tracked[0], node.args[2] if len(node.args) > 2 else None
        along = self.notes.values[source].dim == ndim_of(source) - 1
        gain = self.notes.tensors[as_node(weight).name] if self.notes.is_tensor(weight) and along else None
        self.notes.move(node, source, self.notes.values[source].dim)
        if gain is not None and ndim_of(as_node(weight)) == 1:
            self.notes.flow[node] = Flow((source.name,), Scale(gain))

    def read_prelu(self, node: fx.Node) -> None:
        source, weight = as_node(node.args[0]), as_node(node.args[1])
        per_neuron = weight.meta["val"].numel() > 1
        if not self.notes.is_tensor(weight) or (per_neuron and self.notes.values[source].dim != 1):
            self.notes.refuse(node, [source])
            return
        if per_neuron:
            self.notes.claim(weight, 0, self.notes.values[source].space, node)
        self.notes.move(node, source, self.notes.values[source].dim)
        self.notes.activations.add(node)

    def read_reshape(self, node: fx.Node, source: fx.Node) -> None:
        dim = dim_after_reshape(shape_of(source), shape_of(node), self.notes.values[source].dim)
        if dim is None:
            self.notes.refuse(node, [source], f"`{operation(node)}` mixes them with another dimension")
            return
        if operation(node) in {"view", "reshape", "_unsafe_view", "unflatten"}:
            self.notes.reshapes.append(source_line(node))
        self.notes.move(node, source, dim)

    def read_expand(self, node: fx.Node, source: fx.Node) -> None:
        dim = self.notes.values[source].dim + ndim_of(node) - ndim_of(source)
        if shape_of(node)[dim] != self.notes.width(source):
            self.notes.refuse(node, [source], "`expand` repeats them")
        else:
            self.notes.move(node, source, dim)

    def read_permute(self, node: fx.Node, source: fx.Node) -> None:
        ndim, dim = ndim_of(source), self.notes.values[source].dim
        order = list(range(ndim))
        if operation(node) == "permute":
            order = [int(as_number(index)) % ndim for index in node.args[1]]  # type: ignore[union-attr]
        else:
            one, other = (int(as_number(index)) % ndim for index in (node.args[1:3] if len(node.args) > 2 else (0, -1)))
            order[one], order[other] = other, one
        self.notes.move(node, source, order.index(dim))

    def read_reduction(self, node: fx.Node, source: fx.Node) -> None:
        ndim, dim = ndim_of(source), self.notes.values[source].dim
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        gone = {
            int(as_number(index)) % ndim
            for index in (dims if isinstance(dims, (list, tuple)) else [dims])
            if index is not None
        }
        if not gone or dim in gone or any(argument in self.notes.values for argument in node.all_input_nodes[1:]):
            self.notes.refuse(node, [source])
            return
        lost = ndim_of(source) - ndim_of(node)
        self.notes.move(node, source, dim - sum(index < dim for index in gone) if lost else dim)

    def read_pointwise(self, node: fx.Node, name: str, tracked: list[fx.Node]) -> None:
        """Elementwise operations: neurons that meet here stay together; a tensor along them is narrowed with them."""
        from_right = {ndim_of(value) - self.notes.values[value].dim for value in tracked}
        widths = {self.notes.width(value) for value in tracked}
        if len(from_right) > 1 or len(widths) > 1:
            self.notes.refuse(node, tracked, f"`{name}` combines them across dimensions")
            return
        position, width = from_right.pop(), widths.pop()
        gain = None
        for other in node.all_input_nodes:
            if other in self.notes.values:
                continue
            shape = shape_of(other)
            if all(size == 1 for size in shape) and other not in self.notes.varying:
                continue
            own = tuple(width if index == len(shape) - position else 1 for index in range(len(shape)))
            if self.notes.is_tensor(other) and shape == own and width in own:
                self.notes.claim(other, len(shape) - position, self.notes.values[tracked[0]].space, node)
                gain = self.notes.tensors[other.name] if name == "mul" and len(shape) == 1 else None
            else:
                self.notes.refuse(node, tracked, f"`{name}` combines them with a value that is no neuron's own")
        for value in tracked[1:]:
            self.notes.merge(self.notes.values[tracked[0]].space, self.notes.values[value].space)
        self.notes.values[node] = Neurons(self.notes.values[tracked[0]].space, ndim_of(node) - position)
        self.notes.flow[node] = Flow(tuple(value.name for value in tracked), Scale(gain) if gain else None)
        if name not in _ARITHMETIC and len(tracked) == 1:
            self.notes.activations.add(node)


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
    notes = Notes(model=model, exported=exported, tensors=dict(tensors))
    rules = _Rules(notes)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in signature.user_inputs:
            notes.varying.add(node)
        elif node.op == "call_function":
            rules.read(node)
        elif node.op == "output":
            for value in node.all_input_nodes:
                notes.keep_whole(value, OUTPUT)
    return build_graph(notes)
