"""Axes are cut, joined and tied, and every axis that mentions a set of neurons follows."""

from __future__ import annotations

import pytest
import torch

from mlprank.graph.axes import Segment, Spaces, entries, size_of, widened


def blocks(spaces: Spaces, *axes: tuple[Segment, ...]) -> list[list[tuple[int | None, int, int]]]:
    return [[(each.space, each.width, each.block) for each in spaces.resolve(axis)] for axis in axes]


def test_equal_axes_become_one_and_reasons_go_along() -> None:
    spaces = Spaces()
    one, other = spaces.new(4), spaces.new(4)
    spaces.keep_whole(other, "it feeds a softmax")
    assert spaces.tie(one, other, why="")
    assert spaces.resolve(one) == spaces.resolve(other)
    assert spaces.reasons[spaces.resolve(one)[0].space or 0] == ["it feeds a softmax"]


def test_an_axis_that_is_cut_is_cut_wherever_it_is_mentioned() -> None:
    spaces = Spaces()
    fused, twice = spaces.new(6), spaces.new(6)
    spaces.tie(fused, twice, why="")
    gate, up = spaces.cut(fused, 0, 3), spaces.cut(fused, 3, 6)
    assert gate is not None
    assert up is not None
    assert spaces.tie(gate, up, why="")
    assert len(spaces.resolve(twice)) == 2
    assert len({each.space for each in spaces.resolve(twice)}) == 1


def test_a_block_of_entries_belongs_to_one_neuron() -> None:
    spaces = Spaces()
    channels, inputs = spaces.new(3), spaces.new(12)
    assert spaces.tie(widened(channels, 4), inputs, why="")
    assert spaces.resolve(inputs) == (Segment(channels[0].space, 3, 4),)
    assert spaces.cut(inputs, 0, 6) is None
    kept = entries(spaces.resolve(inputs), {channels[0].space or 0: torch.tensor([True, False, True])})
    assert kept.tolist() == [True] * 4 + [False] * 4 + [True] * 4


def test_joined_axes_meet_one_behind_the_other() -> None:
    spaces = Spaces()
    a, b, both = spaces.new(2), spaces.new(3), spaces.new(5)
    assert spaces.tie(both, a + b, why="")
    assert [each.width for each in spaces.resolve(both)] == [2, 3]
    assert spaces.resolve(both) == spaces.resolve(a) + spaces.resolve(b)


def test_neurons_that_meet_entries_of_no_neuron_stay_whole() -> None:
    spaces = Spaces()
    whole, free = spaces.new(2), spaces.new(2)
    assert spaces.tie(whole + free, ((Segment(None, 2)), Segment(free[0].space, 2)), why="they meet the input")
    assert spaces.reasons[whole[0].space or 0] == ["they meet the input"]
    assert not spaces.reasons[free[0].space or 0]


@pytest.mark.parametrize(("one", "other"), [((4, 1), (5, 1)), ((2, 3), (3, 2))])
def test_axes_that_cannot_be_brought_together_are_refused(one: tuple[int, int], other: tuple[int, int]) -> None:
    spaces = Spaces()
    left, right = (widened(spaces.new(width), block) for width, block in (one, other))
    assert not spaces.tie(left, right, why="")


def test_overlapping_slices_of_one_axis_tie_its_neurons() -> None:
    spaces = Spaces()
    axis = spaces.new(6)
    first, second = spaces.cut(axis, 0, 4), spaces.cut(axis, 2, 6)
    assert first is not None
    assert second is not None
    assert spaces.tie(first, second, why="")
    found = spaces.resolve(axis)
    assert size_of(found) == 6
    assert len({each.space for each in found}) == 1


def test_parts_are_equal_or_none() -> None:
    spaces = Spaces()
    parts = spaces.divided(spaces.new(6), 3)
    assert parts is not None
    assert [size_of(part) for part in parts] == [2, 2, 2]
    assert spaces.divided(spaces.new(5), 2) is None
