"""Axes: what runs along one dimension of a value or of a weight.

While a program is read, sets of neurons (*spaces*) are cut where an operation cuts them and tied where two axes meet;
both is one mechanism: a space is *defined* by an axis of other spaces, and every axis that mentions it follows.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, count


@dataclass(frozen=True)
class Segment:
    """A run of entries along an axis: neurons of one set, or, without a space, entries that are no followed neurons."""

    space: int | None  # index of the set of neurons; of the group, in a finished graph
    width: int  # number of neurons
    block: int = 1  # entries of each neuron, side by side: H times W behind a flatten from (C, H, W)

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.width * self.block


Axis = tuple[Segment, ...]


def size_of(axis: Axis) -> int:
    """Number of entries along an axis."""
    return sum(segment.size for segment in axis)


def widened(axis: Axis, block: int) -> Axis:
    """The axis on which every entry has become a block of entries side by side."""
    return tuple(Segment(segment.space, segment.width, segment.block * block) for segment in axis)


def pieces(axis: Axis, space: int) -> Iterable[tuple[int, Segment]]:
    """Yield every segment of a space on an axis with the index of its first entry."""
    start = 0
    for segment in axis:
        if segment.space == space:
            yield start, segment
        start += segment.size


class Spaces:
    """Sets of neurons while a program is read; what is noted of the space None, which is none, nobody reads."""

    def __init__(self) -> None:
        self._names = count()
        self.parts: dict[int | None, Axis] = {}  # of spaces that have been found to be an axis of others
        # What was seen of a space: reasons why its neurons stay whole (True), and marks (False).
        self.notes: defaultdict[int | None, dict[str, bool]] = defaultdict(dict)

    def new(self, width: int) -> Axis:
        """Start a space and return the axis along it."""
        return (Segment(next(self._names), width),)

    def resolve(self, axis: Iterable[Segment]) -> Axis:
        """Say what an axis is made of by now."""
        found: list[Segment] = []
        for segment in axis:
            if segment.space in self.parts:
                self.parts[segment.space] = parts = self.resolve(self.parts[segment.space])
                found += widened(parts, segment.block)
            else:
                found.append(segment)
        return tuple(found)

    def mark(self, axis: Axis, note: str, *, whole: bool = False) -> None:
        """Note something of the neurons along an axis."""
        for segment in self.resolve(axis):
            self.notes[segment.space][note] = whole

    def keep_whole(self, axis: Axis, reason: str) -> None:
        """Say why the neurons along an axis cannot be removed."""
        self.mark(axis, reason, whole=True)

    def cut(self, axis: Axis, start: int, stop: int, why: str) -> Axis:
        """Return the entries from `start` to `stop` of an axis, cutting spaces.

        Inside a neuron's block that is not possible: the neurons stay whole for this reason, and the axis is empty.
        """
        parts = self._parted(self._parted(axis, start), stop)
        if not parts:
            self.keep_whole(axis, why)
        ends = accumulate(part.size for part in parts)
        return tuple(part for part, end in zip(parts, ends, strict=True) if start < end <= stop and part.size)

    def tie(self, one: Axis, other: Axis, why: str) -> None:
        """Let the neurons of two axes that meet entry by entry stay together.

        Neurons that meet entries of no neuron stay whole; all of them do where it cannot be said by segments.
        """
        left, right = self.resolve(one), self.resolve(other)
        fits = size_of(left) == size_of(right)
        while fits and left and right:
            if left[0].size < right[0].size:
                left, right = right, left
            a, b = left[0], right[0]
            if a.size > b.size:
                left = self._parted(left, b.size)
                fits = bool(left)
            elif a.space is None or b.space is None:
                self.keep_whole((a, b), why)
                left, right = left[1:], right[1:]
            elif a.space == b.space:
                fits = a.block == b.block
                left, right = left[1:], right[1:]
            else:
                # The one of larger blocks, or else the earlier one, stands for both.
                whole, part = sorted((a, b), key=lambda each: (-each.block, each.space or 0))
                block, rest = divmod(whole.block, part.block)
                fits = not rest
                if fits:
                    self._define(part.space, (Segment(whole.space, whole.width, block),))
            left, right = self.resolve(left), self.resolve(right)
        if not fits:
            self.keep_whole(one + other, why)

    def tie_parts(self, axis: Axis, count: int, why: str) -> Axis:
        """Let equal numbers go from equal parts of an axis, and return the axis of one part; empty as for `cut`."""
        size, rest = divmod(size_of(axis), count)
        parts = [] if rest else [self.cut(axis, size * index, size * (index + 1), why) for index in range(count)]
        if rest or not all(parts):
            self.keep_whole(axis, why)
            return ()
        for part in parts[1:]:
            self.tie(parts[0], part, why)
        return self.resolve(parts[0])

    def _parted(self, axis: Axis, at: int) -> Axis:
        """The axis with a border of segments behind so many entries; empty where that is inside a neuron's block."""
        found: list[Segment] = []
        for segment in self.resolve(axis):
            width, rest = divmod(at, segment.block)
            if not 0 < at < segment.size:
                found.append(segment)
            elif segment.space is None:
                found += [Segment(None, at), Segment(None, segment.size - at)]
            elif rest:
                return ()
            else:
                self._define(segment.space, (*self.new(width), *self.new(segment.width - width)))
                found.append(segment)
            at -= segment.size
        return self.resolve(found)

    def _define(self, space: int | None, axis: Axis) -> None:
        self.parts[space] = axis
        for segment in axis:
            self.notes[segment.space] |= self.notes[space]
