"""Cells of a grid: every combination once, under short names, checked at once."""

import pytest

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.grid import cells_of, measures_of, methods_of
from mlprank.experiments.networks import Trained
from mlprank.experiments.records import DENSE
from mlprank.thesis import RECIPES

TRAINED = Trained("ThreeLayerMLP", "FashionMNIST", None, "a.ckpt", "0" * 64)


def test_the_thesis_has_240_cells_and_a_baseline_a_network() -> None:
    networks = [
        Trained(model, dataset, None, f"{model}.pth", f"{index:064d}") for index, (model, dataset) in enumerate(RECIPES)
    ]
    cells = cells_of(ExperimentConfig(), networks)
    dense = [cell for cell in cells if cell.measure == DENSE]
    assert len(cells) - len(dense) == 240
    assert len(dense) == 4
    assert len({cell.key for cell in cells}) == 244


def test_published_names_become_short_ones_with_their_arguments() -> None:
    config = ExperimentConfig(measures=["ChannelNorm", "wanda"], measure_args={"ChannelNorm": {"p": 2}})
    assert [(choice.name, choice.arguments) for choice in measures_of(config)] == [("norm", {"p": 2}), ("wanda", {})]
    assert [(choice.name, choice.arguments) for choice in methods_of(ExperimentConfig())] == [
        ("local", {}),
        ("global", {"normalise": "none"}),
    ]
    assert [choice.arguments for choice in methods_of(ExperimentConfig(methods=["global"]))] == [{}]


def test_a_name_twice_is_one_measure_and_two_arguments_are_two() -> None:
    config = ExperimentConfig(measures=["norm", "ChannelNorm", {"name": "norm", "p": 2}])
    assert [choice.arguments for choice in measures_of(config)] == [{}, {"p": 2}]


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'unknown measure "WeigtedPageRank"; did you mean .WeightedPageRank.'):
        cells_of(ExperimentConfig(measures=["WeigtedPageRank"]), [])
    with pytest.raises(ValueError, match=r'unknown method "Locale"; did you mean .local.'):
        cells_of(ExperimentConfig(methods=["Locale"]), [])
    with pytest.raises(ValueError, match=r'unknown compensation "constnat"; did you mean .constant.'):
        cells_of(ExperimentConfig(compensations=["constnat"]), [])


def test_arguments_of_a_measure_outside_the_grid_are_refused() -> None:
    config = ExperimentConfig(measures=["wanda"], measure_args={"ChannelNorm": {"p": 2}})
    with pytest.raises(ValueError, match=r"measure_args: 'ChannelNorm' is not in the grid; its measures are wanda"):
        measures_of(config)
    with pytest.raises(ValueError, match=r'measure "norm": .*q'):
        measures_of(ExperimentConfig(measure_args={"ChannelNorm": {"q": 2}}))


def test_a_measure_that_draws_takes_the_calibration_seed_unless_it_was_given_one() -> None:
    config = ExperimentConfig(measures=["random"], methods=["local"], amounts=[0.5], calibration_seeds=[0, 7])
    assert [cell.measure_args for cell in cells_of(config, [TRAINED])[1:]] == [{"seed": 0}, {"seed": 7}]
    fixed = ExperimentConfig(
        measures=["random"], methods=["local"], amounts=[0.5], measure_args={"random": {"seed": 3}}
    )
    assert [cell.measure_args for cell in cells_of(fixed, [TRAINED])[1:]] == [{"seed": 3}]


def test_every_axis_multiplies() -> None:
    config = ExperimentConfig(
        measures=["norm"],
        methods=["local"],
        amounts=[0.2, 0.5],
        compensations=["constant", "zero"],
        graphs=["chain", "dag"],
        protect_output=[True, False],
        calibration_seeds=[0, 1, 2],
    )
    assert len(cells_of(config, [TRAINED])) == 1 + 2 * 2 * 2 * 2 * 3
