"""Weighted and modified PageRank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.measures import ModifiedPageRank, WeightedPageRank
from tests import reference
from tests.measures.records import array, assert_close, make_record


def expected(layer, *, gamma=0.9, theta=0.5):
    fields = (layer.weight, layer.previous, layer.output_norms)
    return reference.weighted_pagerank(*(array(values) for values in fields), gamma=gamma, theta=theta)


@settings(max_examples=150, deadline=None)
@given(
    num_out=st.integers(1, 12),
    num_in=st.integers(1, 12),
    zeros=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    gamma=st.floats(0, 1),
    theta=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)
def test_scores_equal_the_slow_loop(num_out, num_in, zeros, gamma, theta, seed):
    layer = make_record(num_out, num_in, seed=seed, zeros=zeros)
    assert_close(WeightedPageRank(gamma, theta)(layer), expected(layer, gamma=gamma, theta=theta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize("block_bytes", [1, 5000, 2**21])
def test_scores_do_not_depend_on_how_the_rows_are_cut_into_blocks(dtype, zeros, block_bytes, monkeypatch):
    monkeypatch.setattr("mlprank.measures.pagerank._BLOCK_BYTES", block_bytes)
    layer = make_record(301, 200, zeros=zeros, dtype=dtype)
    assert_close(WeightedPageRank()(layer), expected(layer), rtol=1e-12 if dtype == torch.float64 else 1e-5)


def test_zeros_in_one_block_only_are_counted(monkeypatch):
    monkeypatch.setattr("mlprank.measures.pagerank._BLOCK_BYTES", 4 * 8 * 3)
    layer = make_record(10, 8, zeros=0.0)
    layer.weight[4, 2:5] = 0.0
    assert_close(WeightedPageRank(theta=0.0)(layer), expected(layer, theta=0.0))


def test_negative_zero_is_no_edge():
    layer = make_record(5, 4, zeros=0.0)
    layer.weight[1, 1] = -0.0
    assert_close(WeightedPageRank(gamma=1.0, theta=0.0)(layer), expected(layer, gamma=1.0, theta=0.0))


def test_a_column_without_weights_contributes_nothing():
    layer = make_record(5, 4, zeros=0.0)
    layer.weight[:, 2] = 0.0
    assert_close(WeightedPageRank()(layer), expected(layer))


def test_gamma_zero_equals_normalised_activation():
    layer = make_record(6, 5)
    assert_close(WeightedPageRank(gamma=0.0)(layer), reference.normalise(array(layer.output_norms)), rtol=1e-6)


def test_without_zeros_the_degree_alone_is_uniform():
    layer = make_record(6, 5, zeros=0.0)
    assert_close(WeightedPageRank(gamma=1.0, theta=0.0)(layer), np.full(6, 1 / 6), rtol=1e-6)


def test_the_sign_of_the_weights_is_ignored():
    layer = make_record(6, 5)
    scores = WeightedPageRank()(layer)
    layer.weight.neg_()
    assert torch.equal(WeightedPageRank()(layer), scores)


def test_a_column_of_subnormal_weights_gives_no_nan():
    layer = make_record(4, 3, zeros=0.0)
    layer.weight[:, 1] = 1e-44
    assert bool(WeightedPageRank()(layer).isfinite().all())


def expected_modified(layer, *, z_importance=False):
    fields = (layer.weight, layer.previous, layer.output_norms)
    return reference.modified_pagerank(
        *(array(values) for values in fields), z_importance=z_importance, amount=layer.amount
    )


@settings(max_examples=100, deadline=None)
@given(
    num_out=st.integers(1, 10),
    num_in=st.integers(1, 10),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    amount=st.floats(0, 0.99),
    z_importance=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_modified_scores_equal_the_slow_loop(num_out, num_in, zeros, amount, z_importance, seed):
    layer = make_record(num_out, num_in, seed=seed, zeros=zeros, amount=amount)
    assert_close(ModifiedPageRank(z_importance)(layer), expected_modified(layer, z_importance=z_importance))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_equals_the_slow_loop(dtype):
    layer = make_record(30, 40, dtype=dtype)
    assert_close(ModifiedPageRank()(layer), expected_modified(layer))


def test_z_importance_ignores_the_int_of_amount_times_inputs_least_central():
    layer = make_record(3, 4, zeros=0.0, amount=0.7)
    layer = replace(layer, previous=torch.tensor([0.3, 0.1, 0.2, 0.4]))
    reduced = replace(layer, previous=torch.tensor([0.3, 0.0, 0.0, 0.4]))
    torch.testing.assert_close(ModifiedPageRank(z_importance=True)(layer), ModifiedPageRank()(reduced))


def test_of_equal_inputs_the_lower_index_is_ignored_first():
    layer = replace(make_record(3, 4, zeros=0.0, amount=0.5), previous=torch.full((4,), 0.25))
    reduced = replace(layer, previous=torch.tensor([0.0, 0.0, 0.25, 0.25]))
    torch.testing.assert_close(ModifiedPageRank(z_importance=True)(layer), ModifiedPageRank()(reduced))


def test_amount_zero_ignores_nothing():
    layer = make_record(5, 6)
    assert torch.equal(ModifiedPageRank(z_importance=True)(layer), ModifiedPageRank()(layer))
