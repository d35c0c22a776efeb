"""Axes are cut, joined and tied, and every axis that mentions a set of neurons follows."""

from __future__ import annotations

import pytest

from mlprank.graph.axes import Axis, Segment, Spaces, size_of, widened


def reasons(spaces: Spaces, axis: Axis) -> list[str]:
    return [note for each in spaces.resolve(axis) for note, whole in spaces.notes[each.space].items() if whole]


def test_equal_axes_become_one_and_what_was_noted_of_them_goes_along() -> None:
    spaces = Spaces()
    one, other = spaces.new(4), spaces.new(4)
    spaces.keep_whole(other, "it feeds a softmax")
    spaces.mark(other, "added")
    spaces.tie(one, other, "")
    assert spaces.resolve(one) == spaces.resolve(other)
    assert reasons(spaces, one) == ["it feeds a softmax"]
    assert spaces.notes[spaces.resolve(one)[0].space] == {"it feeds a softmax": True, "added": False}


def test_an_axis_that_is_cut_is_cut_wherever_it_is_mentioned() -> None:
    spaces = Spaces()
    fused, twice = spaces.new(6), spaces.new(6)
    spaces.tie(fused, twice, "")
    gate, up = spaces.cut(fused, 0, 3, ""), spaces.cut(fused, 3, 6, "")
    assert size_of(gate) == size_of(up) == 3
    spaces.tie(gate, up, "")
    assert len(spaces.resolve(twice)) == 2
    assert len({each.space for each in spaces.resolve(twice)}) == 1
    assert not reasons(spaces, twice)


def test_a_block_of_entries_belongs_to_one_neuron() -> None:
    spaces = Spaces()
    channels, inputs = spaces.new(3), spaces.new(12)
    spaces.tie(widened(channels, 4), inputs, "")
    assert spaces.resolve(inputs) == (Segment(channels[0].space, 3, 4),)
    assert not reasons(spaces, inputs)
    assert spaces.cut(inputs, 0, 6, "cut in half") == ()
    assert reasons(spaces, channels) == ["cut in half"]


def test_joined_axes_meet_one_behind_the_other() -> None:
    spaces = Spaces()
    a, b, both = spaces.new(2), spaces.new(3), spaces.new(5)
    spaces.tie(both, a + b, "")
    assert [each.width for each in spaces.resolve(both)] == [2, 3]
    assert spaces.resolve(both) == spaces.resolve(a) + spaces.resolve(b)
    assert not reasons(spaces, both)


def test_neurons_that_meet_entries_of_no_neuron_stay_whole() -> None:
    spaces = Spaces()
    whole, free = spaces.new(2), spaces.new(2)
    spaces.tie(whole + free, (Segment(None, 2), Segment(free[0].space, 2)), "they meet the input")
    assert reasons(spaces, whole) == ["they meet the input"]
    assert not reasons(spaces, free)


def test_entries_of_no_neuron_can_be_cut() -> None:
    spaces = Spaces()
    axis = (Segment(None, 4), *spaces.new(2))
    assert spaces.cut(axis, 1, 5, "") == (Segment(None, 3), Segment(1, 1))
    assert spaces.resolve(axis) == (Segment(None, 4), Segment(1, 1), Segment(2, 1))


@pytest.mark.parametrize(("one", "other"), [((4, 1), (5, 1)), ((2, 3), (3, 2))])
def test_axes_that_cannot_be_brought_together_stay_whole(one: tuple[int, int], other: tuple[int, int]) -> None:
    spaces = Spaces()
    left, right = (widened(spaces.new(width), block) for width, block in (one, other))
    spaces.tie(left, right, "they cannot meet")
    assert set(reasons(spaces, left)) == set(reasons(spaces, right)) == {"they cannot meet"}


def test_overlapping_slices_of_one_axis_tie_its_neurons() -> None:
    spaces = Spaces()
    axis = spaces.new(6)
    first, second = spaces.cut(axis, 0, 4, ""), spaces.cut(axis, 2, 6, "")
    assert size_of(first) == size_of(second) == 4
    spaces.tie(first, second, "")
    found = spaces.resolve(axis)
    assert size_of(found) == 6
    assert len({each.space for each in found}) == 1
    assert not reasons(spaces, axis)


def test_parts_are_equal_or_stay_whole() -> None:
    spaces = Spaces()
    axis, uneven = spaces.new(6), spaces.new(5)
    assert [each.width for each in spaces.tie_parts(axis, 3, "")] == [2]
    assert len({each.space for each in spaces.resolve(axis)}) == 1
    assert not reasons(spaces, axis)
    assert spaces.tie_parts(uneven, 2, "no halves") == ()
    assert reasons(spaces, uneven) == ["no halves"]
