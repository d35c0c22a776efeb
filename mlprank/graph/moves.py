"""What is known of a program while it is read, and how axes go through operations that move, cut or join them."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mlprank.graph.axes import Axis, Segment, Spaces, size_of, widened
from mlprank.graph.layers import Use
from mlprank.graph.program import as_node, ndim_of, operation, owner_of, shape_of, source_line, user_line
from mlprank.graph.records import Flow, Norm, Part, Scale

Axes = dict[int, Axis]
Arguments = dict[str, Any]

_WRITTEN = {"view", "reshape", "_unsafe_view", "unflatten"}
_WORDS = {
    "scaled_dot_product_attention": "they are attention heads, which stay whole",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh"), "a recurrent layer reads them, which stays whole"),
}


class Reading:
    """What is known of a program while it is read, and the rules by which more becomes known.

    A rule takes an operation, its first argument, and all of its arguments by name.
    """

    def __init__(self, model: nn.Module, exported: ExportedProgram) -> None:
        signature = exported.graph_signature
        self.model, self.exported, self.spaces = model, exported, Spaces()
        # The state dict's name for every placeholder that is a parameter or a buffer.
        self.tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        # For every value, and every tensor of the network, the axes along its dimensions, as far as they are known.
        self.axes: defaultdict[fx.Node, Axes] = defaultdict(dict)
        self.slots: dict[str, Axes] = {}
        self.flow: dict[tuple[fx.Node, int], Flow] = {}
        self.activations: set[fx.Node] = set()
        self.varying: set[fx.Node] = set()  # values that depend on the input
        # Dimensions of tensors that run along something that is no followed neuron.
        self.untracked: set[tuple[str, int]] = set()
        # The uses of every weight in one way: by its name and the dimension of its outputs.
        self.uses: dict[tuple[str, int], list[tuple[fx.Node, Use]]] = defaultdict(list)
        self.others: dict[str, str] = {}  # why parts that are no layers stay whole
        self.reshapes: list[str] = []  # source lines that reshape neurons
        self.norms: list[Norm] = []

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
        name, place, line = operation(node).rstrip("_"), owner_of(node), user_line(node)
        words = _WORDS.get(name, f"they feed `{name}`" + (f' in "{place}"' if place else ""))
        return words + (f" at {line}" if line else "")

    def is_weight(self, node: Any) -> bool:
        """Whether a value is computed of parameters and buffers alone."""
        return isinstance(node, fx.Node) and node not in self.varying and bool(self.axes[node])

    def tie(self, one: Axis, other: Axis, why: str) -> None:
        """Let two axes stay together, or keep both whole where that cannot be said."""
        if not self.spaces.tie(one, other, why=why):
            self.spaces.keep_whole(one + other, why)

    def tie_parts(self, axis: Axis, count: int, why: str) -> Axis | None:
        """Let equal numbers go from equal parts of an axis; return the axis of one part."""
        parts = self.spaces.divided(axis, count)
        if parts is None:
            self.spaces.keep_whole(axis, why)
            return None
        for part in parts[1:]:
            self.tie(parts[0], part, why)
        return self.spaces.resolve(parts[0])

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation belongs to."""
        owner = owner_of(node)
        try:
            return self.model.get_submodule(owner) if owner else None
        except AttributeError:
            return None

    def _written(self, axis: Axis, node: fx.Node) -> None:
        """A width of these neurons may be written into the forward pass as a number."""
        line = source_line(node)
        self.reshapes.append(line)
        self.spaces.mark(axis, f"written:{line}")

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
        if operation(node) in _WRITTEN and not self.is_weight(source):
            for dim, axis in self.axes[source].items():
                if shape_of(source)[dim] != 1:
                    self._written(axis, node)
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
            half = self.tie_parts(axis, sizes[0], self.words(node))
            return None if half is None else (wide[1], half, ())
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
        half = None if axis is None else self.tie_parts(axis, 2, self.words(node))
        if half is not None:
            size = size_of(half)
            self.put(node, dim, half, [Part(source.name, dim, start, start + size) for start in (0, size)])
        self.activations.add(node)

    def _cat(self, node: fx.Node, source: Sequence[fx.Node], given: Arguments) -> None:
        values = [each for each in source if ndim_of(each) == ndim_of(node)]
        along = given["dim"] % ndim_of(node)
        self._meet_beside(node, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})
        sizes = [shape_of(each)[along] for each in values]
        if any(along in self.axes[each] for each in values) and all(isinstance(size, int) for size in sizes):
            axes = [
                self.axes[each].get(along) or (Segment(None, size),) for each, size in zip(values, sizes, strict=True)
            ]
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
                self.tie(axes[0], axis, why)
            if len(axes) < len(values):
                self.spaces.keep_whole(axes[0], why)
            self.put(node, place, self.spaces.resolve(axes[0]), [self.part(each, dim) for each in values])

    def _slice(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        dim = given["dim"] % ndim_of(source)
        axis, size = self.rest(node, source, dim), shape_of(source)[dim]
        start, length = given["start"], given.get("length", 0)
        if axis is None:
            return
        known = all(isinstance(each, int | None) for each in (size, start, given.get("end"), length))
        if known and given.get("step", 1) == 1:
            stop = start + length if "length" in given else given["end"]
            start, stop, _ = slice(start, stop).indices(size)
            if cut := self.spaces.cut(axis, start, stop):
                self.put(node, dim, cut, [Part(source.name, dim, start, stop)])
                self._written(axis, node)
                return
        self.spaces.keep_whole(axis, self.words(node))

    def _split(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        dim, name = given["dim"] % ndim_of(source), operation(node)
        axis = self.rest(node, source, dim)
        if axis is None:
            return
        sizes = [piece.shape[dim] for piece in node.meta["val"]]
        known = all(isinstance(size, int) for size in sizes)
        equal = known and len(set(sizes)) == 1
        if not known or (name == "tensor_split" and not equal):
            self.spaces.keep_whole(axis, self.words(node))
            return
        if equal and len(sizes) > 1:
            self.tie_parts(axis, len(sizes), self.words(node))  # pieces that are equal have to stay so
        for piece in _results(node):
            start, size = sum(sizes[: piece.args[1]]), sizes[piece.args[1]]  # type: ignore[index]
            if cut := self.spaces.cut(axis, start, start + size):
                self.put(piece, dim, cut, [Part(source.name, dim, start, start + size)])
                if name != "chunk":
                    self._written(axis, node)
            else:
                self.spaces.keep_whole(axis, self.words(node))

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
            self.tie(axis, widened(made, block), self.words(node))
            self.put(node, dim, self.spaces.resolve(made))

    def _pad(self, node: fx.Node, source: fx.Node, given: Arguments) -> None:
        for dim, axis in self.axes[source].items():
            sides = [*given["pad"], *[0] * 2 * ndim_of(source)][2 * (ndim_of(source) - 1 - dim) :][:2]
            if not all(isinstance(side, int) and side >= 0 for side in sides):
                self.spaces.keep_whole(axis, self.words(node))
            elif any(sides):
                before, after = ((Segment(None, side),) if side else () for side in sides)
                self.put(node, dim, (*before, *axis, *after))
            else:
                self.put(node, dim, axis, [self.part(source, dim)])


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
