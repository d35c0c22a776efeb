"""Pruning beside an average of the weights: the average is under the same masks."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import mlprank
from mlprank.callbacks import Linear, PruningCallback
from tests.callbacks.projects import Fixed, Project, blobs, pruned_rows, trainer_for, weights


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_averaged_weights_are_under_the_same_masks(tmp_path, first):
    module, callback = Project(), PruningCallback(0.5, schedule=Linear(0, 2))
    average, seen = EMAWeightAveraging(decay=0.9), []

    class Seen(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            seen.append(
                (
                    {name: sorted(set(mask.flatten().tolist())) for name, mask in pl_module.named_buffers()},
                    pruned_rows(pl_module),
                )
            )

    both = [callback, average] if first else [average, callback]
    keep = ModelCheckpoint(tmp_path, filename="kept", save_weights_only=False)
    trainer_for(tmp_path, *both, Seen(), keep, max_epochs=5).fit(module, datamodule=Fixed())
    assert all(set(values) <= {0.0, 1.0} for masks, _ in seen for values in masks.values())
    assert seen[-1][1] == {"net.0": 8, "net.2": 8, "net.4": 0}
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    for state in (kept["state_dict"], kept["current_model_state"]):
        assert state.keys() == Project().state_dict().keys()
        assert int((state["net.0.weight"] == 0).all(1).sum()) == 8
    assert not torch.equal(kept["state_dict"]["net.0.weight"], kept["current_model_state"]["net.0.weight"])
    narrow = mlprank.load_pruned(tmp_path / "pruned.ckpt", Project())
    inputs = blobs(seed=5).tensors[0]
    torch.testing.assert_close(narrow(inputs), module.eval()(inputs), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_averaging_resumes_with_masks(tmp_path, first):
    def run(directory, epochs, path=None):
        module = Project()
        both = [PruningCallback(0.5, schedule=Linear(0, 2), dirpath=str(directory)), EMAWeightAveraging(decay=0.9)]
        keep = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1)
        trainer_for(directory, *(both if first else both[::-1]), keep, max_epochs=epochs).fit(
            module, datamodule=Fixed(), ckpt_path=path
        )
        return module

    torch.manual_seed(0)
    whole = run(tmp_path / "whole", 5)
    resumed = run(tmp_path / "resumed", 5, tmp_path / "whole" / "epoch=2.ckpt")
    assert pruned_rows(resumed) == pruned_rows(whole)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=1e-5, rtol=1e-4)
