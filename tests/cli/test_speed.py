import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from mlprank.cli.speed import NoProfiler, no_device_search, skip_idle_hooks
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier

VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"


class _Counting(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: object) -> None:
        self.called = True


class _Overridden(ImageClassifier):
    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.called = True


def _trainer(root: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=root, callbacks=list(callbacks)
    )


def test_only_hooks_that_nobody_has_overridden_are_skipped(tmp_path: Path) -> None:
    counting, average = _Counting(), EMAWeightAveraging()
    module = _Overridden(MLP(4, [3], 2))
    skip_idle_hooks(_trainer(tmp_path, counting, average), module)
    assert callable(counting.on_after_backward)
    assert counting.on_train_batch_end is None
    assert callable(average.on_train_batch_end)
    assert callable(module.on_before_zero_grad)
    assert module.on_after_backward is None


@pytest.mark.parametrize(
    ("options", "skipped"),
    [
        ({}, True),
        ({"every_n_epochs": 2, "save_last": True}, True),
        ({"every_n_train_steps": 5}, False),
        ({"train_time_interval": timedelta(minutes=1)}, False),
    ],
)
def test_checkpoints_within_an_epoch_are_still_written(tmp_path: Path, options: dict[str, int], skipped: bool) -> None:
    checkpoint = ModelCheckpoint(tmp_path, **options)
    skip_idle_hooks(_trainer(tmp_path, checkpoint), ImageClassifier(MLP(4, [3], 2)))
    assert (checkpoint.on_train_batch_end is None) == skipped


def test_the_search_for_devices_is_off_on_the_cpu_alone_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with no_device_search(torch.device("cuda")):
        assert os.environ[VARIABLE] == "1"
    with pytest.raises(KeyError), no_device_search(torch.device("cpu")):  # noqa: PT012
        assert VARIABLE not in os.environ
        raise KeyError
    assert os.environ[VARIABLE] == "1"


def test_a_profiler_that_is_off_can_be_entered_again_within_itself() -> None:
    profiler = NoProfiler()
    with profiler.profile("outer"), profiler.profile("inner"):
        pass
    assert profiler.summary() == ""
