"""On an accelerator everything gives what it gives on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Trainer

import mlprank
from mlprank.callbacks import PruningCallback
from mlprank.datamodules import DigitsDataModule
from mlprank.models import MLP, SixLayerMLP
from mlprank.models.classifier import ImageClassifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("compensation", ["constant", "zero", "mean", "least_squares"])
def test_pruning_on_the_device_keeps_the_neurons_that_it_keeps_on_the_cpu(compensation):
    torch.manual_seed(0)
    network, images = SixLayerMLP().double().eval(), torch.rand(64, 3, 32, 32, dtype=torch.float64)
    here = mlprank.prune(network, images, compensation=compensation)
    there = mlprank.prune(copy.deepcopy(network).cuda(), images, compensation=compensation)
    assert all(torch.equal(mask, there.masks[name].cpu()) for name, mask in here.masks.items())
    with torch.no_grad():
        assert torch.allclose(here.model(images), there.model(images.cuda()).cpu(), atol=1e-9)


def test_calibration_data_is_moved_to_the_network():
    network = MLP(64, [32, 16], 10).cuda()
    result = mlprank.prune(network, torch.rand(32, 64))
    assert next(result.model.parameters()).device.type == "cuda"
    assert result.max_difference < 1e-4


def test_fitting_and_pruning_on_the_device_writes_a_network_that_loads_on_the_cpu(tmp_path):
    module, callback = ImageClassifier(MLP(64, [32, 16], 10)), PruningCallback(amount=0.5, dirpath=str(tmp_path))
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=2,
        callbacks=[callback],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DigitsDataModule())
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt")
    assert next(narrow.parameters()).device.type == "cpu"
    assert narrow.model.fc1.out_features == 16
