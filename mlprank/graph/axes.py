"""Axes: what runs along one dimension of a value or of a weight.

An axis is a sequence of segments; a segment is a set of neurons (a *space*), each with a block of entries side by side,
or entries that are no followed neurons. While a program is read, spaces are cut where an operation cuts them and tied
where two axes meet; both is one
mechanism: a space is *defined* by an axis of other spaces, and every axis that mentions it follows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of entries along an axis.

    Attributes:
        space: Index of the set of neurons (of the group, in a finished graph), or None for entries that are no followed
            neurons.
        width: Number of neurons.
        block: Entries of each neuron, side by side: H times W behind a flatten from (C, H, W).
    """

    space: int | None
    width: int
    block: int = 1

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


def entries(axis: Axis, kept: dict[int, Tensor], device: torch.device | None = None) -> Tensor:
    """Expand masks of spaces to a mask of the entries along an axis.

    Args:
        axis: The axis.
        kept: For some spaces, shape (width,), True for kept neurons; what is not in it is kept.
        device: Where the mask is to be.

    Returns:
        Shape (size,), bool.
    """
    parts = []
    for segment in axis:
        mask = None if segment.space is None else kept.get(segment.space)
        if mask is None:
            parts.append(torch.ones(segment.size, dtype=torch.bool, device=device))
        else:
            parts.append(mask.to(device).repeat_interleave(segment.block))
    return torch.cat(parts)


def pieces(axis: Axis, space: int) -> Iterable[tuple[int, Segment]]:
    """Yield every segment of a space on an axis with the index of its first entry."""
    start = 0
    for segment in axis:
        if segment.space == space:
            yield start, segment
        start += segment.size


@dataclass
class Spaces:
    """Sets of neurons while a program is read.

    Attributes:
        widths: Number of neurons of every space.
        parts: The axis that a space has been found to be, or None as long as it stands for itself.
        reasons: Why its neurons stay whole.
        marks: What else was seen of it.
    """

    widths: list[int] = field(default_factory=list)
    parts: list[Axis | None] = field(default_factory=list)
    reasons: list[list[str]] = field(default_factory=list)
    marks: list[set[str]] = field(default_factory=list)

    def new(self, width: int) -> Axis:
        """Start a space and return the axis along it."""
        self.widths.append(width)
        self.parts.append(None)
        self.reasons.append([])
        self.marks.append(set())
        return (Segment(len(self.widths) - 1, width),)

    def resolve(self, axis: Axis) -> Axis:
        """Say what an axis is made of by now."""
        if all(segment.space is None or self.parts[segment.space] is None for segment in axis):
            return axis
        found: list[Segment] = []
        for segment in axis:
            parts = None if segment.space is None else self.parts[segment.space]
            if parts is None:
                found.append(segment)
            else:
                assert segment.space is not None
                self.parts[segment.space] = parts = self.resolve(parts)
                found += widened(parts, segment.block)
        return tuple(found)

    def keep_whole(self, axis: Axis, reason: str) -> None:
        """Say why the neurons along an axis cannot be removed."""
        for segment in self.resolve(axis):
            if segment.space is not None:
                self.reasons[segment.space].append(reason)

    def mark(self, axis: Axis, mark: str) -> None:
        """Note something of the neurons along an axis."""
        for segment in self.resolve(axis):
            if segment.space is not None:
                self.marks[segment.space].add(mark)

    def cut(self, axis: Axis, start: int, stop: int) -> Axis | None:
        """Return the entries from `start` to `stop` of an axis, cutting spaces; None inside a neuron's block."""
        for at in (start, stop):
            axis = self.resolve(axis)
            position = 0
            for segment in axis:
                if position < at < position + segment.size and not self._split(segment, at - position):
                    return None
                position += segment.size
        taken, position = [], 0
        for segment in self.resolve(axis):
            if segment.space is None:
                size = min(stop, position + segment.size) - max(start, position)
                taken += [Segment(None, size)] if size > 0 else []
            elif start <= position and position + segment.size <= stop and segment.size:
                taken.append(segment)
            position += segment.size
        return tuple(taken)

    def divided(self, axis: Axis, count: int) -> list[Axis] | None:
        """Cut an axis into equal parts; None where that is not possible."""
        size, rest = divmod(size_of(axis), count)
        parts = [] if rest else [self.cut(axis, index * size, (index + 1) * size) for index in range(count)]
        return None if rest or any(part is None for part in parts) else [self.resolve(part) for part in parts if part]

    def tie(self, one: Axis, other: Axis, *, why: str) -> bool:
        """Let the neurons of two axes that meet entry by entry stay together.

        Neurons that meet entries of no neuron stay whole, for the reason that is given.

        Returns:
            Whether that can be said by segments; where it cannot, the caller has to keep both whole.
        """
        left, right = self.resolve(one), self.resolve(other)
        if size_of(left) != size_of(right):
            return False
        while left and right:
            a, b = left[0], right[0]
            if a == b:
                left, right = left[1:], right[1:]
            elif a.size != b.size:
                longer, size = (a, b.size) if a.size > b.size else (b, a.size)
                if longer.space is None:
                    halves = (Segment(None, size), Segment(None, longer.size - size))
                    left = (*halves, *left[1:]) if longer is a else left
                    right = (*halves, *right[1:]) if longer is b else right
                elif not self._split(longer, size):
                    return False
            elif a.space is None or b.space is None:
                self.keep_whole((a, b), why)
                left, right = left[1:], right[1:]
            elif not self._bind(a, b):
                return False
            left, right = self.resolve(left), self.resolve(right)
        return True

    def _split(self, segment: Segment, size: int) -> bool:
        """Cut a segment behind so many of its entries."""
        width, rest = divmod(size, segment.block)
        if segment.space is None:
            return True
        if rest:
            return False
        self._define(segment.space, (*self.new(width), *self.new(segment.width - width)))
        return True

    def _bind(self, a: Segment, b: Segment) -> bool:
        """Tie two segments of one size."""
        assert a.space is not None
        assert b.space is not None
        if a.space == b.space:
            return a.block == b.block
        if a.block == b.block:
            first, second = sorted((a.space, b.space))
            self._define(second, (Segment(first, a.width),))
        elif a.block % b.block == 0:
            self._define(b.space, (Segment(a.space, a.width, a.block // b.block),))
        elif b.block % a.block == 0:
            self._define(a.space, (Segment(b.space, b.width, b.block // a.block),))
        else:
            return False
        return True

    def _define(self, space: int, axis: Axis) -> None:
        self.parts[space] = axis
        for segment in axis:
            assert segment.space is not None
            self.reasons[segment.space] += [
                reason for reason in self.reasons[space] if reason not in self.reasons[segment.space]
            ]
            self.marks[segment.space] |= self.marks[space]


def joined(parts: Sequence[Axis]) -> Axis:
    """One axis behind the other."""
    return tuple(segment for part in parts for segment in part)
