import pytest
import torch

from mlprank.measures import Activation
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
