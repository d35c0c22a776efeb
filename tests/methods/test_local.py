import pytest
import torch

from mlprank.methods import Local


@pytest.mark.parametrize(("amount", "removed"), [(0.5, 2), (0.3, 2), (0.1, 0), (0.7, 4), (0.75, 4), (0.9, 4)])
def test_half_is_rounded_to_even_and_one_neuron_stays(amount, removed):
    mask = Local()({"fc1": torch.arange(5.0)}, {"fc1": amount})["fc1"]
    assert int((~mask).sum()) == removed == min(round(amount * 5), 4)


def test_every_layer_has_its_own_amount():
    scores = {"a": torch.arange(10.0), "b": torch.arange(10.0)}
    masks = Local()(scores, {"a": 0.2, "b": 0.7})
    assert [int(mask.sum()) for mask in masks.values()] == [8, 3]


@pytest.mark.parametrize(("amount", "kept"), [(0.5, 56), (0.51, 56), (0.95, 8), (0.01, 100), (0.0, 100), (0.2, 80)])
def test_round_to_rounds_what_is_kept_up_but_never_above_the_layer(amount, kept):
    mask = Local()({"fc1": torch.rand(100)}, {"fc1": amount}, round_to=8)["fc1"]
    assert int(mask.sum()) == kept


def test_min_neurons_above_the_width_keeps_the_layer_whole():
    masks = Local()({"a": torch.rand(3), "b": torch.rand(20)}, {"a": 0.9, "b": 0.9}, min_neurons=4)
    assert [int(mask.sum()) for mask in masks.values()] == [3, 4]
