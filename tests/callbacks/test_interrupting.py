"""Ctrl-C in training and while pruning: it says what it did, and no file is half there."""

import pytest

import mlprank.pruning.evaluation
from mlprank.callbacks import Linear, PruningCallback
from mlprank.callbacks import pruning as pruning_module
from tests.callbacks.projects import Blobs, Project, pruned_rows, trainer_for

pytestmark = pytest.mark.usefixtures("interruptible")


class Interrupted(Project):
    """Gets Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.current_epoch == self.epoch and batch_idx == 3:
            raise KeyboardInterrupt
        return loss


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("epoch", "message"),
    [
        (0, "nothing was pruned: no checkpoint has been written yet"),
        (1, "nothing was pruned: the best checkpoint so far is"),
    ],
)
def test_an_interrupted_fit_prunes_nothing_and_says_so(tmp_path, caplog, epoch, message):
    module, callback = Interrupted(epoch), PruningCallback(0.5)
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, callback).fit(module, datamodule=Blobs())
    assert message in caplog.text
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoints"}
    assert sum(pruned_rows(module).values()) == 0


def test_an_interrupted_schedule_says_how_far_it_came_and_goes_on(tmp_path, caplog):
    callback = PruningCallback(0.5, schedule=Linear(0, 2))
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, callback, max_epochs=4).fit(Interrupted(2), datamodule=Blobs())
    assert "50.0% of the neurons are pruned and fit(ckpt_path=...) goes on from any checkpoint" in caplog.text
    (path,) = (tmp_path / "checkpoints").iterdir()
    module = Project()
    resumed = PruningCallback(0.5, schedule=Linear(0, 2))
    trainer_for(tmp_path, resumed, max_epochs=4).fit(module, datamodule=Blobs(), ckpt_path=path)
    assert pruned_rows(module) == {"net.0": 8, "net.2": 8, "net.4": 0}


@pytest.mark.parametrize("place", ["save_file", "write_chart", "metrics_record"])
def test_interrupted_writing_leaves_no_file_of_the_pruning(tmp_path, caplog, monkeypatch, place):
    monkeypatch.setattr(mlprank.pruning.evaluation, place, interrupt)
    module = Project()
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, PruningCallback(0.5), max_epochs=1).fit(module, datamodule=Blobs())
    assert "Interrupted while pruning, whose files were not written: the best checkpoint so far is" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints"}
    assert sum(pruned_rows(module).values()) == 0


def test_interrupted_pruning_leaves_the_module_dense(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pruning_module, "prune_amounts", interrupt)
    module = Project()
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, PruningCallback(0.5), max_epochs=1).fit(module, datamodule=Blobs())
    assert "Interrupted while pruning" in caplog.text
    assert sum(pruned_rows(module).values()) == 0
