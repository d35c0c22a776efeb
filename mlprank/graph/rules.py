"""Read a network into axes of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A dimension of a value *carries neurons* when an axis
(`mlprank.graph.axes`) is known along it; so does every dimension of every parameter. The rules say, by family of
operation, where the axes are afterwards: axes that meet entry by entry are tied, and an operation without a rule keeps
whole what it reads, with its name as the reason.
"""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mlprank.graph.axes import Axis, Segment, Spaces, size_of, widened
from mlprank.graph.layers import KINDS, Linear, Use
from mlprank.graph.program import arguments, as_node, is_pointwise, ndim_of, operation, owner_of, shape_of, user_line
from mlprank.graph.records import Flow, Norm, Part, Scale

OUTPUT = "its neurons are outputs of the network"
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
Axes = dict[int, Axis]
Arguments = dict[str, Any]

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
    "": "expand glu index index_add prelu repeat repeat_interleave stack",  # each has a rule of its name
}
_RULES = {name: rule or f"_{name}" for rule, names in _OPERATIONS.items() for name in names.split()}
_SCALING = {"mul", "div", "where", "masked_fill"}
"""What these make of 0 and another value is 0."""
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}
_LOCAL = re.compile(r"(pool|upsample|grid_sampler|interpolate|reflection_pad|replication_pad).*?([123])d")
WRITTEN = "written: "
"""Begins a mark that names a line."""
_WRITTEN = {
    "view", "reshape", "_unsafe_view", "unflatten", "slice", "narrow", "split", "split_with_sizes", "tensor_split"
}  # fmt: skip
_WORDS = {
    "scaled_dot_product_attention": "they are attention heads, which stay whole",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh"), "a recurrent layer reads them, which stays whole"),
}


