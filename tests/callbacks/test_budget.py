"""`PruningCallback(max_drop=...)`: the smallest network that keeps the validation accuracy, found when fitting ends."""

import pytest
import torch
from torch.utils.data import DataLoader

import mlprank
from mlprank.callbacks import PruningCallback
from tests.callbacks.projects import Blobs, Project, blobs, trainer_for


def accuracy(network, data):
    inputs, labels = data.tensors
    with torch.no_grad():
        return float((network.eval()(inputs).argmax(1) == labels).double().mean())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("budget")
    module, callback = Project(width=48), PruningCallback(max_drop=2.0, refine=20)
    trainer_for(directory, callback, max_epochs=3).fit(module, datamodule=Blobs())
    return directory, module, callback


def test_the_network_found_loses_no_more_than_asked_on_the_validation_data(found):
    directory, module, callback = found
    dense = Project.load_from_checkpoint(callback.dense_path, width=48, map_location="cpu")
    validation = blobs(seed=1)
    narrow = mlprank.load_pruned(directory / "pruned.ckpt", Project(width=48))
    assert accuracy(narrow, validation) >= accuracy(dense, validation) - 0.02 - 1e-9
    assert accuracy(module, validation) == accuracy(narrow, validation)
    before, after = (sum(each.numel() for each in network.parameters()) for network in (dense, narrow))
    assert after < 0.7 * before


def test_it_is_measured_on_the_test_data_afterwards(found):
    _, module, callback = found
    assert callback.evaluations[0].split == "test"
    assert callback.evaluations[0].after.top_k[1] == pytest.approx(accuracy(module, blobs(seed=2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amount": 0.3, "max_drop": 1.0}, "amount=0.3 and max_drop=1.0 contradict each other"),
        ({"max_drop": 1.0, "schedule": "linear"}, "max_drop=1.0: pruning in training reaches one amount"),
        ({"max_drop": float("nan")}, "max_drop=nan"),
        ({"max_drop": -1.0}, "max_drop=-1.0"),
    ],
)
def test_budgets_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(**arguments)


def test_without_validation_data_it_is_refused_before_training(tmp_path):
    trainer = trainer_for(tmp_path, PruningCallback(max_drop=1.0), max_epochs=1, limit_val_batches=0)
    with pytest.raises(ValueError, match=r"max_drop=1.0 chooses by validation data, and the run has none"):
        trainer.fit(Project(), DataLoader(blobs(), batch_size=32))
    assert trainer.global_step == 0
