"""Bad arguments, each with its error; and errors of a run, before training is wasted."""

import math

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelPruning
from torch.utils.data import DataLoader

from mlprank.callbacks import Cubic, Linear, PruningCallback
from tests.callbacks.projects import Blobs, Project, blobs, trainer_for


@pytest.mark.parametrize("amount", [1.0, -0.1, math.nan, "half", True, {"net.0": 1.5}, [0.3, 2.0]])
def test_amounts_lie_in_0_to_1(amount):
    with pytest.raises(ValueError, match=r"amount=.* is not in \[0, 1\)"):
        PruningCallback(amount)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": []}, r"amount=\[\] holds no amount"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number of at least 1"),
        ({"apply": "cut"}, "apply='cut' is unknown; choose one of mask, remove, none"),
        ({"graph": "tree"}, "graph='tree' is unknown"),
        ({"min_neurons": 0}, "min_neurons=0 must be a whole number"),
        ({"round_to": 1.5}, "round_to=1.5 must be a whole number"),
        ({"finetune_epochs": -1}, "finetune_epochs=-1 must be a whole number"),
        ({"schedule": "steep"}, 'unknown schedule "steep"'),
        ({"amount": [0.3, 0.5], "schedule": "linear"}, "pruning in training reaches one amount"),
        ({"amount": 0.3, "schedule": Linear(initial=0.5)}, "it goes down from initial=0.5 to amount=0.3"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(**arguments)


def test_a_schedule_must_be_one():
    with pytest.raises(
        TypeError, match="schedule=3 is not a name, a class or an instance of a schedule; the names are linear, cubic"
    ):
        PruningCallback(schedule=3)


def test_a_run_directory_that_cannot_be_written_to_is_named_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    module = Project()
    before = module.net[0].weight.detach().clone()
    callback = PruningCallback(0.5, dirpath=str(tmp_path / "file" / "run"))
    with pytest.raises(OSError, match=r"cannot write to the run directory .*file.run .*dirpath="):
        trainer_for(tmp_path, callback).fit(module, datamodule=Blobs())
    assert torch.equal(before, module.net[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": {"fc9": 0.5}}, 'amount: "fc9" matches no layer; the layers are "net.0", "net.2", "net.4"'),
        ({"amount": [0.5, {"fc9": 0.5}]}, 'amount: "fc9" matches no layer'),
        ({"protect": ["head"]}, 'protect: "head" matches no layer'),
        ({"protect": ["*"]}, 'there is nothing to prune: .*"net.2".*: it is protected'),
        ({"network": "head"}, 'network="head" is not a submodule of Project; it has net'),
    ],
)
def test_what_cannot_be_pruned_is_said_before_training(tmp_path, arguments, message):
    module = Project()
    before = module.net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, PruningCallback(**arguments)).fit(module, datamodule=Blobs())
    assert torch.equal(before, module.net[0].weight)


def test_empty_calibration_data_is_named_before_training(tmp_path):
    class Empty(Blobs):
        def calibration_dataloader(self, num_samples, seed):
            return []

    callback = PruningCallback(0.5)
    with pytest.raises(ValueError, match=r"calibration: Empty.calibration_dataloader is empty"):
        trainer_for(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(Project(), datamodule=Empty())
    assert list(tmp_path.iterdir()) == []


def test_several_training_loaders_need_a_calibration_loader(tmp_path):
    class Two(LightningDataModule):
        def train_dataloader(self):
            return {"a": DataLoader(blobs(), 32), "b": DataLoader(blobs(), 32)}

    class Reads(Project):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    with pytest.raises(TypeError, match="several training dataloaders; give the datamodule a calibration_dataloader"):
        trainer_for(tmp_path, PruningCallback(0.5), max_epochs=1, limit_val_batches=0).fit(Reads(), datamodule=Two())


def test_a_module_of_several_networks_must_say_which(tmp_path):
    class Two(LightningModule):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.other(self.one(batch[0]).relu()), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"Two has no forward and 2 submodules with parameters \(one, other\)"):
        trainer_for(tmp_path, PruningCallback(0.5), max_epochs=1).fit(Two(), DataLoader(blobs(), 32))


def test_a_second_callback_is_refused_and_the_error_says_why(tmp_path):
    with pytest.raises(ValueError, match="two PruningCallbacks, and each would prune what the other has left"):
        trainer_for(tmp_path, PruningCallback(0.3), PruningCallback(0.5)).fit(Project(), datamodule=Blobs())


def test_lightnings_own_pruning_beside_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Lightning's ModelPruning, which mask the same weights"):
        trainer_for(tmp_path, PruningCallback(0.3), ModelPruning("l1_unstructured")).fit(Project(), datamodule=Blobs())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("linear", Linear()),
        ({"name": "cubic", "end_epoch": 4}, Cubic(end_epoch=4)),
        ({"class_path": "mlprank.callbacks.Linear", "init_args": {"start_epoch": 1, "every": 2}}, Linear(1, every=2)),
        (None, None),
    ],
)
def test_yaml_can_say_everything_that_python_can(given, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PruningCallback, "pruning")
    parsed = parser.parse_object({"pruning": {"amount": {"net.0": 0.25}, "schedule": given, "finetune_epochs": 2}})
    again = parser.parse_string(parser.dump(parsed))
    callback = parser.instantiate_classes(again).pruning
    assert callback.schedule == expected
    assert callback.amounts == ({"net.0": 0.25},)
    assert callback.finetune_epochs == 2
