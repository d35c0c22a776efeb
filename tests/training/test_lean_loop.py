"""The lean loop does what Lightning's does, step by step, or leaves the steps to it."""

import os
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from mlprank.datamodules import DigitsDataModule
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from mlprank.training import lean_loop as speed
from mlprank.training.lean_loop import LeanEpochLoop, lean_training

VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"


class _Diary(Callback):
    """Notes every step and what the trainer counts then, and logs from within it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._note("start", trainer, batch_idx, batch[0].sum().item())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("step_loss", outputs["loss"])
        self._note("end", trainer, batch_idx, outputs["loss"].item())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note("validation", trainer)

    def _note(self, what: str, trainer: Trainer, *values: float) -> None:
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.entries.append((what, *values, step, loop.batch_idx, loop._batches_that_stepped, logged))


class _ActsInAStep(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.grad = torch.zeros_like(parameter)


class _Descent(torch.optim.SGD):
    """Returns nothing from its step, as some optimizers do."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)


class _Subclass(ImageClassifier):
    pass


def _classifier(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(MLP(64, [16], 10), **options)


def _trainer(root: Path, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "limit_val_batches": 2, "num_sanity_val_steps": 0, **options}
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=list(callbacks),
        **options,
    )


def _fit(
    root: Path, module: ImageClassifier, *callbacks: Callback, lean: bool, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Any], list[Any], dict[str, Tensor]]:
    """Train, and return weights, the loops' counts, the diary and the metrics."""
    diary = _Diary()
    trainer = _trainer(root, diary, *callbacks, **options)
    with lean_training(trainer) if lean else nullcontext():
        trainer.fit(module, DigitsDataModule(batch_size=100))
    return module.state_dict(), trainer.fit_loop.state_dict(), diary.entries, dict(trainer.callback_metrics)


@pytest.fixture
def steps_of_lightning(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every step that Lightning's own loop takes."""
    steps: list[int] = []
    own = _TrainingEpochLoop.advance

    def advance(self: _TrainingEpochLoop, data_fetcher: Any) -> None:
        own(self, data_fetcher)
        steps.append(self.global_step)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    return steps


@pytest.mark.parametrize(
    ("of_classifier", "of_trainer"),
    [
        ({}, {}),
        ({"optimizer": torch.optim.RMSprop, "lr_scheduler": partial(ExponentialLR, gamma=0.5)}, {}),
        ({"lr_scheduler": partial(ReduceLROnPlateau, factor=0.5, patience=0)}, {"max_epochs": 4}),
        ({"optimizer": torch.optim.LBFGS}, {"limit_train_batches": 3}),
        ({"optimizer": _Descent}, {}),
        ({}, {"val_check_interval": 0.25}),
        ({}, {"val_check_interval": 5, "check_val_every_n_epoch": None}),
        ({}, {"check_val_every_n_epoch": 2, "max_epochs": 3}),
        ({}, {"limit_val_batches": 0}),
        ({}, {"max_steps": 17, "max_epochs": -1}),
        ({}, {"gradient_clip_val": 0.01}),
        ({}, {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"}),
        ({}, {"max_epochs": 1, "overfit_batches": 3}),
        ({}, {"precision": "bf16-mixed"}),
        ({}, {"precision": "bf16-true"}),
        ({}, {"precision": "64-true"}),
    ],
)
def test_the_lean_loop_ends_like_lightnings(
    tmp_path: Path, steps_of_lightning: list[int], of_classifier: dict[str, Any], of_trainer: dict[str, Any]
) -> None:
    theirs = _fit(tmp_path / "theirs", _classifier(**of_classifier), lean=False, **of_trainer)
    taken = len(steps_of_lightning)
    ours = _fit(tmp_path / "ours", _classifier(**of_classifier), lean=True, **of_trainer)
    assert taken > 0
    assert len(steps_of_lightning) == taken
    assert len(ours[2]) > 2 * taken - 1
    assert ours[1:3] == theirs[1:3]
    for mine, other in zip(ours[::3], theirs[::3], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    "options", [{}, {"every_n_train_steps": 5}, {"train_time_interval": timedelta(microseconds=1)}]
)
def test_checkpoints_and_averages_are_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    written = []
    for lean in (False, True):
        folder = tmp_path / str(lean)
        checkpoint = ModelCheckpoint(folder, save_top_k=-1, filename="{step}", **options)
        _fit(folder, _classifier(), EMAWeightAveraging(decay=0.9), checkpoint, lean=lean)
        written.append({path.name: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")})
    theirs, ours = written
    assert ours.keys() == theirs.keys() != set()
    for name, checkpoint in theirs.items():
        assert ours[name]["loops"] == checkpoint["loops"]
        weights = ours[name]["state_dict"]
        assert all(torch.equal(weights[key], value) for key, value in checkpoint["state_dict"].items())


@pytest.mark.parametrize(
    ("of_trainer", "callbacks"),
    [
        ({"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))}, []),
        ({"accumulate_grad_batches": 2}, []),
        ({"profiler": "simple"}, []),
        ({"val_check_interval": timedelta(hours=1)}, []),
        ({}, [_ActsInAStep]),
        ({}, [lambda: GradientAccumulationScheduler({0: 1, 1: 2})]),
    ],
)
def test_other_steps_are_left_to_lightning(
    tmp_path: Path, steps_of_lightning: list[int], of_trainer: dict[str, Any], callbacks: list[Any]
) -> None:
    theirs = _fit(tmp_path / "theirs", _classifier(), *(make() for make in callbacks), lean=False, **of_trainer)
    taken = len(steps_of_lightning)
    ours = _fit(tmp_path / "ours", _classifier(), *(make() for make in callbacks), lean=True, **of_trainer)
    assert len(steps_of_lightning) > taken
    assert ours[1:3] == theirs[1:3]
    assert all(torch.equal(ours[0][name], value) for name, value in theirs[0].items())


def test_a_classifier_with_steps_of_its_own_is_left_to_lightning(tmp_path: Path, steps_of_lightning: list[int]) -> None:
    _fit(tmp_path, _Subclass(MLP(64, [16], 10)), lean=True, max_epochs=1)
    assert steps_of_lightning


def test_a_release_of_lightning_that_is_not_known_keeps_its_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, loop in ((True, LeanEpochLoop), (False, _TrainingEpochLoop)):
        monkeypatch.setattr(speed, "_LOOP_IS_KNOWN", known)
        trainer = _trainer(tmp_path)
        with lean_training(trainer):
            assert type(trainer.fit_loop.epoch_loop) is loop


def test_the_search_for_devices_is_off_on_the_cpu_alone_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path)
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(KeyError), lean_training(trainer):  # noqa: PT012
        assert VARIABLE not in os.environ
        raise KeyError
    assert os.environ[VARIABLE] == "1"
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    with lean_training(trainer):
        assert os.environ[VARIABLE] == "1"
