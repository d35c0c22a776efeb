"""Read a network into its graph of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A dimension of a value *carries neurons* when an axis
(`mlprank.graph.axes`) is known along it; so does every dimension of every parameter. The rules say, by family of
operation, where the axes are afterwards: axes that meet entry by entry are tied, and an operation without a rule keeps
whole what it reads, with its name as the reason.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from mlprank.graph.axes import Axis, widened
from mlprank.graph.layers import Convolution, Linear, Use, use_of
from mlprank.graph.moves import Arguments, Reading
from mlprank.graph.program import arguments, as_node, is_pointwise, ndim_of, operation, owner_of, shape_of
from mlprank.graph.records import Norm, Scale

OUTPUT = "its neurons are outputs of the network"

_OPERATIONS = {
    "_pass": """detach alias contiguous clone to _to_copy lift_fresh lift_fresh_copy identity type_as zeros_like
        ones_like full_like empty_like rand_like randn_like""",
    "_along": """softmax _softmax log_softmax _log_softmax cumsum cumprod sort argsort topk flip roll index_select""",
    "_show": """permute transpose t swapaxes numpy_T movedim mT adjoint mean sum amax amin max min prod
        var std logsumexp argmax argmin any all linalg_vector_norm norm median count_nonzero""",
    "_reshape": "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as",
    "_select": "select unbind",
    "_split": "chunk split split_with_sizes tensor_split",
    "_slice": "slice narrow",
    "_cat": "cat concat",
    "_pad": "pad constant_pad_nd",
    "_pixel_shuffle": "pixel_shuffle pixel_unshuffle",
    "_channel_norm": "batch_norm instance_norm",
    "_set_norm": "layer_norm rms_norm group_norm",
    "_prelu": "prelu",
    "_expand": "expand",
    "_repeat": "repeat",
    "_repeat_interleave": "repeat_interleave",
    "_glu": "glu",
    "_stack": "stack",
    "_index": "index",
    "_index_add": "index_add",
}
_RULES = {name: rule for rule, names in _OPERATIONS.items() for name in names.split()}
_SCALING = {"mul", "div", "where", "masked_fill"}
"""What these make of 0 and another value is 0."""
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}
_LOCAL = re.compile(r"(pool|upsample|grid_sampler|interpolate|reflection_pad|replication_pad).*?([123])d")


class Rules(Reading):
    """Rules for layers, normalisations and operations that leave axes where they are, besides those that move them."""

    def read_all(self) -> None:
        """Read the program from its inputs to its outputs."""
        inputs = set(self.exported.graph_signature.user_inputs)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self.varying.add(node)
            elif node.name in self.tensors and node.meta["val"].is_floating_point():
                # Every dimension of a tensor is an axis of its own, until it is seen to run along neurons.
                name, shape = self.tensors[node.name], node.meta["val"].shape
                if name not in self.slots:
                    self.slots[name] = {dim: self.spaces.new(int(size)) for dim, size in enumerate(shape)}
                self.axes[node] = dict(self.slots[name])
            elif node.op == "call_function":
                if any(argument in self.varying for argument in node.all_input_nodes):
                    self.varying.add(node)
                self._read(node)
            elif node.op == "output":
                self.refuse(node.all_input_nodes, OUTPUT)
        for name, dim in self.untracked:
            self.spaces.keep_whole(self.slots[name][dim], f'"{name}" also reads values that are no neurons')

    def _read(self, node: fx.Node) -> None:
        """Follow the axes through one operation."""
        name, use = operation(node), use_of(node)
        plain = name.rstrip("_")
        if use is not None and use.weight not in self.varying:
            self._layer(node, use)
            return
        tracked = [argument for argument in node.all_input_nodes if self.axes[argument]]
        if not tracked or name.startswith(("_assert", "sym_", "_has_compatible_shallow_copy_type")):
            return  # a check that the trace added, of a dtype for example, or a size
        rule = _RULES.get(plain)
        if plain in {"max", "min"} and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            rule = "_pointwise"
        elif rule is None:
            rule = "_dropout" if "dropout" in name else "_local" if _LOCAL.search(name) else None
        if rule is not None or is_pointwise(node):
            getattr(self, rule or "_pointwise")(node, node.args[0], arguments(node))
            return
        for argument in tracked:
            if all(map(self.is_weight, tracked)) and argument.name in self.tensors and ndim_of(argument) > 1:
                words = f"weights of `{name}` are not pruned"
                if name in ("lstm", "gru", "rnn_tanh"):
                    words = "a recurrent layer stays whole"
                self.others[owner_of(node) or self.tensors[argument.name]] = words
        self.refuse(tracked, self.words(node))

    # Layers.

    def _layer(self, node: fx.Node, use: Use) -> None:
        source, base = use.source, self._base(use)
        if base is None:
            self.others[owner_of(node) or node.name] = (
                "its weight is no parameter but computed in the forward pass: remove masks and parametrisations first"
            )
            self.refuse(node.all_input_nodes, "they feed a layer whose weight is computed in the forward pass")
            return
        weight, kind = base
        name, axes = self.tensors[weight.name], self.axes[weight]
        use = replace(use, kind=kind, weight=weight)
        made, read = axes[kind.weight_out], self.axes[source].get(use.dim)
        if isinstance(kind, Linear):  # it mixes along another axis; importance behind it is that of the data
            self.axes[node].update({dim: axis for dim, axis in self.axes[source].items() if dim != use.dim})
        else:
            self.refuse([source], self.words(node), but=(use.dim,))
        if kind.groups > 1:
            why = "a grouped convolution reads them in parts of other sizes"
            transposed = isinstance(kind, Convolution) and kind.transposed
            if kind.groups == shape_of(source)[use.dim] and not transposed:
                self._depthwise(node, use)
                return
            part = None if read is None else self.tie_parts(read, kind.groups, why)
            if transposed:
                made, read = made * kind.groups, None if read is None else self.spaces.resolve(read)
            else:
                self.tie_parts(made, kind.groups, why)
                read = part
        if read is None:
            self.untracked.add((name, kind.weight_in))
        else:
            self.tie(axes[kind.weight_in], read, f'"{name}" also reads values that are no neurons')
        self._bias(use, made)
        self.axes[node][use.out_dim] = made
        self.uses[name, kind.weight_out].append((node, use))

    def _base(self, use: Use) -> tuple[fx.Node, Any] | None:
        """The parameter behind a weight, and the kind by which it is used; None for a computed weight."""
        weight, kind = use.weight, use.kind
        while weight.name not in self.tensors:
            name = operation(weight)
            flipped = name in {"t", "transpose", "numpy_T", "mT"} or (name == "permute" and weight.args[1] == [1, 0])
            if weight.op != "call_function" or not (flipped or name in {"detach", "alias"}):
                return None
            if flipped:
                if ndim_of(weight) != 2 or not isinstance(kind, Linear):
                    return None
                kind = replace(kind, weight_out=1 - kind.weight_out)
            weight = as_node(weight.args[0])
        return weight, kind

    def _bias(self, use: Use, made: Axis) -> None:
        if use.bias is None:
            return
        axis = self.axes[use.bias].get(0)
        if axis is None or ndim_of(use.bias) != 1:
            self.spaces.keep_whole(made, "their bias is computed in the forward pass")
        else:
            self.tie(axis, made, "their bias is shared with other neurons")

    def _depthwise(self, node: fx.Node, use: Use) -> None:
        """A convolution that keeps channels apart passes them on, each as so many outputs."""
        name, made = self.tensors[use.weight.name], self.axes[use.weight][0]
        axis = self.axes[use.source].get(use.dim)
        if axis is None:
            self.spaces.keep_whole(made, "a depthwise convolution reads the network's input")
            return
        if not isinstance(self.module_of(node), nn.modules.conv._ConvNd):
            self.refuse([use.source], "they feed a depthwise convolution that belongs to no module")
            return
        block = int(shape_of(use.weight)[0]) // int(shape_of(use.source)[use.dim])
        out = widened(axis, block)
        self.tie(out, made, f'"{name}" also reads values that are no neurons')
        self._bias(use, out)
        part = replace(self.part(use.source, use.dim), block=block)
        self.put(node, use.out_dim, self.spaces.resolve(out), [part], Scale(name))

    # Normalisations.

    def _claim(self, tensors: Iterable[Any], axis: Axis, why: str) -> bool:
        """Tie tensors of shape (n,) to an axis; False where one is no parameter or buffer."""
        given = [tensor for tensor in tensors if tensor is not None]
        claimed = all(map(self.is_weight, given))
        for tensor in given if claimed else ():
            self.tie(self.axes[tensor][ndim_of(tensor) - 1], axis, why)
        return claimed

    def _name(self, tensor: Any) -> str | None:
        """The state dict's name of a parameter."""
        return self.tensors.get(tensor.name) if isinstance(tensor, fx.Node) else None

    def _channel_norm(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Batch norm by running statistics, which scales channels, and instance norm, which takes each for itself."""
        why, scale, by_batch = self.words(node), Scale(self._name(given["weight"])), False
        if operation(node) == "batch_norm":
            why = "a batch norm normalises them across another dimension or by the batch's own statistics"
            by_batch = given["running_mean"] is None or given["running_var"] is None or bool(given["training"])
            scale = replace(scale, variance=self._name(given["running_var"]), eps=given["eps"])
        axis = self.axes[source].get(1)
        tensors = (given["weight"], given["bias"], given["running_mean"], given["running_var"])
        if axis is None or by_batch or not self._claim(tensors, axis, why):
            self.refuse([source], why)
            return
        self.refuse([source], why, but=(1,))
        self.put(node, 1, axis, [self.part(source, 1)], scale)

    def _set_norm(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Normalisations over neurons: of the last dimensions, or of sets of channels and all positions."""
        name, why, gain = operation(node), self.words(node), self._name(given["weight"])
        grouped, shape = name == "group_norm", given.get("normalized_shape", [0])
        kind = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "group_norm": nn.GroupNorm}[name]
        first = 1 if grouped else ndim_of(source) - len(shape)
        for dim, axis in self.axes[source].items():
            if grouped and dim != 1:
                self.spaces.keep_whole(axis, why)
                continue
            scale = Scale(gain) if dim >= first and len(shape) == 1 else None
            self.put(node, dim, axis, [self.part(source, dim)], scale)
            if dim < first:
                continue
            stock = scale is not None and gain is not None and is_stock(self.module_of(node), kind)
            if gain is None or not stock or not self._claim((given["weight"], given.get("bias")), axis, why):
                self.spaces.keep_whole(axis, why)
                continue
            if grouped:
                self.tie_parts(axis, given["num_groups"], why)
            else:
                self.spaces.mark(axis, "normed")
            sets = given["num_groups"] if grouped else 1
            self.norms.append(Norm(node.name, owner_of(node), gain, axis, dim, sets, name != "rms_norm"))

    def _prelu(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        weight, axes, why = given["weight"], self.axes[source], self.words(node)
        if not self.is_weight(weight) or not axes:
            self.refuse([source, weight], why)
            return
        self._pass(node, source, given)
        if weight.meta["val"].numel() > 1 and 1 not in axes:
            self.refuse([source], why)
        elif weight.meta["val"].numel() > 1:
            self.tie(self.axes[weight][0], axes[1], why)
        self.activations.add(node)

    # Operations that leave axes where they are.

    def _pass(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        self.move(node, source, {dim: dim for dim in range(ndim_of(source))})

    def _dropout(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        if given["train"]:
            self.refuse([source], f"`{operation(node)}` drops them in evaluation mode, too")
        else:
            self._pass(node, source, given)

    def _local(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Pooling, resampling and padding of positions: the leading dimensions stay."""
        found = _LOCAL.search(operation(node))
        assert found is not None
        self.move(node, source, {dim: dim for dim in range(ndim_of(source) - int(found.group(2)))})

    def _along(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Softmax, sorting and the like: what lies along their dimensions stays whole."""
        ndim, dims = ndim_of(source), given["dim"] if "dim" in given else given["dims"]
        gone = {dim % ndim for dim in ([dims] if isinstance(dims, int) else dims or range(ndim))}
        self.move(node, source, {dim: dim for dim in range(ndim) if dim not in gone})

    def _pointwise(self, node: fx.Node, source: Any, given: Arguments) -> None:
        """Elementwise operations: neurons that meet here stay together; a tensor along them is narrowed with them."""
        name, ndim, shape = operation(node).rstrip("_"), ndim_of(node), shape_of(node)
        why = f"`{name}` combines them with a value that is no neuron's own"
        operands = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]
        followed = [each for each in operands if self.axes[each] and not self.is_weight(each)]
        for dim in range(ndim):
            tracked: list[tuple[fx.Node, int]] = []
            strangers: list[tuple[fx.Node, int]] = []
            for each in operands:
                own = dim - ndim + ndim_of(each)
                size, known = shape_of(each)[own] if own >= 0 else 1, own in self.axes[each]
                if size != shape[dim]:
                    if known and not self.is_weight(each):
                        self.refuse([each], f"`{name}` combines them across dimensions")
                elif known and not (size == 1 and self.is_weight(each)):
                    tracked.append((each, own))
                elif size != 1:
                    strangers.append((each, own))
            if not tracked:
                continue
            axes = [self.axes[each][own] for each, own in tracked]
            if any(each in self.varying and each not in dict(tracked) for each in operands):
                for axis in axes:
                    self.spaces.mark(axis, "varying" if name in _SCALING else "moved")
            for axis in axes if strangers else ():
                self.spaces.keep_whole(axis, why)
            for axis in axes[1:]:
                self.tie(axes[0], axis, why)
            values = [(each, own) for each, own in tracked if not self.is_weight(each)]
            if name in {"add", "sub", "rsub"} and len(values) > 1:
                self.spaces.mark(axes[0], "added")
            if not values and strangers:
                continue  # a parameter met the data: its entries are no neurons
            gains = [self._name(each) for each, own in tracked if own == 0 and self.is_weight(each) and name == "mul"]
            met = values + [(each, own) for each, own in strangers if each in self.varying]
            parts = [self.part(each, own) for each, own in met]
            self.put(node, dim, self.spaces.resolve(axes[0]), parts, Scale(gains[0]) if gains and gains[0] else None)
        for each in operands:
            if each in self.varying and not self.axes[each] and all(size == 1 for size in shape_of(each)):
                self.refuse(followed, why)
        if name not in _ARITHMETIC and len(followed) == 1:
            self.activations.add(node)


def is_stock(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether a module does what one of torch's classes does, and nothing else."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)
