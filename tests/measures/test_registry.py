import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlprank.measures import (
    MEASURES,
    PUBLISHED_MEASURES,
    LayerRecord,
    ModifiedPageRank,
    Norm,
    Random,
    WeightedPageRank,
    get_measure,
    register_measure,
)
from tests.measures.records import make_record

OUTSIDE = '''
"""A measure of somebody else's: one file."""

from dataclasses import dataclass

from mlprank.measures import LayerRecord, register_measure


@dataclass(frozen=True)
class LargestNorm:
    power: float = 1.0

    def __call__(self, layer: LayerRecord):
        values = layer.output_norms ** self.power
        return values / values.sum()


register_measure("largest_norm", LargestNorm)
'''


@pytest.fixture
def registry(monkeypatch):
    """Let a test register what it likes."""
    saved = dict(MEASURES)
    yield MEASURES
    MEASURES.clear()
    MEASURES.update(saved)


def test_every_published_name_gives_its_measure():
    found = {name: type(get_measure(name)).__name__ for name in PUBLISHED_MEASURES}
    assert found == {
        "WeightedPageRank": "WeightedPageRank",
        "ModifiedPageRank": "ModifiedPageRank",
        "ChannelRandom": "Random",
        "ChannelNorm": "Norm",
        "ChannelActivation": "Activation",
        "ChannelWandA": "Wanda",
    }


def test_short_names_are_the_seven_measures():
    assert list(MEASURES) == [
        "weighted_pagerank", "modified_pagerank", "random", "norm", "activation", "wanda", "reconstruction",
    ]  # fmt: skip


def test_parameters_reach_the_measure():
    assert get_measure("weighted_pagerank", gamma=0.3, theta=1) == WeightedPageRank(gamma=0.3, theta=1)
    assert get_measure("ChannelNorm", p=2) == Norm(p=2)
    assert get_measure(Random, seed=4) == Random(seed=4)
    assert get_measure({"name": "norm", "p": 1}, p=2) == Norm(p=2)


def test_an_instance_and_a_function_are_returned_as_they_are():
    norm = Norm(p=3)

    def by_input(layer: LayerRecord) -> Tensor:
        return layer.weight[:, 0]

    assert get_measure(norm) is norm
    assert get_measure(by_input) is by_input


def test_unknown_name_lists_all_and_the_nearest():
    with pytest.raises(
        ValueError, match=r'unknown measure "weighted_pagernk"; did you mean .weighted_pagerank.'
    ) as error:
        get_measure("weighted_pagernk")
    assert all(name in str(error.value) for name in [*MEASURES, *PUBLISHED_MEASURES])


def test_unknown_name_with_nothing_near_lists_all():
    with pytest.raises(ValueError, match=r'unknown measure "xyzzy"\. Known names: weighted_pagerank, '):
        get_measure("xyzzy")


def test_unknown_parameter_names_those_that_exist():
    with pytest.raises(ValueError, match=r'measure "norm": .*\'gamma\'.*its parameters: p: float = 1'):
        get_measure("norm", gamma=0.5)
    with pytest.raises(ValueError, match=r'measure "wanda": .*its parameters: none'):
        get_measure("wanda", p=2)


def test_parameters_beside_an_instance_are_an_error():
    with pytest.raises(ValueError, match=r"Norm\(p=1\) is an instance, so the parameters \['p'\] have no place"):
        get_measure(Norm(), p=2)


def test_something_else_than_a_measure_is_an_error():
    with pytest.raises(TypeError, match="measure=7 is not a name, a class or an instance of a measure"):
        get_measure(7)


def test_a_measure_registered_from_outside_the_package_works(registry, tmp_path: Path, monkeypatch):
    (tmp_path / "largest_norm_plugin.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("largest_norm_plugin")
    record = make_record(4, 3)
    scores = get_measure("largest_norm", power=2.0)(record)
    assert torch.equal(scores, record.output_norms**2 / (record.output_norms**2).sum())
    sys.modules.pop("largest_norm_plugin")


def test_a_taken_name_cannot_be_registered_again(registry):
    @dataclass(frozen=True)
    class Other:
        def __call__(self, layer: LayerRecord) -> Tensor:
            return layer.output_norms

    with pytest.raises(ValueError, match='measure name "norm" is taken by Norm'):
        register_measure("norm", Other)
    with pytest.raises(ValueError, match='measure name "ChannelNorm" is taken by Norm'):
        register_measure("ChannelNorm", Other)
    with pytest.raises(ValueError, match="name of the measure Other is empty"):
        register_measure("", Other)
    register_measure("other", Other)
    register_measure("other", Other)
    assert registry["other"] is Other


def test_a_class_that_cannot_be_called_is_not_a_measure(registry):
    class Mute:
        pass

    with pytest.raises(TypeError, match=r'measure "mute": .* is not a class with __call__'):
        register_measure("mute", Mute)
    with pytest.raises(TypeError, match='measure "made": Norm'):
        register_measure("made", Norm())


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "high", None])
@pytest.mark.parametrize("name", ["gamma", "theta"])
def test_pagerank_parameters_outside_0_to_1_are_errors(name, value):
    with pytest.raises(ValueError, match=rf"WeightedPageRank: {name}=.* is not a number in \[0, 1\]"):
        WeightedPageRank(**{name: value})


@pytest.mark.parametrize("p", [0, -1, float("nan"), "two"])
def test_norm_order_must_be_above_0(p):
    with pytest.raises(ValueError, match=r"Norm: p=.* is not a number above 0"):
        get_measure("norm", p=p)


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_random_seed_must_be_a_non_negative_integer(seed):
    with pytest.raises(ValueError, match=r"Random: seed=.* must be a whole number of at least 0"):
        Random(seed=seed)


def test_z_importance_must_be_a_bool():
    with pytest.raises(TypeError, match="ModifiedPageRank: z_importance='yes' must be True or False"):
        ModifiedPageRank(z_importance="yes")
