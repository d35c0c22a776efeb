from dataclasses import replace

import torch

from mlprank.measures import Random
from tests.measures.records import make_record


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
