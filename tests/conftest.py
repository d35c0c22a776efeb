"""One thread a test process, and no network for W&B: tests run side by side and do not depend on each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mlprank.cli import main

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start
os.environ.setdefault("WANDB_MODE", "offline")


class Result(NamedTuple):
    code: int
    out: str
    err: str


CONFIG = """\
trainer:
  max_epochs: 2
  accelerator: cpu
  deterministic: true
model:
  model:
    class_path: mlprank.models.MLP
    init_args: {in_features: 64, widths: [16], num_classes: 10}
  optimizer:
    class_path: torch.optim.Adam
    init_args: {lr: 0.003}
  lr_scheduler:
    class_path: torch.optim.lr_scheduler.StepLR
    init_args: {step_size: 1, gamma: 0.7}
data:
  class_path: mlprank.datamodules.DigitsDataModule
  init_args: {batch_size: 128}
"""


@pytest.fixture
def mlprank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """The program, in an empty directory that holds `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = main(list(arguments))
        return Result(code, *capfd.readouterr())

    return run