class Reading:
    """What is known of a program that has been read, and the rules by which it is read.

    A rule takes an operation, its first argument, and all of its arguments by name.
    """

    def __init__(self, model: nn.Module, exported: ExportedProgram) -> None:
        signature, inputs = exported.graph_signature, set(exported.graph_signature.user_inputs)
        self.model, self.exported, self.spaces = model, exported, Spaces()
        self.modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
        # The state dict's name for every placeholder that is a parameter or a buffer.
        self.tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        # For every value, and every tensor of the network, the axes along its dimensions, as far as they are known.
        self.axes: defaultdict[fx.Node, Axes] = defaultdict(dict)
        self.slots: dict[str, Axes] = {}
        self.flow: dict[tuple[fx.Node, int], Flow] = {}
        self.activations: set[fx.Node] = set()
        self.varying: set[fx.Node] = set()  # values that depend on the input
        # The uses of every weight in one way: by its name and the dimension of its outputs, in forward order.
        self.uses: defaultdict[tuple[str, int], list[tuple[fx.Node, Use]]] = defaultdict(list)
        self.others: dict[str, str] = {}  # why parts that are no layers stay whole
        self.norms: list[Norm] = []
        for node in exported.graph.nodes:
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

    # What every rule says of values.

    def put(self, node: fx.Node, dim: int, axis: Axis, parts: Iterable[Part] = (), scale: Scale | None = None) -> None:
        """An axis lies along a dimension of a value; importance comes from these parts, without any from the data."""
        self.axes[node][dim] = axis
        if parts := tuple(parts):
            self.flow[node, dim] = Flow(parts, scale)

    def move(
        self, node: fx.Node, source: fx.Node, dims: Mapping[int, int], why: str = "", but: Collection[int] = ()
    ) -> None:
        """Axes of `source` lie along other dimensions of what comes out; those without a place stay whole."""
        for dim, axis in self.axes[source].items():
            if dim in dims:
                for value in _results(node):
                    self.put(value, dims[dim], axis, [self.part(source, dim)])
            elif dim not in but:
                self.spaces.keep_whole(axis, why or self.words(node))

    def rest(self, node: fx.Node, source: fx.Node, along: int) -> Axis | None:
        """Axes along other dimensions stay where they are; return the one along this dimension."""
        self.move(node, source, {dim: dim for dim in range(ndim_of(source)) if dim != along}, but=(along,))
        return self.axes[source].get(along)

    def part(self, source: fx.Node, dim: int) -> Part:
        """All of a value."""
        return Part(source.name, dim, 0, int(shape_of(source)[dim]))

    def refuse(self, values: Iterable[fx.Node], reason: str, *, but: Collection[int] = ()) -> None:
        """Keep whole what lies along the dimensions of values."""
        for value in values:
            for dim, axis in self.axes[value].items():
                if dim not in but:
                    self.spaces.keep_whole(axis, reason)

    def words(self, node: fx.Node) -> str:
        """Say why an operation keeps neurons whole."""
        name, place, line = operation(node).rstrip("_"), owner_of(node), user_line(node.stack_trace)
        words = _WORDS.get(name, f"they feed `{name}`" + (f' in "{place}"' if place else ""))
        return words + (f" at {line}" if line else "")

    def is_weight(self, node: Any) -> bool:
        """Whether a value is computed of parameters and buffers alone."""
        return isinstance(node, fx.Node) and node not in self.varying and bool(self.axes[node])

    def written(self, axis: Axis, node: fx.Node) -> None:
        """A width of these neurons may be written into the forward pass as a number."""
        if operation(node) in _WRITTEN:
            self.spaces.mark(axis, f"{WRITTEN}{user_line(node.stack_trace) or operation(node)}")

    def _read(self, node: fx.Node) -> None:
        """Follow the axes through one operation."""
        name = operation(node)
        uses, plain = [kind.read(node) for kind in KINDS if name in kind.operations], name.rstrip("_")
        use = next((use for use in uses if use is not None), None)
        if use is not None and use.weight not in self.varying:
            self._layer(node, use)
            return
        tracked = [argument for argument in node.all_input_nodes if self.axes[argument]]
        if not tracked or name.startswith(("_assert", "sym_", "_has_compatible_shallow_copy_type")):
            return  # a check that the trace added, of a dtype for example, or a size
        of_two = plain in {"max", "min"} and len(node.args) > 1 and isinstance(node.args[1], fx.Node)
        rule = "_pointwise" if of_two else _RULES.get(plain)
        if rule is None:
            rule = "_local" if _LOCAL.search(name) else "_pointwise" if is_pointwise(node) else None
            rule = "_dropout" if "dropout" in name else rule
        if rule is not None:
            getattr(self, rule)(node, node.args[0], arguments(node))
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
        (made, reads), read = kind.whole(axes), self.axes[source].get(use.dim)
        if isinstance(kind, Linear):  # it mixes along another axis; importance behind it is that of the data
            self.axes[node].update({dim: axis for dim, axis in self.axes[source].items() if dim != use.dim})
        else:
            self.refuse([source], self.words(node), but=(use.dim,))
        why = strange = f'"{name}" also reads values that are no neurons'
        if kind.groups > 1:
            if kind.groups == shape_of(source)[use.dim] and kind.weight_out == 0:
                self._depthwise(node, use)
                return
            why = "a grouped convolution reads them in parts of other sizes"
            self.spaces.tie_parts(axes[0], kind.groups, why)
        if read is None:
            self.spaces.keep_whole(reads, strange)
        else:
            self.spaces.tie(reads, read, why)
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
        shared = "their bias is shared with other neurons"
        if ndim_of(use.bias) != 1 or not self._claim([use.bias], made, shared):
            self.spaces.keep_whole(made, "their bias is computed in the forward pass")

    def _depthwise(self, node: fx.Node, use: Use) -> None:
        """A convolution that keeps channels apart passes them on, each as so many outputs."""
        name, made = self.tensors[use.weight.name], self.axes[use.weight][0]
        axis = self.axes[use.source].get(use.dim)
        if axis is None:
            self.spaces.keep_whole(made, "a depthwise convolution reads the network's input")
            return
        if not isinstance(self.modules.get(owner_of(node)), nn.modules.conv._ConvNd):
            self.refuse([use.source], "they feed a depthwise convolution that belongs to no module")
            return
        block = int(shape_of(use.weight)[0]) // int(shape_of(use.source)[use.dim])
        out = widened(axis, block)
        self.spaces.tie(out, made, f'"{name}" also reads values that are no neurons')
        self._bias(use, out)
        part = replace(self.part(use.source, use.dim), block=block)
        self.put(node, use.out_dim, self.spaces.resolve(out), [part], Scale(name))

    # Normalisations.

    def _claim(self, tensors: Iterable[Any], axis: Axis, why: str) -> bool:
        """Tie tensors of shape (n,) to an axis; False where one is no parameter or buffer."""
        given = [tensor for tensor in tensors if tensor is not None]
        claimed = all(map(self.is_weight, given))
        for tensor in given if claimed else ():
            self.spaces.tie(self.axes[tensor][ndim_of(tensor) - 1], axis, why)
        return claimed

    def name_of(self, tensor: Any) -> str | None:
        """The state dict's name of a parameter."""
        return self.tensors.get(tensor.name) if isinstance(tensor, fx.Node) else None

    def _channel_norm(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Batch norm by running statistics, which scales channels, and instance norm, which takes each for itself."""
        why, scale, by_batch = self.words(node), Scale(self.name_of(given["weight"])), False
        if operation(node) == "batch_norm":
            why = "a batch norm normalises them across another dimension or by the batch's own statistics"
            by_batch = given["running_mean"] is None or given["running_var"] is None or bool(given["training"])
            scale = replace(scale, variance=self.name_of(given["running_var"]), eps=given["eps"])
        axis = self.axes[source].get(1)
        tensors = (given["weight"], given["bias"], given["running_mean"], given["running_var"])
        if axis is None or by_batch or not self._claim(tensors, axis, why):
            self.refuse([source], why)
            return
        self.refuse([source], why, but=(1,))
        self.put(node, 1, axis, [self.part(source, 1)], scale)

    def _set_norm(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Normalisations over neurons: of the last dimensions, or of sets of channels and all positions."""
        why, gain, tensors = self.words(node), self.name_of(given["weight"]), (given["weight"], given.get("bias"))
        grouped, shape, sets = "num_groups" in given, given.get("normalized_shape", [0]), given.get("num_groups", 1)
        first, stock = (
            1 if grouped else ndim_of(source) - len(shape),
            is_stock(self.modules.get(owner_of(node)), *NORMS),
        )
        for dim, axis in self.axes[source].items():
            if grouped and dim != 1:
                self.spaces.keep_whole(axis, why)
                continue
            scale = Scale(gain) if dim >= first and len(shape) == 1 else None
            self.put(node, dim, axis, [self.part(source, dim)], scale)
            if dim < first:
                continue
            if gain is None or scale is None or not stock or not self._claim(tensors, axis, why):
                self.spaces.keep_whole(axis, why)
                continue
            self.spaces.tie_parts(axis, sets, why)
            if not grouped:
                self.spaces.mark(axis, "normed")
            centred = operation(node) != "rms_norm"
            self.norms.append(Norm(node.name, owner_of(node), gain, axis, dim, sets, centred))

    def _prelu(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        weight, axis, sole = given["weight"], self.axes[source].get(1), given["weight"].meta["val"].numel() == 1
        self._pass(node, source, given)
        self.activations.add(node)
        if not sole and axis is not None and self.is_weight(weight):
            self.spaces.tie(self.axes[weight][0], axis, self.words(node))
        elif not sole or not self.is_weight(weight):
            self.refuse([source, weight], self.words(node))

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
                self.spaces.mark(sum(axes, ()), "varying" if name in _SCALING else "moved")
            if strangers:
                self.spaces.keep_whole(sum(axes, ()), why)
            for axis in axes[1:]:
                self.spaces.tie(axes[0], axis, why)
            values = [(each, own) for each, own in tracked if not self.is_weight(each)]
            if name in {"add", "sub", "rsub"} and len(values) > 1:
                self.spaces.mark(axes[0], "added")
            if not values and strangers:
                continue  # a parameter met the data: its entries are no neurons
            gains = [self.name_of(each) for each, own in tracked if own == 0 and self.is_weight(each) and name == "mul"]
            met = values + [(each, own) for each, own in strangers if each in self.varying]
            parts = [self.part(each, own) for each, own in met]
            self.put(node, dim, self.spaces.resolve(axes[0]), parts, Scale(gains[0]) if gains and gains[0] else None)
        for each in operands:
            if each in self.varying and not self.axes[each] and all(size == 1 for size in shape_of(each)):
                self.refuse(followed, why)
        if name not in _ARITHMETIC and len(followed) == 1:
            self.activations.add(node)

    # Operations that move, cut or join axes.

    def _show(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Operations that order or reduce dimensions: which, a tensor whose sizes all differ shows."""
        assert callable(node.target)
        shown = node.target(torch.zeros(tuple(range(2, 2 + ndim_of(source)))), *node.args[1:], **node.kwargs)
        sizes = list((shown if isinstance(shown, Tensor) else shown[0]).shape)
        self.move(node, source, {size - 2: dim for dim, size in enumerate(sizes) if size > 1})

    def _select(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        ndim, along = ndim_of(source), given["dim"] % ndim_of(source)
        self.move(node, source, {dim: dim - (dim > along) for dim in range(ndim) if dim != along})

    def _reshape(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        mixed = f"`{operation(node)}` mixes them with another dimension"
        for dim, axis in self.axes[source].items():
            if shape_of(source)[dim] != 1 and not self.is_weight(source):
                self.written(axis, node)
        for old, new in _matching(shape_of(source), shape_of(node)):
            for dim in old:
                if dim not in self.axes[source]:
                    continue
                found = self._reshaped(node, source, dim, old, new)
                met = None if found is None else self.axes[node].get(found[0])
                if found is None or met is not None:  # two axes that have become one are none
                    self.spaces.keep_whole(self.axes[source][dim] + (met or ()), mixed)
                else:
                    self.put(node, *found)

    def _reshaped(
        self, node: fx.Node, source: fx.Node, dim: int, old: Sequence[int], new: Sequence[int]
    ) -> tuple[int, Axis, Sequence[Part]] | None:
        """Where an axis lies, and what importance comes from (nothing: the data), behind a reshape."""
        axis, part = self.axes[source][dim], self.part(source, dim)
        before, after = shape_of(source), shape_of(node)
        old = [each for each in old if before[each] != 1 or each == dim]
        wide = [each for each in new if after[each] != 1]
        if len(old) == 1 and before[dim] == 1:
            return (new[0], axis, [part]) if len(new) == 1 else None
        if len(wide) == 1:  # of the dimensions that become one, those before this one repeat it, those behind widen it
            sides = [[before[each] for each in side] for side in (old[: old.index(dim)], old[old.index(dim) + 1 :])]
            if not all(isinstance(size, int) for side in sides for size in side) or math.prod(sides[0]) > 4096:
                return None
            repeat, block = map(math.prod, sides)
            return wide[0], widened(axis, block) * repeat, [replace(part, block=block, repeat=repeat)]
        sizes = [after[each] for each in wide]
        if len(old) > 1 or not all(isinstance(size, int) for size in sizes):
            return None
        # An axis of blocks, or one that repeats itself, falls into dimensions again; its entries are others then.
        axis, inner = self.spaces.resolve(axis), math.prod(sizes[1:])
        if all(segment.block % inner == 0 for segment in axis):
            return wide[0], tuple(replace(segment, block=segment.block // inner) for segment in axis), ()
        period, rest = divmod(len(axis), sizes[0])
        if len(sizes) == 2 and not rest and axis == axis[:period] * sizes[0]:
            return wide[1], axis[:period], ()
        if len(sizes) == 2 and sizes[0] < sizes[1]:  # equal parts, each along the longer dimension
            half = self.spaces.tie_parts(axis, sizes[0], self.words(node))
            return (wide[1], half, ()) if half else None
        return None

    def _expand(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        added = ndim_of(node) - ndim_of(source)
        same = [dim for dim, size in enumerate(shape_of(source)) if shape_of(node)[dim + added] == size]
        self.move(node, source, {dim: dim + added for dim in same}, "`expand` repeats them")

    def _repeat(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        added = ndim_of(node) - ndim_of(source)
        for dim, axis in self.axes[source].items():
            count = given["repeats"][dim + added]
            if isinstance(count, int):
                self.put(node, dim + added, axis * count, [replace(self.part(source, dim), repeat=count)])
            else:
                self.spaces.keep_whole(axis, self.words(node))

    def _repeat_interleave(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        count, along = given["repeats"], given.get("dim")
        if along is None:
            self.refuse([source], self.words(node))
            return
        dim = along % ndim_of(source)
        axis = self.rest(node, source, dim)
        if axis is not None and isinstance(count, int):
            self.put(node, dim, widened(axis, count), [replace(self.part(source, dim), block=count)])
        elif axis is not None:
            self.spaces.keep_whole(axis, self.words(node))

    def _glu(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        dim = given["dim"] % ndim_of(source)
        axis = self.rest(node, source, dim)
        if axis is not None and (half := self.spaces.tie_parts(axis, 2, self.words(node))):
            size = size_of(half)
            self.put(node, dim, half, [Part(source.name, dim, start, start + size) for start in (0, size)])
        self.activations.add(node)

    def _cat(self, node: fx.Node, source: Sequence[fx.Node], given: Arguments) -> None:
        values = [each for each in source if ndim_of(each) == ndim_of(node)]
        along = given["dim"] % ndim_of(node)
        self._meet_beside(node, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})
        known = all(isinstance(shape_of(each)[along], int) for each in values)
        if known and any(along in self.axes[each] for each in values):
            axes = [self.axes[each].get(along) or (Segment(None, shape_of(each)[along]),) for each in values]
            self.axes[node][along] = sum(axes, ())
            self.flow[node, along] = Flow(tuple(self.part(each, along) for each in values), joined=True)

    def _stack(self, node: fx.Node, source: Sequence[fx.Node], given: Arguments) -> None:
        along = given["dim"] % ndim_of(node)
        self._meet_beside(node, source, {dim: dim + (dim >= along) for dim in range(ndim_of(node) - 1)})

    def _meet_beside(self, node: fx.Node, values: Sequence[fx.Node], dims: Mapping[int, int]) -> None:
        """Values that come to lie beside each other: their axes along other dimensions are one."""
        why = f"`{operation(node)}` puts them beside a value that is no neuron's own"
        for dim, place in dims.items():
            axes = [self.axes[each][dim] for each in values if dim in self.axes[each]]
            if not axes:
                continue
            for axis in axes[1:]:
                self.spaces.tie(axes[0], axis, why)
            if len(axes) < len(values):
                self.spaces.keep_whole(axes[0], why)
            self.put(node, place, self.spaces.resolve(axes[0]), [self.part(each, dim) for each in values])

    def _slice(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        dim = given["dim"] % ndim_of(source)
        axis, size, length = self.rest(node, source, dim), shape_of(source)[dim], shape_of(node)[dim]
        start, step = given["start"] or 0, given.get("step", 1)
        if axis is not None and step == 1 and all(isinstance(each, int) for each in (start, size, length)):
            self._take(node, node, source, dim, slice(start, None).indices(size)[0], length)
        elif axis is not None:
            self.spaces.keep_whole(axis, self.words(node))

    def _split(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        dim = given["dim"] % ndim_of(source)
        axis, sizes = self.rest(node, source, dim), [piece.shape[dim] for piece in node.meta["val"]]
        known = all(isinstance(size, int) for size in sizes)
        equal = known and len(set(sizes)) == 1
        if axis is None:
            return
        if not known or (operation(node) == "tensor_split" and not equal):
            self.spaces.keep_whole(axis, self.words(node))
            return
        if equal:
            self.spaces.tie_parts(axis, len(sizes), self.words(node))  # pieces that are equal have to stay so
        for piece in _results(node):
            index: Any = piece.args[1]
            self._take(node, piece, source, dim, sum(sizes[:index]), sizes[index])

    def _take(self, node: fx.Node, piece: fx.Node, source: fx.Node, dim: int, start: int, size: int) -> None:
        """Some entries of an axis become an axis of their own."""
        axis, stop = self.axes[source][dim], start + size
        if cut := self.spaces.cut(axis, start, stop, self.words(node)):
            self.put(piece, dim, cut, [Part(source.name, dim, start, stop)])
            self.written(axis, node)

    def _index(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Entries taken by an index of integers or booleans along other dimensions, which lie side by side."""
        indexed = [dim for dim, index in enumerate(given["indices"]) if index is not None]
        shift = ndim_of(node) - ndim_of(source)
        together = indexed == list(range(indexed[0], indexed[-1] + 1))
        left = [dim for dim in range(ndim_of(source)) if together and dim not in indexed]
        self.move(node, source, {dim: dim + (shift if dim > indexed[-1] else 0) for dim in left})

    def _index_add(self, node: fx.Node, table: fx.Node, given: Arguments) -> None:
        """Rows added to a table: beside the table's dimension, both have one axis."""
        along, added = given["dim"] % ndim_of(node), as_node(given["source"])
        empty = operation(table) in {"zeros", "new_zeros"}  # as wide as is written; whether it follows, trying tells
        values = [added] if empty and not self.axes[table] else [table, added]
        self.refuse([each for each in values if along in self.axes[each]], self.words(node))
        self._meet_beside(node, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})

    def _pixel_shuffle(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        """Runs of r * r channels become one channel of r times as many rows and columns, or the other way round."""
        dim = ndim_of(source) - 3
        block = (given.get("upscale_factor") or given["downscale_factor"]) ** 2
        self.refuse([source], self.words(node), but=(dim,))
        axis = self.axes[source].get(dim)
        if axis is not None and operation(node) == "pixel_unshuffle":
            self.put(node, dim, widened(axis, block), [replace(self.part(source, dim), block=block)])
        elif axis is not None:
            made = self.spaces.new(size_of(axis) // block)
            self.spaces.tie(axis, widened(made, block), self.words(node))
            self.put(node, dim, self.spaces.resolve(made))

    def _pad(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        for dim, axis in self.axes[source].items():
            sides = [*given["pad"], *[0] * 2 * ndim_of(source)][2 * (ndim_of(source) - 1 - dim) :][:2]
            if all(isinstance(side, int) and side >= 0 for side in sides):
                before, after = ((Segment(None, side),) if side else () for side in sides)
                self.put(node, dim, (*before, *axis, *after), [] if any(sides) else [self.part(source, dim)])
            else:
                self.spaces.keep_whole(axis, self.words(node))


def _results(node: fx.Node) -> list[fx.Node]:
    """The values that an operation gives: itself, or those taken from its list."""
    if isinstance(node.meta.get("val"), Tensor):
        return [node]
    return [user for user in node.users if operation(user) == "getitem"]


def _matching(before: Sequence[Any], after: Sequence[Any]) -> Iterable[tuple[list[int], list[int]]]:
    """Pair runs of dimensions that hold the same entries before and after a reshape."""
    i = j = 0
    while i < len(before) or j < len(after):
        ends = sorted(product(range(i + 1, len(before) + 1), range(j + 1, len(after) + 1)), key=sum)
        whole = (len(before), len(after))
        same = (
            (one, other)
            for one, other in ends
            if math.prod(before[:one]) == math.prod(after[:other])
            or math.prod(before[one:]) == math.prod(after[other:])
        )
        one, other = next(same, whole)
        if math.prod(before[one:]) == 1 == math.prod(after[other:]):
            one, other = whole  # dimensions of one entry at the end belong to the last run
        yield list(range(i, one)), list(range(j, other))
        i, j = one, other


def is_stock(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether a module does what one of torch's classes does, and nothing else."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)
