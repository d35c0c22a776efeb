"""Pruning while training: masks that grow, outlive optimizer steps and checkpoints, and never compound."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import mlprank
from mlprank.callbacks import Cubic, Linear, PruningCallback
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from mlprank.surgery.masks import masked_rows
from tests.callbacks.projects import Fixed, Project, blobs, pruned_rows, trainer_for, weights


class Watch(Callback):
    """Notes, at the end of every epoch, which neurons compute to nothing."""

    def __init__(self):
        self.zeros, self.parameters = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module(torch.randn(2, 8))
        self.zeros.append({name: (layer.weight == 0).all(1) for name, layer in linears(pl_module)})
        self.parameters.append([id(parameter) for parameter in trainer.optimizers[0].param_groups[0]["params"]])


def linears(module):
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scheduled")
    torch.manual_seed(0)
    module, watch = Project(), Watch()
    callback = PruningCallback(0.5, schedule=Linear(1, 3))
    last = ModelCheckpoint(directory / "epochs", filename="{epoch}", save_top_k=-1)
    trainer = trainer_for(directory, callback, watch, last, max_epochs=6)
    trainer.fit(module, datamodule=Fixed())
    return directory, module, callback, watch, trainer


def test_masks_grow_to_the_absolute_target_and_stay_through_optimizer_steps(scheduled):
    _, module, _, watch, _ = scheduled
    assert [int(zeros["net.0"].sum()) for zeros in watch.zeros] == [0, 0, 4, 8, 8, 8]
    assert [int(zeros["net.4"].sum()) for zeros in watch.zeros] == [0] * 6
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}


def test_a_pruned_neuron_stays_pruned(scheduled):
    *_, watch, _ = scheduled
    for before, after in zip(watch.zeros, watch.zeros[1:], strict=False):
        assert all(bool(after[name][gone].all()) for name, gone in before.items())


def test_the_optimizer_keeps_its_parameters_and_what_it_knows_of_them(scheduled):
    *_, watch, trainer = scheduled
    assert all(ids == watch.parameters[0] for ids in watch.parameters)
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {6 * 8}


def test_the_pruned_file_is_the_fine_tuned_network(scheduled):
    directory, module, callback, *_ = scheduled
    narrow = mlprank.load_pruned(directory / "pruned.ckpt", Project())
    inputs = blobs(seed=5).tensors[0]
    torch.testing.assert_close(narrow(inputs), module.eval()(inputs), atol=1e-5, rtol=0)
    assert callback.dense_path == directory / "dense.ckpt"
    assert torch.load(callback.dense_path, weights_only=True)["epoch"] == 2
    evaluation = callback.evaluations[0]
    assert evaluation.result.achieved == 0.5
    dense = Project()
    dense.load_state_dict(torch.load(callback.dense_path, weights_only=True)["state_dict"])
    tested = trainer_for(directory).test(dense, datamodule=Fixed(), verbose=False)[0]["test_accuracy"]
    assert evaluation.before.top_k[1] == pytest.approx(tested)


def test_the_state_of_the_callback_is_plain_and_in_every_checkpoint(scheduled):
    directory, *_ = scheduled
    state = torch.load(directory / "epochs" / "epoch=3.ckpt", weights_only=True)
    (own,) = [value for key, value in state["callbacks"].items() if key.startswith("PruningCallback")]
    assert own["settings"]["amount"] == 0.5
    assert own["settings"]["measure"] == {"name": "weighted_pagerank", "gamma": 0.9, "theta": 0.5}
    assert own["schedule"] == {"name": "linear", "start_epoch": 1, "end_epoch": 3, "initial": 0.0, "every": 1}
    assert own["epoch"] == 3
    assert {name: int((~kept).sum()) for name, kept in own["masks"].items()} == {
        "net.0.weight": 8,
        "net.0.bias": 8,
        "net.2.weight": 8,
        "net.2.bias": 8,
    }


@pytest.mark.parametrize("epoch", [2, pytest.param(0, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_same_masks_and_ends_with_the_same_weights(scheduled, tmp_path, epoch):
    directory, module, *_ = scheduled
    resumed = Project()
    callback = PruningCallback(0.5, schedule=Linear(1, 3))
    trainer = trainer_for(tmp_path, callback, max_epochs=6, enable_checkpointing=False)
    trainer.fit(resumed, datamodule=Fixed(), ckpt_path=directory / "epochs" / f"epoch={epoch}.ckpt")
    own, other = masked_rows(resumed), masked_rows(module)
    assert own.keys() == other.keys()
    assert all(torch.equal(kept, other[name]) for name, kept in own.items())
    torch.testing.assert_close(weights(resumed), weights(module), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_our_own_classifier_resumes_with_masks(tmp_path):
    def run(directory, path=None):
        torch.manual_seed(0)
        module = ImageClassifier(MLP(8, [16, 12], 3), optimizer=torch.optim.Adam)
        callback = PruningCallback(0.5, schedule=Linear(0, 2), compensation="constant", dirpath=str(directory))
        keep = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1)
        trainer_for(directory, callback, keep, max_epochs=4).fit(module, datamodule=Fixed(), ckpt_path=path)
        return module

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "epoch=1.ckpt")
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), atol=1e-6, rtol=1e-5)
    assert sum(pruned_rows(resumed).values()) == 14


@pytest.mark.slow
def test_a_checkpoint_from_the_middle_of_an_epoch_is_not_pruned_again(tmp_path):
    callback = PruningCallback(0.5, schedule=Linear(0, 3))
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=12)
    trainer_for(tmp_path, callback, keep, max_epochs=5, limit_val_batches=0).fit(Project(), datamodule=Fixed())
    epochs = []

    class Resumed(PruningCallback):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            mask, self.mask = self.mask, lambda *given: epochs.append(given[0].current_epoch) or mask(*given)

    resumed = Resumed(0.5, schedule=Linear(0, 3))
    state = torch.load(tmp_path / "step=12.ckpt", weights_only=True)
    (key,) = [key for key in state["callbacks"] if key.startswith("PruningCallback")]
    state["callbacks"] = {resumed.state_key: state["callbacks"][key]}
    torch.save(state, tmp_path / "middle.ckpt")
    trainer_for(tmp_path / "resumed", resumed, max_epochs=5).fit(
        Project(), datamodule=Fixed(), ckpt_path=tmp_path / "middle.ckpt"
    )
    assert epochs == [2, 3]


@pytest.mark.slow
def test_workers_that_stay_alive_are_not_disturbed(tmp_path):
    class Workers(Fixed):
        def train_dataloader(self):
            return DataLoader(blobs(), batch_size=32, num_workers=1, persistent_workers=True)

    def run(data, directory):
        torch.manual_seed(0)
        module, callback = Project(), PruningCallback(0.5, schedule=Linear(0, 2))
        trainer = trainer_for(directory, callback, max_epochs=3, enable_checkpointing=False)
        trainer.fit(module, datamodule=data)
        assert trainer.global_step == 24
        return weights(module)

    torch.testing.assert_close(run(Workers(), tmp_path / "a"), run(Fixed(), tmp_path / "b"), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": 0.7}, r"PruningCallback\(amount=0.7\) cannot resume a checkpoint that was written with amount=0.5"),
        (
            {"measure": "norm"},
            r"measure={'name': 'norm', 'p': 1}.* written with measure={'name': 'weighted_pagerank', 'gamma': 0.9, 'th",
        ),
        ({"measure": {"name": "weighted_pagerank", "gamma": 0.5}}, r"={'name': 'weighted_pagerank', 'gamma': 0.5"),
        ({"schedule": Cubic(1, 3)}, r"schedule={'name': 'cubic', .* written with schedule={'name': 'linear', "),
    ],
)
def test_resuming_with_other_choices_is_refused(scheduled, tmp_path, arguments, message):
    directory, *_ = scheduled
    callback = PruningCallback(**{"amount": 0.5, "schedule": Linear(1, 3), **arguments})
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, callback, max_epochs=6).fit(
            Project(), datamodule=Fixed(), ckpt_path=directory / "epochs" / "epoch=2.ckpt"
        )


def test_a_checkpoint_of_other_choices_can_be_tested(scheduled, tmp_path):
    directory, module, *_ = scheduled
    other = Project()
    trainer_for(tmp_path, PruningCallback(0.7)).test(
        other, datamodule=Fixed(), ckpt_path=directory / "epochs" / "epoch=5.ckpt", verbose=False
    )
    assert pruned_rows(other) == pruned_rows(module)


@pytest.mark.parametrize(
    ("compensation", "method"),
    [
        ("least_squares", "global"),
        pytest.param("constant", "local", marks=pytest.mark.slow),
        pytest.param("mean", "local", marks=pytest.mark.slow),
        pytest.param("constant", "global", marks=pytest.mark.slow),
    ],
)
def test_fine_tuning_follows_one_pruning_and_removal_follows_that(tmp_path, compensation, method):
    module = Project()
    callback = PruningCallback(
        0.5, finetune_epochs=2, apply="remove", compensation=compensation, method=method, measure="norm"
    )
    trainer_for(tmp_path, callback, max_epochs=3, enable_checkpointing=False).fit(module, datamodule=Fixed())
    result = callback.evaluations[0].result
    assert result.achieved == 0.5
    assert sum(layer.out_features for layer in module.net[:4:2]) == 16
    inputs = blobs(seed=5).tensors[0]
    torch.testing.assert_close(module.eval()(inputs), result.masked.eval()(inputs), atol=1e-5, rtol=0)


def test_training_stopped_early_is_pruned_to_the_target_and_says_so(tmp_path, caplog):
    module, callback = Project(lr=0.0), PruningCallback(0.5, schedule=Linear(0, 5))
    stop = EarlyStopping("val_loss", patience=1, min_delta=10)
    trainer = trainer_for(tmp_path, callback, stop, max_epochs=8)
    trainer.fit(module, datamodule=Fixed())
    assert trainer.current_epoch < 5
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}
    assert "before epoch 5, in which the schedule ends" in caplog.text
    assert "is pruned now, without fine-tuning" in caplog.text


def test_a_best_checkpoint_from_before_the_last_pruning_is_passed_over(tmp_path):
    class Worse(Project):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", float(self.current_epoch))

    module, callback = Worse(), PruningCallback(0.5, schedule=Linear(1, 2))
    trainer_for(tmp_path, callback, ModelCheckpoint(monitor="val_loss"), max_epochs=3).fit(module, datamodule=Fixed())
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}


def test_the_best_checkpoint_with_the_final_masks_counts(tmp_path):
    class Destroyed(Project):
        def on_train_epoch_start(self):
            if self.current_epoch == 3:
                nn.init.constant_(self.net[4].bias, 1000.0)

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", abs(self.current_epoch - 0.6))

    module, callback = Destroyed(), PruningCallback(0.5, schedule=Linear(1, 2))
    best = ModelCheckpoint(monitor="val_loss", save_top_k=-1)
    trainer_for(tmp_path, callback, best, max_epochs=4).fit(module, datamodule=Fixed())
    assert float(module.net[4].bias.abs().max()) < 100
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}


def test_layers_without_bias_get_none_while_an_optimizer_trains_them(tmp_path):
    class Without(Project):
        def __init__(self):
            super().__init__()
            self.net[2] = nn.Linear(16, 16, bias=False)

    module = Without()
    callback = PruningCallback(0.5, schedule=Linear(0, 1), apply="none")
    trainer_for(tmp_path, callback, max_epochs=2, enable_checkpointing=False).fit(module, datamodule=Fixed())
    assert module.net[2].bias is None
    assert pruned_rows(module)["net.0"] == 8


def test_a_module_can_be_copied_in_the_middle_of_training(tmp_path):
    copies = []

    class Copies(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            copies.append(copy.deepcopy(pl_module.net))

    callback = PruningCallback(0.5, finetune_epochs=2, apply="none")
    trainer_for(tmp_path, callback, Copies(), max_epochs=2, num_sanity_val_steps=1).fit(Project(), datamodule=Fixed())
    assert [int((each[0].weight == 0).all(1).sum()) for each in copies] == [0, 8, 8]
