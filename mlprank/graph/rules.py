"""Read a network into its graph of neurons, by following every value of the traced program.

`torch.export` gives one node per operation. A dimension of a value *carries neurons* when an axis
(`mlprank.graph.axes`) is known along it; so does every dimension of every parameter. The rules below say, by family of
operation, where the axes are afterwards: axes that meet entry by entry are tied, and an operation without a rule keeps
whole what it reads, with its name as the reason.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from mlprank.graph.axes import Axis, widened
from mlprank.graph.layers import Convolution, Linear, Use, use_of
from mlprank.graph.moves import Reading
from mlprank.graph.program import as_node, is_pointwise, ndim_of, operation, owner_of, shape_of
from mlprank.graph.records import Norm, Scale

OUTPUT = "its neurons are outputs of the network"

_PASSING = {
    "detach", "alias", "contiguous", "clone", "to", "_to_copy", "lift_fresh", "lift_fresh_copy", "identity",
    "type_as", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
}  # fmt: skip
_RESHAPING = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
}  # fmt: skip
_TRANSPOSING = {"permute", "transpose", "t", "swapaxes", "numpy_T", "movedim", "mT", "adjoint"}
_REDUCING = {
    "mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "logsumexp", "argmax", "argmin", "any", "all",
    "linalg_vector_norm", "norm", "median", "count_nonzero",
}  # fmt: skip
_ALONG = {
    "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "topk", "flip",
    "roll",
}  # fmt: skip
_SPLITTING = {"chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
_SCALING = {"mul", "div", "where", "masked_fill"}
"""What these make of 0 and another value is 0."""
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "neg"}
_LOCAL = re.compile(r"(pool|upsample|grid_sampler|interpolate|reflection_pad|replication_pad).*?([123])d")
_RECURRENT = ("lstm", "gru", "rnn_tanh")


@dataclass
class Rules(Reading):
    """Rules for layers, normalisations and operations that leave axes where they are, besides those that move them."""

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
            "pixel_unshuffle": self._pixel_shuffle,
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
        if plain in _TRANSPOSING:
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

    def _note_other(self, node: fx.Node, name: str) -> None:
        """Say of weights that no rule is for that they stay whole."""
        for argument in node.all_input_nodes:
            if argument.name in self.tensors and self.axes.get(argument) and ndim_of(argument) > 1:
                words = "a recurrent layer stays whole" if name in _RECURRENT else f"weights of `{name}` are not pruned"
                self.others[owner_of(node) or self.tensors[argument.name]] = words

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
            self.norms.append(Norm(node.name, owner_of(node), gain, axis, last, 1, name == "layer_norm"))

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
        self.norms.append(Norm(node.name, owner_of(node), gain, axis, 1, sets, centred=True))

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
                along = [each for each, _ in tracked]
                if any(each in self.varying and each not in along for each in operands):
                    for each, own in tracked:
                        self.spaces.mark(self.axes[each][own], "varying" if name in _SCALING else "moved")
                self._meet(node, name, dim, tracked, strangers)
        for each in operands:
            scalar = each in self.varying and all(size == 1 for size in shape_of(each))
            if scalar and not self.axes.get(each):
                self.refuse(followed, f"`{name}` combines them with a value that is no neuron's own")
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


def is_stock(module: nn.Module | None, *classes: type[nn.Module]) -> bool:
    """Whether a module does what one of torch's classes does, and nothing else."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in classes)
