"""Axes: what runs along one dimension of a value or of a weight.

While a program is read, sets of neurons (*spaces*) are cut where an operation cuts them and tied where two axes meet;
both is one mechanism: a space is *defined* by an axis of other spaces, and every axis that mentions it follows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def entries(axis: Axis, kept: dict[int, Tensor], device: torch.device | None = None) -> Tensor:
    """Expand masks of spaces, shape (width,), to a mask of the entries along an axis; without a mask all are kept."""
    parts = []
    for segment in axis:
        mask = None if segment.space is None else kept.get(segment.space)
        mask = torch.ones(segment.width, dtype=torch.bool) if mask is None else mask
        parts.append(mask.to(device).repeat_interleave(segment.block))
    return torch.cat(parts)


def pieces(axis: Axis, space: int) -> Iterable[tuple[int, Segment]]:
    """Yield every segment of a space on an axis with the index of its first entry."""
    start = 0
    for segment in axis:
        if segment.space == space:
            yield start, segment
        start += segment.size


class Spaces:
    """Sets of neurons while a program is read."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.parts: list[Axis | None] = []  # the axis that a space has been found to be, if it is not itself
        self.reasons: list[list[str]] = []  # why its neurons stay whole
        self.marks: list[set[str]] = []  # what else was seen of it

    def new(self, width: int) -> Axis:
        """Start a space and return the axis along it."""
        self.widths.append(width)
        self.parts.append(None)
        self.reasons.append([])
        self.marks.append(set())
        return (Segment(len(self.widths) - 1, width),)

    def resolve(self, axis: Axis) -> Axis:
        """Say what an axis is made of by now."""
        found: list[Segment] = []
        for segment in axis:
            parts = None if segment.space is None else self.parts[segment.space]
            if segment.space is None or parts is None:
                found.append(segment)
            else:
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

        Neurons that meet entries of no neuron stay whole, for the reason that is given. False where it cannot be said
        by segments: the caller has to keep both whole.
        """
        left, right = self.resolve(one), self.resolve(other)
        if size_of(left) != size_of(right):
            return False
        while left and right:
            a, b = left[0], right[0]
            if a.size < b.size:
                left, right, a, b = right, left, b, a
            if a.size > b.size:
                if a.space is None:
                    left = (Segment(None, b.size), Segment(None, a.size - b.size), *left[1:])
                elif not self._split(a, b.size):
                    return False
            elif a.space is None or b.space is None:
                self.keep_whole((a, b), why)
                left, right = left[1:], right[1:]
            elif a.space == b.space:
                if a.block != b.block:
                    return False
                left, right = left[1:], right[1:]
            else:
                # The one of larger blocks, or else the earlier one, stands for both.
                whole, part = sorted((a, b), key=lambda each: (-each.block, each.space or 0))
                block, rest = divmod(whole.block, part.block)
                if rest:
                    return False
                assert part.space is not None
                self._define(part.space, (Segment(whole.space, whole.width, block),))
            left, right = self.resolve(left), self.resolve(right)
        return True

    def _split(self, segment: Segment, size: int) -> bool:
        """Cut a segment behind so many of its entries."""
        width, rest = divmod(size, segment.block)
        if segment.space is not None and not rest:
            self._define(segment.space, (*self.new(width), *self.new(segment.width - width)))
        return segment.space is None or not rest

    def _define(self, space: int, axis: Axis) -> None:
        self.parts[space] = axis
        for segment in axis:
            assert segment.space is not None
            own = self.reasons[segment.space]
            own += [reason for reason in self.reasons[space] if reason not in own]
            self.marks[segment.space] |= self.marks[space]
