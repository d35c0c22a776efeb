from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.measures import ModifiedPageRank
from tests import reference
from tests.measures.records import array, assert_close, make_record


def expected(layer, *, z_importance=False):
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
def test_scores_equal_the_slow_loop(num_out, num_in, zeros, amount, z_importance, seed):
    layer = make_record(num_out, num_in, seed=seed, zeros=zeros, amount=amount)
    assert_close(ModifiedPageRank(z_importance)(layer), expected(layer, z_importance=z_importance))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_equals_the_slow_loop(dtype):
    layer = make_record(30, 40, dtype=dtype)
    assert_close(ModifiedPageRank()(layer), expected(layer))


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
