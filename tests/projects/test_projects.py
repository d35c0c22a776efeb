"""The three projects through `fit`, pruned at the end and by a schedule."""

import pytest
import torch
from lightning.pytorch import seed_everything

import mlprank
from mlprank.callbacks import Linear, PruningCallback
from tests.callbacks.projects import Blobs, trainer_for
from tests.projects.bare_sequential import BareSequential
from tests.projects.functional_residual import FunctionalResidual
from tests.projects.vision_transformer import FineTune, Stripes, small_transformer

AT_THE_END = pytest.param(None, marks=pytest.mark.slow, id="end")
SCHEDULES = pytest.mark.parametrize("schedule", [AT_THE_END, pytest.param(Linear(0, 2), id="scheduled")])


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch):
    monkeypatch.setattr(mlprank.pruning.evaluation, "_LATENCY_BUDGET_S", 0.01)
    seed_everything(0, verbose=False)


def fit(directory, module, schedule, *, datamodule=None, **options):
    callback = PruningCallback(0.5, schedule=schedule, **options)
    trainer = trainer_for(directory, callback, max_epochs=4)
    trainer.fit(module, datamodule=datamodule)
    tested = trainer.test(module, datamodule=datamodule, verbose=False)[0]["accuracy"]
    evaluation = callback.evaluations[0]
    assert evaluation.split == "test"
    assert tested == pytest.approx(evaluation.after.top_k[1], abs=1e-6)
    assert evaluation.result.achieved == pytest.approx(0.5, abs=0.02)
    assert evaluation.after.num_parameters < evaluation.before.num_parameters
    return evaluation


@SCHEDULES
def test_a_bare_sequential_without_forward(tmp_path, schedule):
    module = BareSequential()
    evaluation = fit(tmp_path, module, schedule)
    assert evaluation.result.widths == {"0": (32, 16), "4": (32, 16), "7": (10, 10)}
    assert evaluation.after.top_k[1] > 0.8
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt", BareSequential())
    assert narrow.layers[1].num_features == 16
    images = torch.rand(5, 64)
    torch.testing.assert_close(narrow.layers(images), module.layers.eval()(images), atol=1e-5, rtol=0)


@SCHEDULES
@pytest.mark.parametrize("compensation", ["least_squares", pytest.param("constant", marks=pytest.mark.slow)])
def test_functional_calls_residuals_and_manual_optimisation(tmp_path, schedule, compensation):
    module = FunctionalResidual()
    evaluation = fit(tmp_path, module, schedule, datamodule=Blobs(), compensation=compensation)
    assert evaluation.after.top_k[1] > 0.6
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt", FunctionalResidual())
    pruned = {name: len(kept) for name, kept in evaluation.result.slices.items()}
    assert any(name.endswith(".up") for name in pruned)
    inputs = torch.randn(5, 8)
    torch.testing.assert_close(narrow(inputs), module.eval()(inputs), atol=1e-5, rtol=0)


@SCHEDULES
def test_the_blocks_of_a_vision_transformer(tmp_path, schedule):
    module = FineTune(small_transformer())
    evaluation = fit(tmp_path, module, schedule, datamodule=Stripes())
    widths = evaluation.result.widths
    hidden = [f"vit.encoder.layers.encoder_layer_{index}.mlp.0" for index in range(2)]
    assert [widths[name] for name in hidden] == [(32, 16), (32, 16)]
    assert {name for name, (before, after) in widths.items() if before != after} == set(hidden)
    assert evaluation.after.top_k[1] > 0.5
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt", FineTune(small_transformer()))
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(narrow(images), module.eval()(images), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_vit_b_16_is_fine_tuned_and_pruned(tmp_path):
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    module = FineTune(vit_b_16(image_size=32, num_classes=4))
    callback = PruningCallback(0.5, finetune_epochs=1, num_samples=16, apply="remove", compensation="constant")
    trainer = trainer_for(tmp_path, callback, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=Stripes(32, num_samples=16, batch_size=8))
    widths = [(layer.mlp[0].out_features, layer.mlp[3].in_features) for layer in module.vit.encoder.layers]
    assert widths == [(1536, 1536)] * 12
    assert module(torch.randn(2, 3, 32, 32)).shape == (2, 4)
