"""Pruning at the end of fit, in a project that knows nothing of mlprank."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

import mlprank
from mlprank.callbacks import Linear, PruningCallback
from tests.callbacks.projects import Blobs, Project, blobs, pruned_rows, trainer_for

FILES = {"pruned.ckpt", "scores.safetensors", "metrics.json", "pruning.png"}


def written(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    module, callback = Project(), PruningCallback(amount=0.5)
    trainer = trainer_for(directory, callback, max_epochs=2)
    trainer.fit(module, datamodule=Blobs())
    return directory, module, callback, trainer


def test_one_callback_prunes_somebody_elses_project(fitted):
    directory, module, callback, _ = fitted
    assert written(directory) >= FILES
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
    narrow = mlprank.load_pruned(directory / "pruned.ckpt", Project())
    assert [layer.out_features for layer in narrow.net[::2]] == [8, 8, 3]
    inputs = blobs(seed=5).tensors[0]
    torch.testing.assert_close(narrow(inputs), module.eval()(inputs), atol=1e-5, rtol=0)
    assert callback.evaluations[0].result.achieved == 0.5


def test_the_trainer_tests_the_pruned_network_and_so_does_best(fitted):
    directory, module, callback, trainer = fitted
    reported = callback.evaluations[0].after.top_k[1]
    assert trainer.test(module, datamodule=Blobs(), verbose=False)[0]["test_accuracy"] == pytest.approx(reported)
    best = trainer.test(datamodule=Blobs(), ckpt_path="best", verbose=False)[0]["test_accuracy"]
    assert best == pytest.approx(reported)
    assert Path(trainer.checkpoint_callback.best_model_path) == directory / "masked.ckpt"


def test_the_dense_checkpoint_still_tests_as_the_dense_network(fitted):
    directory, module, callback, trainer = fitted
    dense = trainer.test(module, datamodule=Blobs(), ckpt_path=str(callback.dense_path), verbose=False)
    assert dense[0]["test_accuracy"] == pytest.approx(callback.evaluations[0].before.top_k[1])
    assert pruned_rows(module) == {"net.0": 0, "net.2": 0, "net.4": 0}
    trainer.test(datamodule=Blobs(), ckpt_path=str(directory / "masked.ckpt"), verbose=False)
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}


def test_the_files_agree_with_each_other(fitted):
    directory, _, callback, _ = fitted
    metrics = json.loads((directory / "metrics.json").read_text())
    scores = load_file(directory / "scores.safetensors")
    assert {name: len(score) for name, score in scores.items()} == {"net.0": 16, "net.2": 16, "net.4": 3}
    assert all(float(score.sum()) == pytest.approx(1.0, abs=1e-4) for score in scores.values())
    assert metrics["layers"]["net.0"] == {"before": 16, "after": 8, "pruned": 8}
    assert metrics["provenance"]["source"] == str(callback.dense_path)
    assert metrics["split"] == "test"
    artifact = mlprank.artifact.pruned.read_artifact(directory / "pruned.ckpt")
    assert artifact.recipe["amount"] == metrics["recipe"]["amount"] == 0.5


@pytest.mark.parametrize("apply", ["remove", "none"])
def test_apply_says_what_the_trainers_module_becomes(tmp_path, apply):
    module, callback = Project(), PruningCallback(0.5, apply=apply)
    trainer = trainer_for(tmp_path, callback, max_epochs=1)
    trainer.fit(module, datamodule=Blobs())
    widths = [layer.out_features for layer in module.net[::2]]
    assert widths == ([8, 8, 3] if apply == "remove" else [16, 16, 3])
    assert sum(pruned_rows(module).values()) == 0
    evaluation = callback.evaluations[0]
    expected = (evaluation.after if apply == "remove" else evaluation.before).top_k[1]
    for path in (None, "best"):
        tested = trainer.test(module, datamodule=Blobs(), ckpt_path=path, verbose=False)
        assert tested[0]["test_accuracy"] == pytest.approx(expected)


def test_several_amounts_give_a_network_each_and_the_last_is_applied(tmp_path):
    module, callback = Project(), PruningCallback([0.25, 0.75])
    trainer_for(tmp_path, callback, max_epochs=1).fit(module, datamodule=Blobs())
    assert {"pruned-0.25.ckpt", "pruned-0.75.ckpt", "metrics-0.25.json", "pruning-0.75.png"} <= written(tmp_path)
    assert pruned_rows(module)["net.0"] == 12
    assert mlprank.load_pruned(tmp_path / "pruned-0.25.ckpt", Project()).net[0].out_features == 12


def test_amounts_can_be_given_by_layer(tmp_path):
    module = Project()
    trainer_for(tmp_path, PruningCallback({"net.0": 0.25}), max_epochs=1).fit(module, datamodule=Blobs())
    assert pruned_rows(module) == {"net.0": 4, "net.2": 0, "net.4": 0}


def test_without_checkpoints_the_last_weights_are_pruned_and_kept(tmp_path):
    module, callback = Project(), PruningCallback(0.5, dirpath=str(tmp_path / "out"))
    trainer = trainer_for(tmp_path, callback, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, datamodule=Blobs())
    assert written(tmp_path) == {"out"}
    assert written(tmp_path / "out") == FILES | {"dense.ckpt"}
    assert callback.dense_path == tmp_path / "out" / "dense.ckpt"
    dense = Project()
    dense.load_state_dict(torch.load(callback.dense_path, weights_only=True)["state_dict"])
    assert sum(pruned_rows(dense).values()) == 0
    assert trainer.test(module, datamodule=Blobs(), verbose=False)[0]["test_accuracy"] == pytest.approx(
        callback.evaluations[0].after.top_k[1]
    )


def test_the_best_weights_are_pruned_not_the_last(tmp_path):
    class Diverging(Project):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                torch.nn.init.normal_(self.net[0].weight, std=20)

    module, callback = Diverging(), PruningCallback(0.0)
    best = ModelCheckpoint(monitor="val_loss")
    trainer_for(tmp_path, callback, best, max_epochs=2).fit(module, datamodule=Blobs())
    state = torch.load(callback.dense_path, weights_only=True)
    assert state["epoch"] == 0
    torch.testing.assert_close(module.net[0].weight, state["state_dict"]["net.0.weight"])


@pytest.mark.parametrize("schedule", [None, Linear(3, 6)])
def test_fast_dev_run_prunes_and_writes_nothing(tmp_path, monkeypatch, schedule):
    monkeypatch.chdir(tmp_path)
    callback = PruningCallback(0.5, schedule=schedule)
    trainer_for(tmp_path, callback, fast_dev_run=True).fit(Project(), datamodule=Blobs())
    assert written(tmp_path) == set()
    assert callback.evaluations[0].result.achieved == 0.5
    assert callback.files == []


def test_a_loader_may_be_handed_to_fit_and_limited(tmp_path):
    module, callback = Project(), PruningCallback(0.5, num_samples=50)
    trainer = trainer_for(tmp_path, callback, max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, torch.utils.data.DataLoader(blobs(), batch_size=16))
    assert pruned_rows(module)["net.0"] == 8
    assert callback.evaluations[0].split is None


def test_without_training_data_nothing_is_pruned_and_it_says_so(tmp_path):
    module, callback = Project(), PruningCallback(0.5)
    with pytest.warns(UserWarning, match="Nothing was pruned: the run has no training data"):
        trainer_for(tmp_path, callback, max_epochs=1, limit_train_batches=0).fit(module, datamodule=Blobs())
    assert callback.evaluations == []
    assert sum(pruned_rows(module).values()) == 0


def test_hooks_that_transfer_batches_are_heard(tmp_path):
    class Scaled(Blobs):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 100 + 7, batch[1]

    callback = PruningCallback(0.5)
    trainer_for(tmp_path, callback, max_epochs=1).fit(Project(), datamodule=Scaled())
    assert float(callback.evaluations[0].result.example.abs().mean()) > 50


def test_the_data_may_be_in_the_module_and_the_network_without_forward(tmp_path):
    class Own(Project):
        forward = torch.nn.Module.forward

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def train_dataloader(self):
            return Blobs().train_dataloader()

    class WithoutForward(Own):
        pass

    del Own.forward
    module, callback = WithoutForward(), PruningCallback(0.5, network="net")
    trainer_for(tmp_path, callback, max_epochs=1, limit_val_batches=0).fit(module)
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
    assert type(callback.evaluations[0].result.model) is torch.nn.Sequential


def test_random_states_of_the_caller_are_left_alone(tmp_path):
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(blobs(), batch_size=32, shuffle=True, generator=generator)

    class Watching(PruningCallback):
        def on_fit_end(self, trainer, pl_module):
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), generator.get_state()
            super().on_fit_end(trainer, pl_module)
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), generator.get_state()
            self.same = [
                torch.equal(before[0], after[0]),
                before[1:3] == after[1:3],
                torch.equal(before[3], after[3]),
            ]

    callback = Watching(0.5)
    trainer_for(tmp_path, callback, max_epochs=1).fit(Project(), loader)
    assert callback.same == [True, True, True]


def test_a_second_fit_goes_on_from_the_masks_and_does_not_compound(tmp_path):
    module = Project()
    for epochs in (1, 2):
        callback = PruningCallback(0.5)
        trainer_for(tmp_path / str(epochs), callback, max_epochs=1, enable_checkpointing=False).fit(
            module, datamodule=Blobs()
        )
        assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
