"""Which trained networks there are, how they are loaded, and the cells of a grid: every combination once."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE
from mlprank.experiments.runner import Trained, cells_of, choices, find_networks, load_network, measures_of, recipe_of
from mlprank.methods import METHODS
from mlprank.models import MLP, TwoLayerMLP
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.recipe import Recipe
from mlprank.thesis import RECIPES
from tests.experiments.trained import DIGITS, digits_network, save_published

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
    assert [(choice.name, choice.arguments) for choice in choices(METHODS, ExperimentConfig().methods)] == [
        ("local", {}),
        ("global", {"normalise": "none"}),
    ]
    assert [choice.arguments for choice in choices(METHODS, ["global"])] == [{}]


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


def test_files_are_matched_as_in_a_shell_and_equal_ones_count_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_published(digits_network(seed=seed), tmp_path / f"net-{seed}.pth")
    (tmp_path / "net-2.pth").write_bytes((tmp_path / "net-0.pth").read_bytes())
    config = ExperimentConfig(networks=["MLP@Digits"], checkpoints={"MLP@Digits": str(tmp_path / "net-*.pth")})
    found, missing = find_networks(config)
    assert [Path(trained.path).name for trained in found] == ["net-0.pth", "net-1.pth"]
    assert missing == []


def test_what_is_missing_is_named_and_the_others_are_found(tmp_path: Path) -> None:
    save_published(TwoLayerMLP(), tmp_path / "TwoLayerMLP_MNIST.pth")
    config = ExperimentConfig(
        networks=["TwoLayerMLP", "SixLayerMLP", "MLP@Digits"],
        checkpoint_root=str(tmp_path),
        checkpoints={"MLP@Digits": ["nowhere/*.ckpt"]},
    )
    found, missing = find_networks(config)
    assert [trained.model for trained in found] == ["TwoLayerMLP"]
    assert [each.partition(": ")[0] for each in missing] == ["SixLayerMLP@CIFAR10", "MLP@Digits"]
    assert "mlprank fit --config configs/thesis/six_layer_cifar10.yaml" in missing[0]
    assert "no file is there by the name nowhere/*.ckpt" in missing[1]


def test_a_lightning_checkpoint_says_how_its_network_is_built(tmp_path: Path) -> None:
    classifier = ImageClassifier(MLP(in_features=10, widths=[7], num_classes=3))
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}, path)
    loaded = load_network(Trained("MLP", "Digits", None, str(path), "0" * 64))
    images = torch.rand(4, 10)
    assert torch.equal(loaded(images), classifier.model.eval()(images))
    assert not loaded.training


def test_arguments_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = save_published(digits_network(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"MLP cannot be built from .*: .*wide.*; give its arguments under model_args"):
        load_network(Trained("MLP", "Digits", {**DIGITS, "wide": 3}, str(path), "0" * 64))
    assert isinstance(load_network(Trained("MLP", "Digits", DIGITS, str(path), "0" * 64)), nn.Module)


def test_unknown_models_and_data_sets_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'unknown model "TwoLayerMPL"; did you mean .TwoLayerMLP.'):
        find_networks(ExperimentConfig(networks=["TwoLayerMPL@MNIST"]))
    with pytest.raises(ValueError, match=r'unknown data set "FashonMNIST"; did you mean .FashionMNIST.'):
        find_networks(ExperimentConfig(networks=["TwoLayerMLP@FashonMNIST"]))


def test_a_cell_is_a_network_data_and_any_field_of_the_recipe() -> None:
    config = ExperimentConfig(
        measures=["norm"],
        methods=["local"],
        amounts=[0.5],
        compensations=["zero", {"name": "least_squares"}],
        recipe={"round_to": [1, 8], "min_neurons": 2},
    )
    cells = cells_of(config, [TRAINED])[1:]
    assert [(cell.compensation, cell.recipe_args) for cell in cells] == [
        (name, {"round_to": round_to, "min_neurons": 2}) for name in ("zero", "least_squares") for round_to in (1, 8)
    ]
    recipe = recipe_of(cells[1])
    assert isinstance(recipe, Recipe)
    assert (recipe.round_to, recipe.min_neurons, recipe.num_samples, recipe.graph) == (8, 2, 64, "chain")
    assert len({cell.key for cell in cells}) == 4


def test_a_field_that_no_recipe_has_is_refused_and_so_is_one_with_a_key_of_its_own() -> None:
    with pytest.raises(TypeError, match="'rounding' is not a field of Recipe"):
        cells_of(ExperimentConfig(recipe={"rounding": [8]}), [TRAINED])
    with pytest.raises(ValueError, match="recipe: amount has a key of its own in an experiment: amounts"):
        ExperimentConfig(recipe={"amount": [0.5]})


def test_classes_of_other_packages_are_named_by_their_paths() -> None:
    path = "tests.experiments.trained"
    config = ExperimentConfig(
        networks=[f"{path}.Foreign@{path}.ForeignData"],
        measures=[f"{path}.ByIndex", {"class_path": f"{path}.ByIndex", "init_args": {"power": 2.0}}],
        methods=["local"],
        amounts=[0.5],
    )
    assert config.networks == (f"{path}.Foreign@{path}.ForeignData",)
    assert [(choice.name, choice.arguments) for choice in measures_of(config)] == [
        (f"{path}.ByIndex", {}),
        (f"{path}.ByIndex", {"power": 2.0}),
    ]
    cells = cells_of(config, [TRAINED])[1:]
    assert [recipe_of(cell).measure.power for cell in cells] == [1.0, 2.0]
