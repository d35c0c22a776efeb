"""Every option that the table of old flags names can be typed, and does what it says."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, StepLR

from mlprank.models.schedule import WarmUp
from mlprank.training.parser import parse
from mlprank.training.run import build_parts
from tests.conftest import CONFIG

TABLE = (Path(__file__).parents[2] / "docs" / "tasks" / "thesis.md").read_text()
ROWS = re.findall(r"^\| (`--.+?) \| (.+) \|$", TABLE, re.MULTILINE)
OLD_FLAGS = """
--lr --opt --momentum --weight-decay --norm-weight-decay --bias-weight-decay --label-smoothing --mixup-alpha
--cutmix-alpha --lr-scheduler --lr-warmup-epochs --lr-warmup-method --lr-warmup-decay --lr-step-size --lr-gamma --lr-min
--print-freq --output-dir --resume --start-epoch --sync-bn --test-only --auto-augment --ra-magnitude --augmix-severity
--random-erase --amp --world-size --dist-url --model-ema --model-ema-steps --model-ema-decay
--use-deterministic-algorithms --interpolation --ra-sampler --ra-reps --clip-grad-norm --epochs --batch-size --workers
--device --data-path --model-name --data-name --lr-grid --wd-grid --wandb --weights --transformer-embedding-decay
--cache-dataset --train-crop-size --val-resize-size --val-crop-size --backend --use-v2
"""
WARM_UP = TABLE.split("```yaml\n")[1].split("```")[0]
CHECKS: dict[str, Callable[[Any], bool]] = {
    "--opt sgd_nesterov": lambda built: (
        built.optimizer.defaults["nesterov"] and built.optimizer.defaults["momentum"] == 0.9
    ),
    "--opt sgd": lambda built: built.optimizer.defaults["momentum"] == 0.9,
    "--opt rmsprop": lambda built: (
        isinstance(built.optimizer, torch.optim.RMSprop)
        and [built.optimizer.defaults[name] for name in ("alpha", "eps", "momentum")] == [0.9, 0.0316, 0.9]
    ),
    "--lr": lambda built: built.optimizer.defaults["lr"] == 0.1,
    "--weight-decay": lambda built: built.optimizer.defaults["weight_decay"] == 1e-4,
    "--norm-weight-decay": lambda built: built.model.norm_weight_decay == 0,
    "--bias-weight-decay": lambda built: built.optimizer.param_groups[1]["weight_decay"] == 0,
    "--label-smoothing": lambda built: built.model.label_smoothing == 0.1,
    "--mixup-alpha": lambda built: built.data.hparams.mixup_alpha == 0.2,
    "--cutmix-alpha": lambda built: built.data.hparams.cutmix_alpha == 1,
    "--lr-scheduler steplr": lambda built: isinstance(built.schedule, StepLR) and built.schedule.step_size == 30,
    "--lr-scheduler cosineannealinglr": lambda built: isinstance(built.schedule, CosineAnnealingLR),
    "--lr-scheduler exponentiallr": lambda built: isinstance(built.schedule, ExponentialLR),
    "--lr-min": lambda built: built.schedule.eta_min == 1e-5,
    "--sync-bn": lambda built: built.trainer.sync_batchnorm,
    "--auto-augment": lambda built: built.data.hparams.auto_augment == "cifar10",
    "--ra-magnitude": lambda built: built.data.hparams.auto_augment == "randaugment",
    "--augmix-severity": lambda built: built.data.hparams.augmix_severity == 3,
    "--random-erase": lambda built: built.data.hparams.random_erasing == 0.1,
    "--amp": lambda built: built.trainer.precision == "bf16-mixed",
    "--world-size": lambda built: str(built.trainer.devices) == "2" and built.trainer.strategy == "ddp",
    "--model-ema": lambda built: isinstance(built.trainer.callbacks[0], EMAWeightAveraging),
    "--model-ema-steps": lambda built: built.trainer.callbacks[0].update_every_n_steps == 32,
    "--use-deterministic-algorithms": lambda built: built.trainer.deterministic is True,
    "--ra-sampler": lambda built: built.data.repeated_augmentation == 3,
    "--clip-grad-norm": lambda built: built.trainer.gradient_clip_val == 1.0,
    "--epochs": lambda built: built.trainer.max_epochs == 90,
    "--batch-size": lambda built: built.data.batch_size == 64,
}  # fmt: skip


class _Built:
    def __init__(self, model: Any, data: Any, trainer: dict[str, Any]) -> None:
        self.model, self.data, self.trainer = model, data, SimpleNamespace(**trainer)
        self.optimizer, self.schedule = model._build_optimizer()


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., _Built]]:
    """What options build, on top of the small config."""
    folder, before = tmp_path_factory.mktemp("options"), Path.cwd()
    os.chdir(folder)
    (folder / "small.yaml").write_text(CONFIG)
    (folder / "warm_up.yaml").write_text(WARM_UP)

    def built(*options: str) -> _Built:
        return _Built(*build_parts("fit", parse("fit", ["--config=small.yaml", *options]).values, None))

    yield built
    os.chdir(before)


def test_the_table_has_every_old_flag() -> None:
    named = {flag for old, _ in ROWS for flag in re.findall(r"--[\w-]+", old)}
    assert named == set(OLD_FLAGS.split())


@pytest.mark.parametrize(
    ("old", "new"), [row for row in ROWS if row[1].startswith("`--") and "ckpt_path" not in row[1]]
)
def test_every_new_option_of_the_table_builds_what_it_says(old: str, new: str, build: Callable[..., _Built]) -> None:
    built = build(*new.split("`")[1].split())
    checks = [check for flag, check in CHECKS.items() if f"`{flag}`" in old]
    assert all(check(built) for check in checks), old


def test_every_check_belongs_to_a_row() -> None:
    assert all(any(f"`{flag}`" in old for old, _ in ROWS) for flag in CHECKS)


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_the_warm_up_of_the_documentation_comes_before_the_schedule(method: str, build: Callable[..., _Built]) -> None:
    schedule = build("--config=warm_up.yaml", f"--model.lr_scheduler.method={method}").schedule
    assert isinstance(schedule, WarmUp)
    assert isinstance(schedule._schedulers[0], LinearLR) == (method == "linear")
    assert isinstance(schedule._schedulers[1], CosineAnnealingLR)
    assert schedule._milestones == [5]


@pytest.mark.parametrize(
    "options",
    [
        ["--config=warm_up.yaml", "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=0.5",
         "--data.mixup_alpha=0.2", "--data.cutmix_alpha=1", "--data.repeated_augmentation=3"],
        ["--model.optimizer=SGD", "--model.optimizer.lr=0.01", "--model.optimizer.momentum=0.9",
         "--model.optimizer.nesterov=true", "--model.bias_weight_decay=0", "--data.auto_augment=augmix",
         "--data.random_erasing=0.5", "--trainer.accumulate_grad_batches=2"],
        ["--model.optimizer=RMSprop", "--data.auto_augment=randaugment", "--model.label_smoothing=0.1",
         "--trainer.callbacks+=EMAWeightAveraging", "--trainer.profiler=simple"],
    ],
)  # fmt: skip
def test_options_together_train(mlprank: Callable[..., Any], tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "warm_up.yaml").write_text(WARM_UP)
    limits = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    result = mlprank("fit", "--config=small.yaml", *options, *limits)
    assert result.code == 0, result.err
    assert (tmp_path / "runs/small/001/checkpoints/best.ckpt").is_file()
