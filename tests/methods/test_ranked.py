"""Local and global: what they remove, their guards, their errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.methods import Global, Local
from tests import reference

METHODS = [Local(), Global(), Global(normalise="none")]
every_method = pytest.mark.parametrize("method", METHODS, ids=["local", "width", "none"])

# Few distinct values, so that ties are common; 0 among them, and layers down to one neuron.
layer_scores = st.lists(st.integers(0, 6).map(lambda k: k / 8), min_size=1, max_size=9)
networks = st.lists(layer_scores, min_size=1, max_size=4)


def tensors(network, dtype=torch.float32):
    return {f"fc{i}": torch.tensor(values, dtype=dtype) for i, values in enumerate(network)}


def lists(masks):
    return {name: mask.tolist() for name, mask in masks.items()}


@settings(max_examples=200, deadline=None)
@given(
    network=networks,
    amounts=st.lists(st.floats(0, 0.99), min_size=4, max_size=4),
    min_neurons=st.integers(1, 4),
    round_to=st.integers(1, 4),
)
def test_local_equals_the_slow_loop(network, amounts, min_neurons, round_to):
    given_amounts = {f"fc{i}": amount for i, amount in zip(range(len(network)), amounts, strict=False)}
    guards = {"min_neurons": min_neurons, "round_to": round_to}
    slow = reference.local({f"fc{i}": values for i, values in enumerate(network)}, given_amounts, **guards)
    assert lists(Local()(tensors(network), given_amounts, **guards)) == slow


@settings(max_examples=300, deadline=None)
@given(
    network=networks,
    amount=st.floats(0, 0.99),
    normalise=st.sampled_from(["width", "none"]),
    min_neurons=st.integers(1, 4),
    round_to=st.integers(1, 4),
)
def test_global_equals_the_slow_loop(network, amount, normalise, min_neurons, round_to):
    guards = {"min_neurons": min_neurons, "round_to": round_to}
    scores = tensors(network)
    slow = reference.global_(
        {name: values.tolist() for name, values in scores.items()}, amount, normalise=normalise, **guards
    )
    assert lists(Global(normalise=normalise)(scores, dict.fromkeys(scores, amount), **guards)) == slow


@every_method
@settings(max_examples=60, deadline=None)
@given(
    network=networks,
    amount=st.floats(0, 0.99),
    min_neurons=st.integers(1, 5),
    round_to=st.sampled_from([1, 2, 8]),
)
def test_every_layer_keeps_enough_neurons_and_a_multiple_where_it_can(method, network, amount, min_neurons, round_to):
    scores = tensors(network)
    masks = method(scores, dict.fromkeys(scores, amount), min_neurons=min_neurons, round_to=round_to)
    for name, mask in masks.items():
        size, kept = mask.numel(), int(mask.sum())
        assert mask.dtype == torch.bool
        assert mask.shape == scores[name].shape
        assert kept >= min(min_neurons, size)
        assert kept % round_to == 0 or kept == size
        if 0 < kept < size:
            assert float(scores[name][mask].min()) >= float(scores[name][~mask].max())


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_amount_zero_keeps_all(method, dtype):
    scores = tensors([[0.0, 0.0, 1.0], [0.5]], dtype=dtype)
    masks = method(scores, dict.fromkeys(scores, 0.0))
    assert lists(masks) == {"fc0": [True, True, True], "fc1": [True]}


@every_method
def test_scores_are_left_as_they_were_and_masks_share_nothing(method):
    scores = tensors([[0.3, 0.1, 0.2, 0.4], [0.6, 0.4]])
    before = {name: values.clone() for name, values in scores.items()}
    masks = method(scores, dict.fromkeys(scores, 0.5))
    assert all(torch.equal(before[name], scores[name]) for name in scores)
    masks["fc0"].fill_(True)
    assert masks["fc1"].untyped_storage().data_ptr() != masks["fc0"].untyped_storage().data_ptr()
    assert lists(method(scores, dict.fromkeys(scores, 0.5))) != lists(masks)


@every_method
def test_of_equal_scores_the_lower_index_goes_first(method):
    scores = {"fc1": torch.full((5,), 0.2)}
    assert method(scores, {"fc1": 0.4})["fc1"].tolist() == [False, False, True, True, True]


@every_method
def test_no_layers_give_no_masks(method):
    assert method({}, {}) == {}


@every_method
def test_the_order_of_the_layers_is_kept(method):
    scores = {name: torch.rand(4) for name in ("z", "a", "m")}
    assert list(method(scores, dict.fromkeys(sorted(scores), 0.5))) == ["z", "a", "m"]


@every_method
@pytest.mark.parametrize("amount", [-0.1, 1.0, 1.5, float("nan")])
def test_an_amount_outside_0_to_1_names_the_layer(method, amount):
    with pytest.raises(ValueError, match=rf'amount={amount} for "fc1" is not in \[0, 1\)'):
        method({"fc1": torch.ones(3)}, {"fc1": amount})


@every_method
@pytest.mark.parametrize("guard", ["min_neurons", "round_to"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_guard_below_1_is_an_error(method, guard, value):
    with pytest.raises(ValueError, match=rf"{guard}={value} must be a whole number of at least 1"):
        method({"fc1": torch.ones(3)}, {"fc1": 0.5}, **{guard: value})


@every_method
def test_scores_and_amounts_need_the_same_layers(method):
    scores = {"fc1": torch.ones(3)}
    with pytest.raises(ValueError, match='layer "fc1" has scores but no amount'):
        method(scores, {})
    with pytest.raises(ValueError, match='layer "fc2" has an amount but no scores'):
        method(scores, {"fc1": 0.5, "fc2": 0.5})


@every_method
@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_scores_that_are_no_scores_name_the_layer(method, value):
    with pytest.raises(ValueError, match=r'layer "fc1": scores\[\d\]=.* must be finite and at least 0'):
        method({"fc1": torch.tensor([1.0, value])}, {"fc1": 0.5})


@every_method
@pytest.mark.parametrize("shape", [(0,), (2, 2), ()])
def test_scores_of_another_shape_name_the_layer(method, shape):
    with pytest.raises(ValueError, match=r'layer "fc1": scores of shape .* must be a vector, not empty'):
        method({"fc1": torch.ones(shape)}, {"fc1": 0.5})


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
    with pytest.raises(
        ValueError, match=r'takes one amount for all layers, but was given "a": 0.2, "b": 0.3; use method="local"'
    ):
        Global()(scores, {"a": 0.2, "b": 0.3})


def test_layers_of_different_precision_are_compared():
    scores = {"a": torch.tensor([0.4, 0.6]), "b": torch.tensor([0.1, 0.9], dtype=torch.float64)}
    masks = Global()(scores, dict.fromkeys(scores, 0.5))
    assert [mask.tolist() for mask in masks.values()] == [[False, True], [False, True]]


@pytest.mark.parametrize("normalise", ["Width", "", None, 1])
def test_an_unknown_normalisation_is_an_error(normalise):
    with pytest.raises(ValueError, match=r"Global: normalise=.* is unknown.*; choose one of width, none"):
        Global(normalise=normalise)
