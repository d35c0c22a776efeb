"""Read a network into its graph of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A dimension of a value *carries neurons* when an axis (`mlprank.graph.axes`) is known along it;
so does every dimension of every parameter. The rules below say, by family of operation, where the axes are afterwards: axes that meet
entry by entry are tied, and an operation without a rule keeps whole what it reads, with its name as the reason.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mlprank.graph.axes import Axis, Segment, Spaces, joined, size_of, widened
from mlprank.graph.layers import Convolution, Linear, Use, use_of
from mlprank.graph.operations import (
    as_node,
    is_pointwise,
    ndim_of,
    operation,
    owner_of,
    shape_of,
    sizes_of,
    source_line,
    user_line,
)
from mlprank.graph.records import Flow, Part, Scale

OUTPUT = "its neurons are outputs of the network"

Axes = dict[int, Axis]

_PASSING = {
    "detach",
    "alias",
    "contiguous",
    "clone",
    "to",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "identity",
    "type_as",
}
_PASSING |= {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"}
_RESHAPING = {
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "view_as",
    "reshape_as",
}
_WRITTEN = {"view", "reshape", "_unsafe_view", "unflatten"}
_REDUCING = {
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "prod",
    "var",
    "std",
    "logsumexp",
    "argmax",
    "argmin",
    "any",
    "all",
}
_REDUCING |= {"linalg_vector_norm", "norm", "median", "count_nonzero"}
_ALONG = {
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "argsort",
    "topk",
    "flip",
    "roll",
}
_SPLITTING = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}
_LOCAL = re.compile(r"(pool|upsample|grid_sampler|interpolate|reflection_pad|replication_pad).*?([123])d")
_PLAIN_WORDS = {
    "scaled_dot_product_attention": "they are attention heads, which stay whole",
    "lstm": "a recurrent layer reads them, which stays whole",
    "gru": "a recurrent layer reads them, which stays whole",
    "rnn_tanh": "a recurrent layer reads them, which stays whole",
}
_OTHER_WORDS = {
    "lstm": "a recurrent layer stays whole",
    "gru": "a recurrent layer stays whole",
    "rnn_tanh": "a recurrent layer stays whole",
}


@dataclass
class NormNode:
    """A normalisation over neurons, as it was met."""

    node: fx.Node
    module: str
    weight: str
    axis: Axis
    dim: int
    sets: int
    centred: bool


@dataclass
class Reading:
    """What is known of a program while it is read, and the rules by which more becomes known.

    Attributes:
        model: The network, to look up which module owns a tensor.
        exported: The program.
        tensors: The state dict's name for every placeholder that is a parameter or a buffer.
        spaces: Sets of neurons.
        axes: For every value the axes along its dimensions, as far as they are known.
        lists: For operations that give several values, what is known of each.
        flow: How importance flows between values.
        activations: Operations that count as activations.
        slots: For every tensor of the network the axes along its dimensions.
        untracked: Dimensions of tensors that run along something that is no followed neuron.
        uses: The uses of every weight in one way: by its name and the dimension of its outputs.
        others: Why parts that are no layers stay whole.
        reshapes: Source lines that reshape neurons.
        varying: Values that depend on the input.
        norms: Normalisations over neurons.
    """

    model: nn.Module
    exported: ExportedProgram
    tensors: dict[str, str]
    spaces: Spaces = field(default_factory=Spaces)
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    lists: dict[fx.Node, list[tuple[Axes, dict[int, Flow]]]] = field(default_factory=dict)
    flow: dict[tuple[fx.Node, int], Flow] = field(default_factory=dict)
    activations: set[fx.Node] = field(default_factory=set)
    slots: dict[str, Axes] = field(default_factory=dict)
    untracked: set[tuple[str, int]] = field(default_factory=set)
    uses: dict[tuple[str, int], list[tuple[fx.Node, Use]]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, str] = field(default_factory=dict)
    reshapes: list[str] = field(default_factory=list)
    varying: set[fx.Node] = field(default_factory=set)
    norms: list[NormNode] = field(default_factory=list)

    def read_all(self) -> None:
        """Read the program from its inputs to its outputs."""
        inputs = set(self.exported.graph_signature.user_inputs)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self.varying.add(node)
            elif node.op == "placeholder" and node.name in self.tensors:
                self._read_tensor(node)
            elif node.op == "call_function":
                if any(argument in self.varying for argument in node.all_input_nodes):
                    self.varying.add(node)
                self._read(node)
            elif node.op == "output":
                for value in node.all_input_nodes:
                    self.refuse([value], OUTPUT)
        for name, dim in self.untracked:
            self.spaces.keep_whole(self.slots[name][dim], f'"{name}" also reads values that are no neurons')

    def _read_tensor(self, node: fx.Node) -> None:
        """Every dimension of a parameter or a buffer is an axis of its own, until it is seen to run along neurons."""
        name, value = self.tensors[node.name], node.meta["val"]
        if value.is_floating_point():
            if name not in self.slots:
                self.slots[name] = {dim: self.spaces.new(int(size)) for dim, size in enumerate(value.shape)}
            self.axes[node] = dict(self.slots[name])

    def _read(self, node: fx.Node) -> None:
        """Follow the axes through one operation."""
        name = operation(node)
        plain = name.rstrip("_")
        use = use_of(node)
        if use is not None and use.weight not in self.varying:
            self._layer(node, use)
            return
        if name == "getitem":
            self._item(node)
            return
        tracked = [argument for argument in node.all_input_nodes if self.axes.get(argument)]
        followed = [argument for argument in tracked if not self.is_weight(argument)]
        if name.startswith(("_assert", "sym_")) or name in ("_has_compatible_shallow_copy_type",):
            return  # a check that the trace added, of a dtype for example, or a size
        if not tracked:
            return
        rule = self._rule(name, plain, node)
        if rule is not None:
            rule(node, plain)
            return
        if not followed:
            self._note_other(node, name)
        self.refuse(tracked, self.words(node, name))

    def _rule(self, name: str, plain: str, node: fx.Node) -> Any:
        """The rule for an operation, or None."""
        named = {
            "batch_norm": self._batch_norm,
            "instance_norm": self._instance_norm,
            "layer_norm": self._layer_norm,
            "rms_norm": self._layer_norm,
            "group_norm": self._group_norm,
            "prelu": self._prelu,
            "expand": self._expand,
            "repeat": self._repeat,
            "repeat_interleave": self._repeat_interleave,
            "glu": self._glu,
            "cat": self._cat,
            "concat": self._cat,
            "stack": self._stack,
            "slice": self._slice,
            "narrow": self._slice,
            "select": self._select,
            "index": self._index,
            "index_select": self._index,
            "index_add": self._index_add,
            "pixel_shuffle": self._pixel_shuffle,
            "pixel_unshuffle": self._pixel_unshuffle,
            "pad": self._pad,
            "constant_pad_nd": self._pad,
        }
        if plain in named:
            return named[plain]
        if "dropout" in name:
            return self._dropout
        if plain in _PASSING:
            return self._pass
        if plain in _RESHAPING:
            return self._reshape
        if plain in {"permute", "transpose", "t", "swapaxes", "numpy_T", "movedim", "mT", "adjoint"}:
            return self._permute
        if plain in _SPLITTING:
            return self._split
        if plain in _ALONG:
            return self._along
        if plain in {"max", "min"} and isinstance(node.meta.get("val"), Tensor) and len(node.all_input_nodes) == 2:
            return self._pointwise
        if plain in _REDUCING:
            return self._reduce
        if _LOCAL.search(name):
            return self._local
        if is_pointwise(node.target):
            return self._pointwise
        return None

    # What every rule says of values.

    def put(
        self,
        node: fx.Node,
        dim: int,
        axis: Axis,
        parts: Iterable[Part],
        scale: Scale | None = None,
        *,
        joined: bool = False,
    ) -> None:
        """An axis lies along a dimension of a value, and importance comes from there."""
        self.axes.setdefault(node, {})[dim] = axis
        self.flow[node, dim] = Flow(tuple(parts), scale, joined)

    def move(self, node: fx.Node, source: fx.Node, dims: Mapping[int, int], why: str = "") -> None:
        """Axes of `source` lie along other dimensions of this value, unchanged; those without a place stay whole."""
        for dim, axis in self.axes.get(source, {}).items():
            if dim in dims:
                self.put(node, dims[dim], axis, [self.part(source, dim)])
            else:
                self.spaces.keep_whole(axis, why or self.words(node, operation(node)))

    def part(self, source: fx.Node, dim: int) -> Part:
        """All of a value."""
        return Part(source.name, dim, 0, int(shape_of(source)[dim]))

    def refuse(self, values: Iterable[fx.Node], reason: str, *, but: Sequence[int] = ()) -> None:
        """Keep whole what lies along the dimensions of values."""
        for value in values:
            for dim, axis in self.axes.get(value, {}).items():
                if dim not in but:
                    self.spaces.keep_whole(axis, reason)

    def words(self, node: fx.Node, name: str) -> str:
        """Say why an operation keeps neurons whole."""
        place, line = owner_of(node), user_line(node)
        words = _PLAIN_WORDS.get(name, f"they feed `{name}`" + (f' in "{place}"' if place else ""))
        return words + (f" at {line}" if line else "")

    def is_weight(self, node: Any) -> bool:
        """Whether a value is computed of parameters and buffers alone."""
        return isinstance(node, fx.Node) and node not in self.varying and bool(self.axes.get(node))

    def tie(self, node: fx.Node, one: Axis, other: Axis, why: str) -> None:
        """Let two axes stay together, or keep both whole where that cannot be said."""
        if not self.spaces.tie(one, other, why=why):
            for axis in (one, other):
                self.spaces.keep_whole(axis, why)

    def _note_other(self, node: fx.Node, name: str) -> None:
        """Say of weights that no rule is for that they stay whole."""
        for argument in node.all_input_nodes:
            if argument.name in self.tensors and self.axes.get(argument) and ndim_of(argument) > 1:
                words = _OTHER_WORDS.get(name, f"weights of `{name}` are not pruned")
                self.others[owner_of(node) or self.tensors[argument.name]] = words

    def _written(self, axis: Axis, node: fx.Node) -> None:
        """A width of these neurons may be written into the forward pass as a number."""
        line = source_line(node)
        self.reshapes.append(line)
        self.spaces.mark(axis, f"written:{line}")

    # Layers.

    def _layer(self, node: fx.Node, use: Use) -> None:
        base = self._base(use)
        tracked = [value for value in node.all_input_nodes if self.axes.get(value)]
        if base is None:
            self.others[owner_of(node) or node.name] = (
                "its weight is no parameter but computed in the forward pass: remove masks and parametrisations first"
            )
            self.refuse(tracked, "they feed a layer whose weight is computed in the forward pass")
            return
        weight, kind = base
        name, axes = self.tensors[weight.name], self.axes[weight]
        use = replace(use, kind=kind, weight=weight)
        grouped = isinstance(kind, Convolution) and kind.groups > 1 and not kind.transposed
        if grouped and kind.groups == shape_of(use.source)[use.dim]:
            self._depthwise(node, use)
            return
        read = self.axes.get(use.source, {}).get(use.dim % max(1, ndim_of(use.source)))
        made, inputs = axes[kind.weight_out], axes[kind.weight_in]
        if kind.groups > 1:
            why = "a grouped convolution reads them in parts of other sizes"
            if not kind.transposed:
                self._tie_parts(node, made, kind.groups, why)
            else:
                made = made * kind.groups
            if read is not None:
                part = self._tie_parts(node, read, kind.groups, why)
                read = self.spaces.resolve(read) if kind.transposed else part
        if read is None:
            self.untracked.add((name, kind.weight_in))
        else:
            self.tie(node, inputs, read, f'"{name}" also reads values that are no neurons')
        for dim, axis in self.axes.get(use.source, {}).items():
            if dim == use.dim:
                continue
            if isinstance(kind, Linear):  # it mixes along another axis; importance behind it is that of the data
                self.axes.setdefault(node, {})[dim] = axis
            else:
                self.spaces.keep_whole(axis, self.words(node, operation(node)))
        if use.bias is not None:
            self._bias(node, use.bias, made)
        self.axes.setdefault(node, {})[use.out_dim] = made
        self.uses[name, kind.weight_out].append((node, use))

    def _base(self, use: Use) -> tuple[fx.Node, Any] | None:
        """The parameter behind a weight, and the kind by which it is used; None for a computed weight."""
        weight, flipped = use.weight, False
        while weight.name not in self.tensors:
            if weight.op != "call_function":
                return None
            name = operation(weight)
            if name in {"t", "transpose", "numpy_T", "permute", "mT"} and ndim_of(weight) == 2:
                if name != "permute" or list(weight.args[1]) == [1, 0]:  # type: ignore[arg-type]
                    flipped = not flipped
            elif name not in {"detach", "alias"}:
                return None
            weight = as_node(weight.args[0])
        if not flipped:
            return weight, use.kind
        return (weight, replace(use.kind, weight_out=1 - use.kind.weight_out)) if isinstance(use.kind, Linear) else None

    def _bias(self, node: fx.Node, bias: fx.Node, made: Axis) -> None:
        axis = self.axes.get(bias, {}).get(ndim_of(bias) - 1)
        if axis is None or ndim_of(bias) != 1:
            self.spaces.keep_whole(made, "their bias is computed in the forward pass")
        else:
            self.tie(node, axis, made, "their bias is shared with other neurons")

    def _tie_parts(self, node: fx.Node, axis: Axis, count: int, why: str) -> Axis | None:
        """Let equal numbers go from equal parts of an axis; return the axis of one part."""
        parts = self.spaces.divided(axis, count)
        if parts is None:
            self.spaces.keep_whole(axis, why)
            return None
        for part in parts[1:]:
            self.tie(node, parts[0], part, why)
        return self.spaces.resolve(parts[0])

    def _depthwise(self, node: fx.Node, use: Use) -> None:
        """A convolution that keeps channels apart passes them on, each as so many outputs."""
        name, axes = self.tensors[use.weight.name], self.axes[use.weight]
        axis = self.axes.get(use.source, {}).get(use.dim)
        owner = self._module(node)
        others = [each for dim, each in self.axes.get(use.source, {}).items() if dim != use.dim]
        for each in others:
            self.spaces.keep_whole(each, self.words(node, operation(node)))
        if axis is None:
            self.spaces.keep_whole(axes[0], "a depthwise convolution reads the network's input")
            return
        if not isinstance(owner, nn.modules.conv._ConvNd):
            self.refuse([use.source], "they feed a depthwise convolution that belongs to no module")
            return
        block = int(shape_of(use.weight)[0]) // int(shape_of(use.source)[use.dim])
        out = widened(axis, block)
        self.tie(node, out, axes[0], f'"{name}" also reads values that are no neurons')
        if use.bias is not None:
            self._bias(node, use.bias, out)
        part = replace(self.part(use.source, use.dim), block=block)
        self.put(node, use.out_dim, self.spaces.resolve(out), [part], Scale(name))

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation belongs to."""
        owner = owner_of(node)
        try:
            return self.model.get_submodule(owner) if owner else None
        except AttributeError:
            return None

    # Normalisations.

    def _claim(self, node: fx.Node, tensors: Iterable[Any], axis: Axis, why: str) -> bool:
        """Tie tensors of shape (n,) to an axis; False where one is no parameter or buffer."""
        given = [tensor for tensor in tensors if tensor is not None]
        if not all(self.is_weight(tensor) for tensor in given):
            return False
        for tensor in given:
            self.tie(node, self.axes[tensor][ndim_of(tensor) - 1], axis, why)
        return True

    def _name(self, tensor: Any) -> str | None:
        """The state dict's name of a parameter."""
        return self.tensors.get(tensor.name) if isinstance(tensor, fx.Node) else None

    def _batch_norm(self, node: fx.Node, name: str) -> None:
        source, weight, bias, mean, variance = node.args[:5]
        source, why = (
            as_node(source),
            "a batch norm normalises them across another dimension or by the batch's own statistics",
        )
        axis = self.axes.get(source, {}).get(1)
        by_batch = mean is None or variance is None or bool(node.args[5])
        if axis is None or by_batch or not self._claim(node, (weight, bias, mean, variance), axis, why):
            self.refuse([source], why)
            return
        self.refuse([source], why, but=(1,))
        eps = node.args[7]
        assert isinstance(eps, float)
        self.put(node, 1, axis, [self.part(source, 1)], Scale(self._name(weight), self._name(variance), eps))

    def _instance_norm(self, node: fx.Node, name: str) -> None:
        source, tensors = as_node(node.args[0]), node.args[1:5]
        axis = self.axes.get(source, {}).get(1)
        if axis is None or not self._claim(node, tensors, axis, self.words(node, name)):
            self.refuse([source], self.words(node, name))
            return
        self.refuse([source], self.words(node, name), but=(1,))
        self.put(node, 1, axis, [self.part(source, 1)], Scale(self._name(tensors[0])))

    def _layer_norm(self, node: fx.Node, name: str) -> None:
        source, shape = as_node(node.args[0]), node.args[1]
        assert isinstance(shape, (list, tuple))
        weight = node.args[2] if len(node.args) > 2 else None
        bias = node.args[3] if len(node.args) > 3 and name == "layer_norm" else None
        ndim, why = ndim_of(source), self.words(node, name)
        last = ndim - 1
        module, kind = self._module(node), nn.LayerNorm if name == "layer_norm" else nn.RMSNorm
        for dim, axis in self.axes.get(source, {}).items():
            if dim < ndim - len(shape):
                self.put(node, dim, axis, [self.part(source, dim)])
                continue
            self.put(node, dim, axis, [self.part(source, dim)], Scale(self._name(weight)) if len(shape) == 1 else None)
            stock = is_stock(module, kind)
            gain = self._name(weight)
            if len(shape) > 1 or not stock or gain is None or not self._claim(node, (weight, bias), axis, why):
                self.spaces.keep_whole(axis, why)
                continue
            self.spaces.mark(axis, "normed")
            self.norms.append(NormNode(node, owner_of(node), gain, axis, last, 1, name == "layer_norm"))

    def _group_norm(self, node: fx.Node, name: str) -> None:
        source, sets = as_node(node.args[0]), node.args[1]
        assert isinstance(sets, int)
        weight, bias = (node.args[index] if len(node.args) > index else None for index in (2, 3))
        axis, why = self.axes.get(source, {}).get(1), self.words(node, name)
        self.refuse([source], why, but=(1,))
        if axis is None:
            return
        module, gain = self._module(node), self._name(weight)
        stock = is_stock(module, nn.GroupNorm)
        self.put(node, 1, axis, [self.part(source, 1)], Scale(gain))
        if not stock or gain is None or not self._claim(node, (weight, bias), axis, why):
            self.spaces.keep_whole(axis, why)
            return
        self._tie_parts(node, axis, sets, why)
        self.norms.append(NormNode(node, owner_of(node), gain, axis, 1, sets, centred=True))

    def _prelu(self, node: fx.Node, name: str) -> None:
        source, weight = as_node(node.args[0]), as_node(node.args[1])
        axes, why = self.axes.get(source, {}), self.words(node, name)
        if not self.is_weight(weight) or not axes:
            self.refuse([source, weight], why)
            return
        self.move(node, source, {dim: dim for dim in axes})
        if weight.meta["val"].numel() > 1:
            if 1 not in axes:
                self.refuse([source], why)
            else:
                self.tie(node, self.axes[weight][0], axes[1], why)
        self.activations.add(node)

    # Operations that leave axes where they are.

    def _pass(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        self.move(node, source, {dim: dim for dim in self.axes.get(source, {})})

    def _dropout(self, node: fx.Node, name: str) -> None:
        if bool(node.args[2]):
            self.refuse([as_node(node.args[0])], f"`{operation(node)}` drops them in evaluation mode, too")
        else:
            self._pass(node, name)

    def _local(self, node: fx.Node, name: str) -> None:
        """Pooling, resampling and padding of positions: the leading dimensions stay."""
        found = _LOCAL.search(name)
        assert found is not None
        source = as_node(node.args[0])
        leading = ndim_of(source) - int(found.group(2))
        self._give(node, source, {dim: dim for dim in range(leading)})

    def _give(self, node: fx.Node, source: fx.Node, dims: Mapping[int, int]) -> None:
        """`move`, for an operation that may give several values of one shape."""
        if isinstance(node.meta.get("val"), Tensor):
            self.move(node, source, dims)
            return
        axes: Axes = {}
        for dim, axis in self.axes.get(source, {}).items():
            if dim in dims:
                axes[dims[dim]] = axis
            else:
                self.spaces.keep_whole(axis, self.words(node, operation(node)))
        back = {new: dim for dim, new in dims.items()}
        flow = {dim: Flow((self.part(source, back[dim]),)) for dim in axes}
        self.lists[node] = [(axes, flow)] * len(node.meta.get("val") or ())

    def _along(self, node: fx.Node, name: str) -> None:
        """Softmax, sorting and the like: what lies along their dimension stays whole."""
        source = as_node(node.args[0])
        ndim, index = ndim_of(source), 2 if name in {"topk", "roll"} else 1
        given: Any = node.args[index] if len(node.args) > index else node.kwargs.get("dim", node.kwargs.get("dims", -1))
        gone = {int(dim) % ndim for dim in (given if isinstance(given, (list, tuple)) else [given])}
        self._give(node, source, {dim: dim for dim in range(ndim) if dim not in gone})

    def _reduce(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        ndim = ndim_of(source)
        index = 2 if name in {"linalg_vector_norm", "norm"} else 1
        dims: Any = node.args[index] if len(node.args) > index else node.kwargs.get("dim")
        given = dims if isinstance(dims, (list, tuple)) else [dims]
        gone = {int(dim) % ndim for dim in given if isinstance(dim, int)} or set(range(ndim))
        value = node.meta.get("val")
        shape = value.shape if isinstance(value, Tensor) else value[0].shape if value else ()
        keeps = len(shape) == ndim
        dims = {
            dim: dim if keeps else dim - sum(other < dim for other in gone) for dim in range(ndim) if dim not in gone
        }
        self._give(node, source, dims)

    def _pointwise(self, node: fx.Node, name: str) -> None:
        """Elementwise operations: neurons that meet here stay together; a tensor along them is narrowed with them."""
        ndim, shape = ndim_of(node), shape_of(node)
        operands = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]
        followed = [each for each in operands if self.axes.get(each) and not self.is_weight(each)]
        for dim in range(ndim):
            tracked: list[tuple[fx.Node, int]] = []
            strangers: list[fx.Node] = []
            for each in operands:
                own = dim - ndim + ndim_of(each)
                if own < 0:
                    continue
                size, known = shape_of(each)[own], own in self.axes.get(each, {})
                if size != shape[dim]:
                    if known and not self.is_weight(each):
                        self.refuse([each], f"`{name}` combines them across dimensions")
                elif known and not (size == 1 and self.is_weight(each)):
                    tracked.append((each, own))
                elif size != 1:
                    strangers.append(each)
            if tracked:
                self._meet(node, name, dim, tracked, strangers)
        for each in operands:
            scalar = each in self.varying and all(size == 1 for size in shape_of(each))
            if scalar and not self.axes.get(each):
                self.refuse(followed, f"`{name}` combines them with a value that is no neuron's own")
            elif each in self.varying and not self.axes.get(each):
                for value in followed:
                    for axis in self.axes[value].values():
                        self.spaces.mark(axis, "varying")
        if name not in _ARITHMETIC and len(followed) == 1:
            self.activations.add(node)

    def _meet(
        self, node: fx.Node, name: str, dim: int, tracked: list[tuple[fx.Node, int]], strangers: list[fx.Node]
    ) -> None:
        """Axes along one dimension of an elementwise operation."""
        values = [(each, own) for each, own in tracked if not self.is_weight(each)]
        first, own = tracked[0]
        axis = self.axes[first][own]
        why = f"`{name}` combines them with a value that is no neuron's own"
        if strangers:
            for each, place in tracked:
                self.spaces.keep_whole(self.axes[each][place], why)
        for each, place in tracked[1:]:
            self.tie(node, axis, self.axes[each][place], why)
        if name in {"add", "sub", "rsub"} and len(values) > 1:
            self.spaces.mark(axis, "added")
        gain = next(
            (self._name(each) for each, place in tracked if place == 0 and self.is_weight(each) and name == "mul"), None
        )
        parts = [self.part(each, place) for each, place in values]
        if not values and strangers:
            return  # a parameter met the data: its entries are no neurons
        parts += [self.part(each, dim - ndim_of(node) + ndim_of(each)) for each in strangers if each in self.varying]
        self.put(node, dim, self.spaces.resolve(axis), parts, Scale(gain) if gain else None)

    # Operations that move, cut or join axes.

    def _reshape(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        before, after = shape_of(source), shape_of(node)
        if name in _WRITTEN and not self.is_weight(source):
            for dim, known in self.axes.get(source, {}).items():
                if shape_of(source)[dim] != 1:
                    self._written(known, node)
        for old, new in _matching(sizes_of(source), sizes_of(node)):
            for dim in old:
                axis = self.axes.get(source, {}).get(dim)
                if axis is None:
                    continue
                found = self._reshaped(node, dim, axis, old, new, before, after)
                if found is None:
                    self.spaces.keep_whole(axis, f"`{operation(node)}` mixes them with another dimension")
                else:
                    place, moved, part = found
                    if place in self.axes.get(node, {}):  # two axes have become one
                        for each in (moved, self.axes[node][place]):
                            self.spaces.keep_whole(each, f"`{operation(node)}` mixes them with another dimension")
                    elif part is None:
                        self.axes.setdefault(node, {})[place] = moved
                    else:
                        self.put(node, place, moved, [part])

    def _reshaped(
        self,
        node: fx.Node,
        dim: int,
        axis: Axis,
        old: Sequence[int],
        new: Sequence[int],
        before: Sequence[int | str],
        after: Sequence[int | str],
    ) -> tuple[int, Axis, Part | None] | None:
        """Where an axis lies, and what importance comes from (None: the data) when some dimensions have become some others."""
        part = self.part(as_node(node.args[0]), dim)
        wide_old = [each for each in old if before[each] != 1 or each == dim]
        wide_new = [each for each in new if after[each] != 1]
        if len(wide_old) == 1:
            if before[dim] == 1:
                return (new[0], axis, part) if len(new) == 1 else None
            if len(wide_new) == 1:
                return wide_new[0], axis, part
            return self._unfolded(node, axis, wide_new, after, part)
        if len(wide_new) == 1 and all(isinstance(before[each], int) for each in wide_old if each != dim):
            position = wide_old.index(dim)
            repeat = math.prod(int(before[each]) for each in wide_old[:position])
            block = math.prod(int(before[each]) for each in wide_old[position + 1 :])
            if repeat <= 4096:
                return wide_new[0], widened(axis, block) * repeat, replace(part, block=block, repeat=repeat)
        return None

    def _unfolded(
        self, node: fx.Node, axis: Axis, new: Sequence[int], after: Sequence[int | str], part: Part
    ) -> tuple[int, Axis, Part | None] | None:
        """An axis of blocks, or one that repeats itself, falls into dimensions again."""
        sizes = [int(after[each]) for each in new if isinstance(after[each], int)]
        if len(sizes) != len(new):
            return None
        axis = self.spaces.resolve(axis)
        inner = math.prod(sizes[1:])
        if all(segment.block % inner == 0 for segment in axis):
            moved = tuple(Segment(segment.space, segment.width, segment.block // inner) for segment in axis)
            return new[0], moved, part
        period, rest = divmod(len(axis), sizes[0])
        if len(sizes) == 2 and not rest and axis == axis[:period] * sizes[0]:
            return new[1], axis[:period], part
        if len(sizes) == 2 and sizes[0] < sizes[1]:  # equal parts, each along the longer dimension
            half = self._tie_parts(node, axis, sizes[0], self.words(node, operation(node)))
            return None if half is None else (new[1], half, None)
        return None

    def _permute(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        ndim = ndim_of(source)
        order = list(range(ndim))
        if name == "permute":
            given: Any = node.args[1]
            order = [int(dim) % ndim for dim in given]
        elif name == "movedim":
            moved, targets = (_dims(argument, ndim) for argument in node.args[1:3])
            order = [dim for dim in order if dim not in moved]
            for target, dim in sorted(zip(targets, moved, strict=True)):
                order.insert(target, dim)
        elif name == "numpy_T":
            order.reverse()
        elif ndim > 1:
            swapped = node.args[1:3] if name in {"transpose", "swapaxes"} else (ndim - 2, ndim - 1)
            one, other = (_dims(dim, ndim)[0] for dim in swapped)
            order[one], order[other] = order[other], order[one]
        self.move(node, source, {dim: order.index(dim) for dim in range(ndim)})

    def _expand(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        added = ndim_of(node) - ndim_of(source)
        same = {
            dim: dim + added for dim in range(ndim_of(source)) if shape_of(node)[dim + added] == shape_of(source)[dim]
        }
        self.move(node, source, same, "`expand` repeats them")

    def _repeat(self, node: fx.Node, name: str) -> None:
        source, counts = as_node(node.args[0]), node.args[1]
        assert isinstance(counts, (list, tuple))
        added = ndim_of(node) - ndim_of(source)
        for dim, axis in self.axes.get(source, {}).items():
            count = counts[dim + added]
            if isinstance(count, int):
                self.put(node, dim + added, axis * count, [replace(self.part(source, dim), repeat=count)])
            else:
                self.spaces.keep_whole(axis, self.words(node, name))

    def _repeat_interleave(self, node: fx.Node, name: str) -> None:
        source, count = as_node(node.args[0]), node.args[1]
        along = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
        for dim, axis in self.axes.get(source, {}).items():
            if not isinstance(along, int):
                self.spaces.keep_whole(axis, self.words(node, name))
            elif dim != along % ndim_of(source):
                self.put(node, dim, axis, [self.part(source, dim)])
            elif isinstance(count, int):
                self.put(node, dim, widened(axis, count), [replace(self.part(source, dim), block=count)])
            else:
                self.spaces.keep_whole(axis, self.words(node, name))

    def _glu(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        along: Any = node.args[1] if len(node.args) > 1 else -1
        along %= ndim_of(source)
        for dim, axis in self.axes.get(source, {}).items():
            if dim != along:
                self.put(node, dim, axis, [self.part(source, dim)])
                continue
            half = self._tie_parts(node, axis, 2, self.words(node, name))
            size = size_of(axis) // 2
            parts = [Part(source.name, dim, 0, size), Part(source.name, dim, size, 2 * size)]
            self.axes.setdefault(node, {})
            if half is not None:
                self.put(node, dim, half, parts)
        self.activations.add(node)

    def _cat(self, node: fx.Node, name: str) -> None:
        given: Any = node.args[0]
        values = [as_node(each) for each in given if ndim_of(as_node(each)) == ndim_of(node)]
        along: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        along %= ndim_of(node)
        self._meet_beside(node, name, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})
        sizes = [shape_of(each)[along] for each in values]
        if any(along in self.axes.get(each, {}) for each in values) and all(isinstance(size, int) for size in sizes):
            axes = [
                self.axes.get(each, {}).get(along) or (Segment(None, int(size)),)
                for each, size in zip(values, sizes, strict=True)
            ]
            parts = [self.part(each, along) for each in values]
            self.put(node, along, joined(axes), parts, joined=True)

    def _stack(self, node: fx.Node, name: str) -> None:
        given: Any = node.args[0]
        values = [as_node(each) for each in given]
        along: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        along %= ndim_of(node)
        self._meet_beside(node, name, values, {dim: dim + (dim >= along) for dim in range(ndim_of(values[0]))})

    def _meet_beside(self, node: fx.Node, name: str, values: list[fx.Node], dims: Mapping[int, int]) -> None:
        """Values that come to lie beside each other: their axes along other dimensions are one."""
        why = f"`{name}` puts them beside a value that is no neuron's own"
        for dim, place in dims.items():
            tracked = [each for each in values if dim in self.axes.get(each, {})]
            if not tracked:
                continue
            axis = self.axes[tracked[0]][dim]
            for each in tracked[1:]:
                self.tie(node, axis, self.axes[each][dim], why)
            if any(each not in tracked for each in values):
                self.spaces.keep_whole(axis, why)
            parts = [self.part(each, dim) for each in values]
            self.put(node, place, self.spaces.resolve(axis), parts)

    def _slice(self, node: fx.Node, name: str) -> None:
        source, arguments = as_node(node.args[0]), list(node.args[1:])
        along: Any = arguments[0] if arguments else node.kwargs.get("dim", 0)
        along %= ndim_of(source)
        size = shape_of(source)[along]
        start: Any = arguments[1] if len(arguments) > 1 else node.kwargs.get("start")
        stop: Any = arguments[2] if len(arguments) > 2 else node.kwargs.get("end")
        step = arguments[3] if len(arguments) > 3 else node.kwargs.get("step", 1)
        for dim, axis in self.axes.get(source, {}).items():
            if dim != along:
                self.put(node, dim, axis, [self.part(source, dim)])
                continue
            cut = None
            if isinstance(size, int) and isinstance(start, int | None) and isinstance(stop, int | None) and step == 1:
                first = start or 0
                last = first + (stop or 0) if name == "narrow" else size if stop is None else stop
                first, last = (min(size, max(0, each + size if each < 0 else each)) for each in (first, last))
                cut = self.spaces.cut(axis, first, last)
                if cut:
                    self.put(node, dim, cut, [Part(source.name, dim, first, last)])
                    self._written(axis, node)
            if not cut:
                self.spaces.keep_whole(axis, self.words(node, name))

    def _select(self, node: fx.Node, name: str) -> None:
        source = as_node(node.args[0])
        along: Any = node.args[1]
        along %= ndim_of(source)
        self.move(node, source, {dim: dim - (dim > along) for dim in range(ndim_of(source)) if dim != along})

    def _split(self, node: fx.Node, name: str) -> None:
        source, given = as_node(node.args[0]), node.args[1] if len(node.args) > 1 else None
        position = 1 if name == "unbind" else 2
        along: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        along %= ndim_of(source)
        items = node.meta.get("val")
        taken = [user.args[1] for user in node.users if operation(user) == "getitem"]
        count = len(items) if items else 1 + max((index for index in taken if isinstance(index, int)), default=0)
        found: list[tuple[Axes, dict[int, Flow]]] = [({}, {}) for _ in range(count)]
        sizes = self._split_sizes(node, name, given, shape_of(source)[along])
        for dim, axis in self.axes.get(source, {}).items():
            start = 0
            if dim == along and sizes is not None and len(sizes) > 1 and len(set(sizes)) == 1:
                self._tie_parts(node, axis, len(sizes), self.words(node, name))  # pieces that are equal have to stay so
            for number, (axes, flow) in enumerate(found):
                if dim != along:
                    place = dim - (name == "unbind" and dim > along)
                    axes[place], flow[place] = axis, Flow((self.part(source, dim),))
                    continue
                cut = None
                if sizes is not None and number < len(sizes):
                    cut = self.spaces.cut(axis, start, start + sizes[number])
                if not cut:
                    self.spaces.keep_whole(axis, self.words(node, name))
                    continue
                assert sizes is not None
                if name != "chunk":
                    self._written(axis, node)
                axes[dim] = cut
                flow[dim] = Flow((Part(source.name, dim, start, start + sizes[number]),))
                start += sizes[number]
        self.lists[node] = found

    @staticmethod
    def _split_sizes(node: fx.Node, name: str, given: Any, size: int | str) -> list[int] | None:
        """The sizes of the pieces along the dimension that is cut, or None where they are not known."""
        if not isinstance(size, int) or name == "unbind":
            return None
        if isinstance(given, (list, tuple)):
            return (
                [int(each) for each in given]
                if all(isinstance(each, int) for each in given) and name != "tensor_split"
                else None
            )
        if not isinstance(given, int):
            return None
        piece = given if name == "split" else -(-size // given)
        if name == "tensor_split" and size % given:
            return None
        return [min(piece, size - start) for start in range(0, size, piece)]

    def _item(self, node: fx.Node) -> None:
        source, index = as_node(node.args[0]), node.args[1]
        if source in self.lists and isinstance(index, int) and index < len(self.lists[source]):
            axes, flow = self.lists[source][index]
            for dim, axis in axes.items():
                self.axes.setdefault(node, {})[dim] = self.spaces.resolve(axis)
                self.flow[node, dim] = flow[dim]

    def _index(self, node: fx.Node, name: str) -> None:
        """Entries taken by an index of integers or booleans along other dimensions."""
        source = as_node(node.args[0])
        ndim, given = ndim_of(source), node.args[1]
        if name == "index_select":
            assert isinstance(given, int)
            self.move(node, source, {dim: dim for dim in range(ndim) if dim != given % ndim})
            return
        assert isinstance(given, (list, tuple))
        indexed = [dim for dim, index in enumerate(given) if index is not None]
        together = indexed == list(range(indexed[0], indexed[-1] + 1)) if indexed else False
        if not together:
            self.refuse([source], self.words(node, name))
            return
        shift = ndim_of(node) - ndim
        self.move(
            node,
            source,
            {dim: dim + (shift if dim > indexed[-1] else 0) for dim in range(ndim) if dim not in indexed},
        )

    def _index_add(self, node: fx.Node, name: str) -> None:
        """Rows added to a table: beside the table's dimension, both have one axis."""
        table, along, added = as_node(node.args[0]), node.args[1], as_node(node.args[3])
        assert isinstance(along, int)
        along %= ndim_of(node)
        empty = operation(table) in {"zeros", "new_zeros", "zeros_like"}
        values = [added] if empty and not self.axes.get(table) else [table, added]
        self.refuse([each for each in values if along in self.axes.get(each, {})], self.words(node, name))
        self._meet_beside(node, name, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})

    def _pixel_shuffle(self, node: fx.Node, name: str) -> None:
        """Runs of r * r channels become one channel of r times as many rows and columns."""
        source, factor = as_node(node.args[0]), node.args[1]
        assert isinstance(factor, int)
        dim = ndim_of(source) - 3
        self.refuse([source], self.words(node, name), but=(dim,))
        axis = self.axes.get(source, {}).get(dim)
        if axis is not None:
            made = self.spaces.new(size_of(axis) // factor**2)
            self.tie(node, axis, widened(made, factor**2), self.words(node, name))
            self.axes.setdefault(node, {})[dim] = self.spaces.resolve(made)  # importance is that of the data

    def _pixel_unshuffle(self, node: fx.Node, name: str) -> None:
        source, factor = as_node(node.args[0]), node.args[1]
        assert isinstance(factor, int)
        dim = ndim_of(source) - 3
        self.refuse([source], self.words(node, name), but=(dim,))
        axis = self.axes.get(source, {}).get(dim)
        if axis is not None:
            part = replace(self.part(source, dim), block=factor**2)
            self.put(node, dim, widened(axis, factor**2), [part])

    def _pad(self, node: fx.Node, name: str) -> None:
        source, pads = as_node(node.args[0]), node.args[1]
        assert isinstance(pads, (list, tuple))
        ndim = ndim_of(source)
        for dim, axis in self.axes.get(source, {}).items():
            place = 2 * (ndim - 1 - dim)
            before, after = pads[place : place + 2] if place + 1 < len(pads) else (0, 0)
            if not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
                self.spaces.keep_whole(axis, self.words(node, name))
            elif not before and not after:
                self.put(node, dim, axis, [self.part(source, dim)])
            else:
                sides = [(Segment(None, size),) if size else () for size in (before, after)]
                self.axes.setdefault(node, {})[dim] = joined([sides[0], axis, sides[1]])


def is_stock(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether a module does what one of torch's classes does, and nothing else."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)


def _dims(given: Any, ndim: int) -> list[int]:
    return [int(dim) % ndim for dim in (given if isinstance(given, (list, tuple)) else [given])]


def _matching(before: Sequence[Any], after: Sequence[Any]) -> Iterable[tuple[list[int], list[int]]]:
    """Pair runs of dimensions that hold the same entries before and after a reshape."""
    heads = [[math.prod(shape[:index]) for index in range(len(shape) + 1)] for shape in (before, after)]
    tails = [[math.prod(shape[index:]) for index in range(len(shape) + 1)] for shape in (before, after)]
    i = j = 0
    while i < len(before) or j < len(after):
        ends = sorted(
            ((one, other) for one in range(i + 1, len(before) + 1) for other in range(j + 1, len(after) + 1)), key=sum
        )
        one, other = next(
            (
                (one, other)
                for one, other in ends
                if heads[0][one] == heads[1][other] or tails[0][one] == tails[1][other]
            ),
            (len(before), len(after)),
        )
        if math.prod(before[one:]) == 1 == math.prod(after[other:]):
            one, other = len(before), len(after)  # dimensions of one entry at the end belong to the last run
        yield list(range(i, one)), list(range(j, other))
        i, j = one, other
