"""The laws of `mlprank export` and `mlprank bench` on checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from torch import Tensor

import mlprank
from mlprank.cli import main
from mlprank.models import MLP, TwoLayerMLP, load_network
from mlprank.models.classifier import ImageClassifier


def images(num: int = 8) -> Tensor:
    return torch.randn(num, 1, 3, 4, generator=torch.Generator().manual_seed(0))


def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(MLP(12, [8, 8], 3))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    model = classifier()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / "dense.ckpt")
    mlprank.prune(model, images(), amount=0.5).save(folder / "pruned.ckpt")
    return folder / "dense.ckpt", folder / "pruned.ckpt"


def test_a_dense_checkpoint_is_exported_as_the_network_it_holds(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "m.pt2"
    assert main(["export", str(checkpoints[0]), "--format=pt2", f"--out={output}"]) == 0
    flat = images().flatten(1)
    torch.testing.assert_close(torch.export.load(output).module()(flat), classifier().eval()(flat))


def test_a_pruned_file_is_exported_with_the_shape_and_the_widths_it_holds(
    checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoints[1]), "--format=pt2", f"--out={tmp_path / 'm.pt2'}"]) == 0
    assert "logits are the network's within" in capsys.readouterr().out
    expected = mlprank.load_pruned(checkpoints[1])(images(3))
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(images(3)), expected)


def test_the_file_lies_beside_the_checkpoint_and_says_how_the_network_is_built(checkpoints: tuple[Path, Path]) -> None:
    assert main(["export", str(checkpoints[1]), "--format=safetensors"]) == 0
    with safe_open(checkpoints[1].with_suffix(".safetensors"), "pt") as file:
        notes = {name: json.loads(value) for name, value in file.metadata().items() if name != "format"}
    assert notes["model"]["class_path"].endswith("MLP") or "ImageClassifier" in notes["model"]["class_path"]
    assert notes["pruning"]["amount"] == 0.5
    assert sorted(len(kept) for kept in notes["kept"].values()) == [4, 4]
    assert notes["input_shape"] == [1, 3, 4]


def test_bench_prints_one_table_and_writes_json(
    checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "bench.json"
    options = ["--backends=[eager]", "--batch_sizes=[1,4]", "--repeats=2", "--threads=1", f"--out={numbers}"]
    assert main(["bench", *map(str, checkpoints), *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("ratio") == 1
    assert "eager, batch 4" in shown.out
    assert "measuring eager, batch 1 (2 of 4, " in shown.err
    models = json.loads(numbers.read_text())["models"]
    assert models["pruned"]["num_parameters"] < models["dense"]["num_parameters"]


def test_the_network_comes_without_its_lightning_module_in_evaluation_mode(checkpoints: tuple[Path, Path]) -> None:
    for path in checkpoints:
        network = load_network(path)
        assert type(network.model) is MLP
        assert not network.model.training


@pytest.mark.parametrize("command", ["export", "bench"])
def test_a_missing_a_damaged_and_a_foreign_file_exit_with_2(
    command: str, checkpoints: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, foreign = tmp_path / "damaged.ckpt", tmp_path / "foreign.ckpt"
    damaged.write_bytes(checkpoints[1].read_bytes()[:1000])
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "hyper_parameters": {"lr": 0.1}}, foreign)
    for path, reason in [
        (tmp_path / "none.ckpt", "does not exist"),
        (damaged, "damaged"),
        (foreign, "neither a pruned file nor a checkpoint of mlprank's ImageClassifier"),
    ]:
        assert main([command, str(path), "--format=pt2" if command == "export" else str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"mlprank {command}: error: ")
        assert str(path) in error
        assert reason in error


def test_options_that_cannot_be_exit_with_2(checkpoints: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    dense, pruned = map(str, checkpoints)
    assert main(["export", pruned, "--format=tflite"]) == 2
    assert "format='tflite' is unknown; choose one of onnx, safetensors, pt2" in capsys.readouterr().err
    assert main(["export", dense, "--format=pt2", "--input_shape=[5]"]) == 2
    assert "cannot take inputs (float32 (2, 5))" in capsys.readouterr().err
    assert main(["bench", dense, pruned, "--threads=0"]) == 2
    assert "threads=0 must be a whole number in [1, " in capsys.readouterr().err
    assert main(["bench", dense, pruned, "--threads=100000"]) == 2
    assert "threads=100000 must be a whole number in [1, " in capsys.readouterr().err
    assert main(["bench", dense]) == 2
    assert "compares two checkpoints, dense and pruned, and 1 are given" in capsys.readouterr().err


def test_bench_and_export_take_the_weights_of_our_networks_from_any_file(tmp_path: Path) -> None:
    network = TwoLayerMLP().eval()
    torch.save({"model": network.state_dict(), "epoch": 19}, tmp_path / "model_19.pth")
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    for name in ("model_19.pth", "bare.pth"):
        loaded = load_network(tmp_path / name)
        assert loaded.input_shape == (784,)
        assert loaded.metadata["model"]["class_path"] == "mlprank.models.TwoLayerMLP"
        torch.testing.assert_close(loaded.model.state_dict(), network.state_dict())
