"""Measures by weights, activations, both, or chance."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.measures import Activation, Norm, Random, Wanda
from tests import reference
from tests.measures.records import array, assert_close, make_record


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_the_normalised_output_norms(dtype):
    layer = make_record(20, 30, dtype=dtype)
    assert_close(Activation()(layer), reference.normalise(array(layer.output_norms)))


def test_scores_do_not_depend_on_the_weights():
    layer = make_record(6, 5)
    scores = Activation()(layer)
    layer.weight.zero_()
    assert torch.equal(Activation()(layer), scores)


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3, 10, float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_equal_the_slow_loop(p, dtype):
    layer = make_record(20, 30, dtype=dtype)
    assert_close(Norm(p)(layer), reference.norm(array(layer.weight), p=p))


@pytest.mark.parametrize("p", [0.01, 200.0])
def test_extreme_orders_neither_overflow_nor_vanish(p):
    layer = make_record(8, 30, zeros=0.0)
    scores = Norm(p)(layer)
    assert bool(scores.isfinite().all())
    assert bool((scores > 0).all())


def test_a_large_order_approaches_the_largest_weight():
    layer = make_record(8, 3, zeros=0.0)
    assert_close(Norm(2000.0)(layer), array(Norm(float("inf"))(layer)), rtol=1e-3)


def test_the_same_seed_and_layer_give_the_same_scores_in_any_order():
    first, second = make_record(9, 3, name="fc1"), make_record(9, 3, name="fc2")
    measure = Random(seed=3)
    forwards = [measure(first), measure(second)]
    backwards = [measure(second), measure(first)]
    assert torch.equal(forwards[0], backwards[1])
    assert torch.equal(forwards[1], backwards[0])


def test_every_layer_and_every_seed_has_its_own_draw():
    layer = make_record(9, 3)
    draws = [
        Random(seed=0)(layer),
        Random(seed=1)(layer),
        Random(seed=0)(replace(layer, name="fc2")),
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


def test_the_draw_is_uniform():
    scores = Random()(make_record(20000, 1))
    relative = scores / scores.max()
    assert abs(float(relative.mean()) - 0.5) < 0.01
    assert abs(float(relative.var()) - 1 / 12) < 0.005


def test_the_draw_is_the_same_in_every_precision():
    single, double = make_record(9, 3), make_record(9, 3, dtype=torch.float64)
    assert torch.equal(Random()(single), Random()(double).float())


@settings(max_examples=60, deadline=None)
@given(
    num_out=st.integers(1, 12),
    num_in=st.integers(1, 12),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**20),
)
def test_wanda_equals_the_slow_loop(num_out, num_in, zeros, dtype, seed):
    layer = make_record(num_out, num_in, seed=seed, zeros=zeros, dtype=dtype)
    assert_close(Wanda()(layer), reference.wanda(array(layer.weight), array(layer.input_norms)))
