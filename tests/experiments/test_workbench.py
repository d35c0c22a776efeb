"""Accuracies of networks on images in memory are those of every image by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlprank.costs.metrics import top_k_accuracy
from mlprank.experiments import workbench
from mlprank.experiments.workbench import accuracies
from mlprank.models import SixLayerMLP, TwoLayerMLP
from mlprank.pruning.pipeline import Pruning
from tests.experiments.trained import Foreign

NUM_IMAGES = 300


def guessed(network: nn.Module, images: Tensor) -> Tensor:
    """Labels that a quarter of the images have right at first guess, a quarter at second, and so on."""
    with torch.inference_mode():
        ranked = network.eval()(images).topk(3).indices
    return ranked[torch.arange(len(images)), torch.arange(len(images)) % 3].clone()


@pytest.mark.parametrize("make", [lambda: TwoLayerMLP(64, 8), lambda: SixLayerMLP(64, 8), Foreign])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.8])
def test_accuracies_are_those_of_torchmetrics(make, amount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "_CHUNK", 128)
    torch.manual_seed(0)
    network, images = make(), torch.rand(NUM_IMAGES, 1, 8, 8)
    labels = guessed(network, images)
    pruned = Pruning(network, images[:64]).run(amount=amount).model
    expected = top_k_accuracy(pruned, zip(images.split(64), labels.split(64), strict=True), (1, 5))
    assert accuracies(pruned, images, labels) == pytest.approx((expected[1], expected[5]))


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), torch.rand(NUM_IMAGES, 1, 8, 8)
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    labels = torch.arange(NUM_IMAGES) % 8
    top1, top5 = accuracies(network, images, labels)
    assert top1 == pytest.approx((labels == 0).float().mean().item())
    assert top5 == pytest.approx((labels < 5).float().mean().item())


def test_logits_that_are_not_finite_and_labels_of_another_data_set_are_refused() -> None:
    network, images = TwoLayerMLP(64, 8), torch.rand(NUM_IMAGES, 1, 8, 8)
    labels = torch.zeros(NUM_IMAGES, dtype=torch.int64)
    with pytest.raises(ValueError, match="label 11 is not a class of a network with 8 outputs"):
        accuracies(network, images, labels + 11)
    with torch.no_grad():
        network.linear_relu_stack[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match="logits that are not finite"):
        accuracies(network, images, labels)
