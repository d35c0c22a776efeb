import pytest
import torch

from mlprank.methods import Global


def sizes(masks):
    return [int(mask.sum()) for mask in masks.values()]


def test_without_width_normalisation_the_widest_layer_empties_first():
    scores = {"wide": torch.full((8,), 1 / 8), "narrow": torch.full((4,), 1 / 4)}
    assert sizes(Global(normalise="none")(scores, dict.fromkeys(scores, 0.5))) == [2, 4]


def test_with_width_normalisation_layers_are_compared_relative_to_their_mean():
    wide, narrow = torch.arange(1.0, 9.0), torch.arange(1.0, 5.0)
    scores = {"wide": wide / wide.sum(), "narrow": narrow / narrow.sum()}
    amounts = dict.fromkeys(scores, 0.5)
    assert sizes(Global(normalise="none")(scores, amounts)) == [3, 3]
    assert sizes(Global()(scores, amounts)) == [4, 2]


def test_the_number_removed_is_the_ceiling_over_all_layers():
    scores = {"a": torch.rand(7), "b": torch.rand(6)}
    assert 13 - sum(sizes(Global()(scores, dict.fromkeys(scores, 0.4)))) == 6


def test_a_spared_neuron_is_replaced_by_the_next_smallest_of_another_layer():
    scores = {"low": torch.tensor([0.1, 0.2, 0.3]), "high": torch.tensor([1.0, 2.0, 3.0])}
    masks = Global(normalise="none")(scores, dict.fromkeys(scores, 0.5))
    assert masks["low"].tolist() == [False, False, True]
    assert masks["high"].tolist() == [False, True, True]


def test_where_all_layers_are_at_the_least_less_is_removed_than_asked_for():
    scores = {"a": torch.rand(3), "b": torch.rand(4)}
    assert sizes(Global()(scores, dict.fromkeys(scores, 0.9), min_neurons=2)) == [2, 2]


def test_a_layer_narrower_than_min_neurons_stays_whole():
    scores = {"a": torch.tensor([0.0, 0.1]), "b": torch.rand(8) + 1}
    assert sizes(Global(normalise="none")(scores, dict.fromkeys(scores, 0.5), min_neurons=3)) == [2, 3]


def test_of_equal_scores_the_earlier_layer_goes_first():
    scores = {"a": torch.full((4,), 0.25), "b": torch.full((4,), 0.25)}
    assert sizes(Global()(scores, dict.fromkeys(scores, 0.25))) == [2, 4]


def test_different_amounts_are_an_error_that_says_to_use_local():
    scores = {"a": torch.rand(4), "b": torch.rand(4)}
    with pytest.raises(ValueError, match=r'takes one amount, but was given "a": 0.2, "b": 0.3; use method="local"'):
        Global()(scores, {"a": 0.2, "b": 0.3})


def test_layers_of_different_precision_are_compared():
    scores = {"a": torch.tensor([0.4, 0.6]), "b": torch.tensor([0.1, 0.9], dtype=torch.float64)}
    masks = Global()(scores, dict.fromkeys(scores, 0.5))
    assert [mask.tolist() for mask in masks.values()] == [[False, True], [False, True]]


@pytest.mark.parametrize("normalise", ["Width", "", None, 1])
def test_an_unknown_normalisation_is_an_error(normalise):
    with pytest.raises(ValueError, match=r'Global: normalise=.* is unknown; use "width" or "none"'):
        Global(normalise=normalise)
