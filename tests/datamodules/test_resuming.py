from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from mlprank.datamodules import DigitsDataModule
from tests.datamodules.networks import Recorder, quiet_trainer

BATCHES_PER_EPOCH = 9


class Killed(BaseException):
    pass


class KillAfter(Callback):
    """Stop a run without any clean-up of Lightning's checkpoints, like a killed process."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_arguments) -> None:
        if trainer.global_step == self.step:
            raise Killed


def run(folder: Path, *, callbacks=(), ckpt_path=None, **options) -> Recorder:
    torch.manual_seed(0)
    network = Recorder()
    options = {"max_epochs": 3, "enable_checkpointing": bool(callbacks), "default_root_dir": folder, **options}
    trainer = quiet_trainer(callbacks=list(callbacks), **options)
    trainer.fit(network, datamodule=DigitsDataModule(batch_size=128, seed=5), ckpt_path=ckpt_path, weights_only=True)
    return network


@pytest.mark.parametrize("killed_at", [1, 4, 8, 9, 10, 18, 20])
def test_a_run_killed_at_any_step_goes_on_with_the_batches_it_would_have_seen(tmp_path, killed_at):
    whole = run(tmp_path)
    assert len(whole.seen) == 3 * BATCHES_PER_EPOCH
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(Killed):
        run(tmp_path, callbacks=[every_step, KillAfter(killed_at + 1)])
    resumed = run(tmp_path, ckpt_path=tmp_path / f"step={killed_at}.ckpt")
    assert [total for _, total in resumed.seen] == [total for _, total in whole.seen[killed_at:]]
    for name, parameter in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], parameter)


@pytest.mark.parametrize("on_train_epoch_end", [True, False])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_resumed_from_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, epochs, on_train_epoch_end):
    whole = run(tmp_path)
    every_epoch = ModelCheckpoint(
        tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=on_train_epoch_end, every_n_epochs=1
    )
    run(tmp_path, callbacks=[every_epoch])
    resumed = run(tmp_path, ckpt_path=tmp_path / f"epoch={epochs - 1}.ckpt")
    assert [total for _, total in resumed.seen] == [total for _, total in whole.seen[epochs * BATCHES_PER_EPOCH :]]
    for name, parameter in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], parameter)


def test_epochs_shuffle_anew_and_a_second_run_repeats_the_first(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first.seen == second.seen
    assert len({total for _, total in first.seen}) == 3 * BATCHES_PER_EPOCH
