"""What an import costs and needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_architecture import ORDER

_HEAVY = (
    "lightning",
    "pytorch_lightning",
    "torchvision",
    "torchmetrics",
    "wandb",
    "ray",
    "altair",
    "vl_convert",
    "sklearn",
)

_PRUNE = """
import sys
import mlprank, torch
from torch import nn
result = mlprank.prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4))
str(result), repr(result), result.save("pruned.ckpt")
mlprank.load_pruned("pruned.ckpt", result.dense)
print(sorted(set(sys.argv[1:]) & set(sys.modules)))
"""

_HIDDEN = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1:])  # as where nothing but torch is installed
import mlprank, torch, mlprank.datamodules, mlprank.models
network = mlprank.models.MLP(4, [8], 2)
result = mlprank.prune(network, torch.randn(16, 4))
print(repr(result), result, sep="\\n")
result.save("pruned.ckpt")
mlprank.load_pruned("pruned.ckpt", result.dense)
try:
    mlprank.datamodules.DigitsDataModule
except ImportError as error:
    print(error)
"""

_WITHOUT_FCNTL = """
import importlib, sys
sys.modules["fcntl"] = None  # as on Windows, where there is no such module
import mlprank, torch  # torch and its friends ask for it and do without
for name in sys.argv[1:]:
    importlib.import_module(f"mlprank.{name}")
"""


def test_pruning_as_a_library_imports_torch_and_little_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _PRUNE, *_HEAVY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_pruning_needs_torch_alone_and_models_and_datamodules_import_lightning_only_when_used(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _HIDDEN, *_HEAVY], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lightning" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_every_package_works_where_fcntl_does_not_exist(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_FCNTL, *ORDER], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
