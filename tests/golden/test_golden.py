"""What version 0.1.0 wrote is read as it was then: networks, checkpoints, records, and a grid that goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from mlprank.models import load_published
from tests.golden.networks import INPUTS, configured

HERE = Path(__file__).parent
LR = "--grid.model.optimizer.init_args.lr=[0.01, 0.003]"


@pytest.mark.parametrize("name", ["mlp", "foreign", "batch_norm"])
def test_a_pruned_file_gives_the_outputs_that_it_gave_when_it_was_written(name: str) -> None:
    import mlprank
    from mlprank.artifact.pruned import read_artifact

    expected = torch.load(HERE / f"{name}.expected.pt", weights_only=True)
    model = mlprank.load_pruned(HERE / f"{name}.ckpt", configured()[name] if name == "foreign" else None)
    with torch.no_grad():
        torch.testing.assert_close(model(INPUTS), expected["outputs"], rtol=1e-5, atol=1e-6)
    artifact = read_artifact(HERE / f"{name}.ckpt")
    assert artifact.recipe["amount"] == 0.5
    assert artifact.provenance == {"source": "dense.ckpt"}
    assert {layer: kept.tolist() for layer, kept in artifact.kept.items()} == {
        layer: kept.tolist() for layer, kept in expected["kept"].items()
    }


def test_the_best_checkpoint_of_a_fit_gives_its_logits() -> None:
    from mlprank.models.classifier import ImageClassifier

    expected = torch.load(HERE / "fit.expected.pt", weights_only=True)
    model = ImageClassifier.load_from_checkpoint(HERE / "best.ckpt", weights_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(expected["images"]), expected["best"], rtol=1e-5, atol=1e-6)


def test_a_masked_checkpoint_holds_the_masks_of_its_fit() -> None:
    state = torch.load(HERE / "masked.ckpt", weights_only=True)["state_dict"]
    for layer, width in (("fc1", 12), ("fc2", 8)):
        mask = state[f"model.{layer}.weight_mask"]
        assert mask.shape[0] == width
        assert int(mask.any(1).sum()) == width // 2


def test_a_published_file_is_loaded() -> None:
    from mlprank.models import MLP

    state = torch.load(HERE / "published.pth", weights_only=True)["model"]
    network = load_published(HERE / "published.pth", MLP(64, [24, 16], 10))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_records_and_scores_of_an_experiment_are_read() -> None:
    from mlprank.experiments.records import read_records, read_scores

    records = read_records(HERE / "experiment")
    lines = (HERE / "experiment" / "records.jsonl").read_text().splitlines()
    assert len(records) == len(lines) == 9
    accuracy = {
        json.loads(line)["key"]: json.loads(line)["metrics"]["top1"] for line in lines if "key" in json.loads(line)
    }
    for record in records:
        assert record.status == "ok"
        assert record.metrics is not None
        assert record.metrics.top1 == accuracy.get(record.key, record.metrics.top1)
        if record.parameters.measure != "dense":
            scores = read_scores(HERE / "experiment", record.key)
            assert scores is not None


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_leaves_its_finished_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlprank.cli import main

    shutil.copytree(HERE / "tune", tmp_path / "grid")
    shutil.copy(HERE / "tune.yaml", tmp_path / "small.yaml")
    monkeypatch.chdir(tmp_path)
    (finished,) = Path("grid/trials").glob("*/result.json")
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in finished.parent.iterdir()}
    assert main(["tune", "--config", "small.yaml", "--tune.out=grid", "--tune.engine=local", LR]) == 0
    results = {path: json.loads(path.read_text()) for path in Path("grid/trials").glob("*/result.json")}
    assert [result["status"] for result in results.values()] == ["done", "done"]
    after = {path: hashlib.sha256(path.read_bytes()).digest() for path in before}
    assert after == before
    assert Path("grid/best.ckpt").is_file()
