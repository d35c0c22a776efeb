"""What is known of a program while it is read, and how axes go through operations that move, cut or join them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mlprank.graph.axes import Axis, Segment, Spaces, joined, size_of, widened
from mlprank.graph.layers import Use
from mlprank.graph.program import as_node, ndim_of, operation, owner_of, shape_of, sizes_of, source_line, user_line
from mlprank.graph.records import Flow, Norm, Part, Scale

Axes = dict[int, Axis]

_WRITTEN = {"view", "reshape", "_unsafe_view", "unflatten"}
_PLAIN_WORDS = {
    "scaled_dot_product_attention": "they are attention heads, which stay whole",
    "lstm": "a recurrent layer reads them, which stays whole",
    "gru": "a recurrent layer reads them, which stays whole",
    "rnn_tanh": "a recurrent layer reads them, which stays whole",
}


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
    norms: list[Norm] = field(default_factory=list)

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

    def _written(self, axis: Axis, node: fx.Node) -> None:
        """A width of these neurons may be written into the forward pass as a number."""
        line = source_line(node)
        self.reshapes.append(line)
        self.spaces.mark(axis, f"written:{line}")

    def _tie_parts(self, node: fx.Node, axis: Axis, count: int, why: str) -> Axis | None:
        """Let equal numbers go from equal parts of an axis; return the axis of one part."""
        parts = self.spaces.divided(axis, count)
        if parts is None:
            self.spaces.keep_whole(axis, why)
            return None
        for part in parts[1:]:
            self.tie(node, parts[0], part, why)
        return self.spaces.resolve(parts[0])

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
        """Where an axis lies, and what importance comes from (None: the data), behind a reshape."""
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
        """An axis of blocks, or one that repeats itself, falls into dimensions again; its entries are others then."""
        sizes = [int(after[each]) for each in new if isinstance(after[each], int)]
        if len(sizes) != len(new):
            return None
        axis = self.spaces.resolve(axis)
        inner = math.prod(sizes[1:])
        if all(segment.block % inner == 0 for segment in axis):
            moved = tuple(Segment(segment.space, segment.width, segment.block // inner) for segment in axis)
            return new[0], moved, part if inner == 1 else None
        period, rest = divmod(len(axis), sizes[0])
        if len(sizes) == 2 and not rest and axis == axis[:period] * sizes[0]:
            return new[1], axis[:period], part if sizes[0] == 1 else None
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
            node, source, {dim: dim + (shift if dim > indexed[-1] else 0) for dim in range(ndim) if dim not in indexed}
        )

    def _index_add(self, node: fx.Node, name: str) -> None:
        """Rows added to a table: beside the table's dimension, both have one axis."""
        table, along, added = as_node(node.args[0]), node.args[1], as_node(node.args[3])
        assert isinstance(along, int)
        along %= ndim_of(node)
        empty = operation(table) in {"zeros", "new_zeros"}  # as wide as is written; whether it follows, trying tells
        values = [added] if empty and not self.axes.get(table) else [table, added]
        self.refuse([each for each in values if along in self.axes.get(each, {})], self.words(node, name))
        self._meet_beside(node, name, values, {dim: dim for dim in range(ndim_of(node)) if dim != along})

    def _pixel_shuffle(self, node: fx.Node, name: str) -> None:
        """Runs of r * r channels become one channel of r times as many rows and columns, or the other way round."""
        source, factor = as_node(node.args[0]), node.args[1]
        assert isinstance(factor, int)
        dim = ndim_of(source) - 3
        self.refuse([source], self.words(node, name), but=(dim,))
        axis = self.axes.get(source, {}).get(dim)
        if axis is None:
            return
        if name == "pixel_unshuffle":
            part = replace(self.part(source, dim), block=factor**2)
            self.put(node, dim, widened(axis, factor**2), [part])
        else:
            made = self.spaces.new(size_of(axis) // factor**2)
            self.tie(node, axis, widened(made, factor**2), self.words(node, name))
            self.axes.setdefault(node, {})[dim] = self.spaces.resolve(made)  # importance is that of the data

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
