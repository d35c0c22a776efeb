import pytest
import torch

from mlprank.measures import Norm
from tests import reference
from tests.measures.records import array, assert_close, make_record


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3, 10, float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_scores_equal_the_slow_loop(p, dtype):
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
