"""Which trained networks there are, and how they are loaded."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.networks import Trained, find_networks, load_network
from mlprank.models import MLP, TwoLayerMLP
from mlprank.models.classifier import ImageClassifier
from tests.experiments.trained import DIGITS, digits_network, save_published


def test_files_are_matched_as_in_a_shell_and_equal_ones_count_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_published(digits_network(seed=seed), tmp_path / f"net-{seed}.pth")
    (tmp_path / "net-2.pth").write_bytes((tmp_path / "net-0.pth").read_bytes())
    config = ExperimentConfig(networks=["MLP@Digits"], checkpoints={"MLP@Digits": str(tmp_path / "net-*.pth")})
    found, missing = find_networks(config)
    assert [Path(trained.path).name for trained in found] == ["net-0.pth", "net-1.pth"]
    assert missing == ()


def test_what_is_missing_is_named_and_the_others_are_found(tmp_path: Path) -> None:
    save_published(TwoLayerMLP(), tmp_path / "TwoLayerMLP_MNIST.pth")
    config = ExperimentConfig(
        networks=["TwoLayerMLP", "SixLayerMLP", "MLP@Digits"],
        checkpoint_root=str(tmp_path),
        checkpoints={"MLP@Digits": ["nowhere/*.ckpt"]},
    )
    found, missing = find_networks(config)
    assert [trained.model for trained in found] == ["TwoLayerMLP"]
    assert [each.network for each in missing] == ["SixLayerMLP@CIFAR10", "MLP@Digits"]
    assert "mlprank fit --config configs/thesis/six_layer_cifar10.yaml" in missing[0].remedy
    assert "no file is there by the name nowhere/*.ckpt" in missing[1].remedy


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
    with pytest.raises(ValueError, match=r"model 'TwoLayerMPL' is not one of .*did you mean TwoLayerMLP"):
        find_networks(ExperimentConfig(networks=["TwoLayerMPL@MNIST"]))
    with pytest.raises(ValueError, match=r"data set 'FashonMNIST' is not one of .*did you mean \"FashionMNIST\""):
        find_networks(ExperimentConfig(networks=["TwoLayerMLP@FashonMNIST"]))
