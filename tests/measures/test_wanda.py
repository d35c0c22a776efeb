import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.measures import Wanda
from mlprank.measures.wanda import wanda
from tests import reference
from tests.measures.records import array, assert_close, make_record


@settings(max_examples=60, deadline=None)
@given(
    num_out=st.integers(1, 12),
    num_in=st.integers(1, 12),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**20),
)
def test_scores_equal_the_slow_loop(num_out, num_in, zeros, dtype, seed):
    layer = make_record(num_out, num_in, seed=seed, zeros=zeros, dtype=dtype)
    assert_close(Wanda()(layer), reference.wanda(array(layer.weight), array(layer.input_norms)))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_input_norm_that_is_no_norm_is_an_error(value):
    with pytest.raises(ValueError, match=rf"input_norms\[0\]={value}, but it must be finite"):
        wanda(torch.ones(2, 2), torch.tensor([value, 1.0]))
