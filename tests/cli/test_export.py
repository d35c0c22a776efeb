"""`mlprank export` says what inputs mean, and can take pixels as they are in image files."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

import mlprank
from mlprank.cli import main
from mlprank.datamodules import CIFAR10DataModule
from mlprank.models import MLP


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    result = mlprank.prune(MLP(48, [12], 3).eval(), torch.rand(32, 3, 4, 4))
    return result.save(tmp_path / "pruned.ckpt", calibration={"data": "CIFAR10DataModule"})


def test_with_preprocessing_the_file_takes_pixels_and_normalises_as_the_data_set_does(pruned: Path) -> None:
    output = pruned.with_name("pixels.pt2")
    assert main(["export", str(pruned), "--format", "pt2", "--output", str(output), "--with_preprocessing"]) == 0
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (CIFAR10DataModule.mean, CIFAR10DataModule.std))
    expected = mlprank.load_pruned(pruned)((pixels / 255 - mean) / std)
    torch.testing.assert_close(torch.export.load(output).module()(pixels), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("flags", [[], ["--with-preprocessing"]])
def test_an_onnx_file_says_what_its_input_must_look_like(pruned: Path, flags: list[str]) -> None:
    output = pruned.with_name("net.onnx")
    assert main(["export", str(pruned), "--output", str(output), *flags]) == 0
    found = {prop.key.removeprefix("mlprank."): json.loads(prop.value) for prop in onnx.load(output).metadata_props}
    assert found["inputs"][0]["shape"][1:] == [3, 4, 4]
    assert found["range"] == ([0, 255] if flags else [0, 1])
    assert (found["mean"], found["std"]) == (list(CIFAR10DataModule.mean), list(CIFAR10DataModule.std))
    assert found["classes"] == list(CIFAR10DataModule.classes)
    assert main(["export", str(pruned), "--output", str(output), "--classes", "[cat,dog,cow]"]) == 0
    named = {prop.key: json.loads(prop.value) for prop in onnx.load(output).metadata_props}
    assert named["mlprank.classes"] == ["cat", "dog", "cow"]


def test_preprocessing_that_cannot_be_built_is_an_error_that_says_why(pruned: Path, capsys) -> None:
    command = ["export", str(pruned), "--format", "pt2", "--with_preprocessing"]
    assert main([*command, "--mean", "[0.5]", "--std", "[0.0]"]) == 2
    assert "with standard deviations above 0" in capsys.readouterr().err
    assert main([*command, "--input_shape", "[48]"]) == 2
    assert "--with_preprocessing needs images of shape (C, H, W)" in capsys.readouterr().err
    assert not pruned.with_suffix(".pt2").exists()
