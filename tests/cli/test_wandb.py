"""The run files of W&B after the documented command, read back without account or network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.callbacks.test_loggers import records

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2")
QUICKSTART = ("fit", f"--config={CONFIGS}/quickstart.yaml", *SHORT)


@pytest.mark.slow
def test_the_quickstart_with_wandb_leaves_config_metrics_report_and_artifacts(
    mlprank: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = mlprank(*QUICKSTART, f"--config={CONFIGS}/logging/wandb.yaml")
    assert result.code == 0, result.err
    wandb.teardown()  # waits until everything has been written
    [path] = (tmp_path / "runs/quickstart/001/wandb").glob("offline-run-*/*.wandb")
    found = records(path)

    config: dict[str, Any] = {}
    for update in (record.run.config for record in found["run"]), (record.config for record in found.get("config", [])):
        for each in update:
            config |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in each.update}
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.003
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["seed_everything"] == 0
    assert config["trainer"]["callbacks"][0]["init_args"]["amount"] == 0.5

    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found["history"]
    ]
    assert [row["epoch"] for row in rows if "val_top1" in row] == [0, 1]
    assert all(
        {"val_loss", "val_top1", "val_top5", "trainer/global_step"} <= set(row) for row in rows if "val_top1" in row
    )
    assert next(row["lr"] for row in rows if "lr" in row) == pytest.approx(0.003)
    assert [row["trainer/global_step"] for row in rows if "train_loss" in row] == [3, 7]
    axes = {record.metric.glob_name or record.metric.name: record.metric for record in found["metric"]}
    assert axes["*"].step_metric == "trainer/global_step"

    history = {key: value for row in rows for key, value in row.items()}
    assert history["pruning/layers/_type"] == "table-file"
    assert history["pruning/picture/_type"] == "image-file"
    assert {"centrality/model.fc1/_type", "centrality/model.fc2/_type"} <= set(history)
    assert history["pruned/num_parameters"] < history["dense/num_parameters"]
    artifacts = {record.artifact.type: record.artifact for record in found["artifact"]}
    assert [entry.path for entry in artifacts["pruned-model"].manifest.contents] == ["pruned.ckpt"]
    assert json.loads(artifacts["pruned-model"].metadata)["source"].endswith("best.ckpt")
    assert "model" in artifacts, "the dense network, for the lineage"


@pytest.mark.slow
def test_the_run_file_is_in_the_run_directory_whatever_wandb_did_elsewhere_before(
    mlprank: Callable[..., Any],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path_factory.mktemp("elsewhere"))
        wandb.init(dir=".").finish()  # starts W&B's own process, which stays there
    result = mlprank(*QUICKSTART, f"--config={CONFIGS}/logging/wandb.yaml")
    assert result.code == 0, result.err
    wandb.teardown()
    assert list((tmp_path / "runs/quickstart/001/wandb").glob("offline-run-*/*.wandb"))
