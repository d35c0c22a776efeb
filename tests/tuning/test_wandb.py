"""Every trial is a W&B run in one group, read back from the offline files."""

import json
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from mlprank.tuning.run import tune
from mlprank.tuning.store import Store

LR = "model.optimizer.init_args.lr"
_BLOCK, _HEADER = 32768, 7


def records(content):
    """Take the records out of an offline run's file: a header, then blocks of LevelDB's log format."""
    place, parts = _HEADER, b""
    while place + _HEADER < len(content):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += _HEADER
        parts += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def read_run(path):
    """Return the run's record, its config, its history and its last values."""
    run, config, history = None, {}, []
    for record in records(path.read_bytes()):
        if record.HasField("run"):
            run = record.run
            config |= {update.key: json.loads(update.value_json) for update in run.config.update}
        if record.HasField("config"):
            config |= {update.key: json.loads(update.value_json) for update in record.config.update}
        if record.HasField("history"):
            items = record.history.item
            history.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return run, config, history, {name: value for row in history for name, value in row.items()}


@pytest.mark.parametrize("engine", ["batched", "local"])
def test_every_trial_is_a_run_in_one_group_with_its_config_and_final_metrics(config, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "grid"
    options = (f"--config={config}", f"--tune.out={out}", f"--tune.engine={engine}", "--trainer.logger=WandbLogger")
    assert tune([*options, f"--grid.{LR}=[0.01, 0.02, 1e30]"]) == 0
    wandb.teardown()  # waits until everything has been written
    runs = {}
    for path in out.glob("trials/*/wandb/offline-run-*/run-*.wandb"):
        run, settings, history, summary = read_run(path)
        runs[run.run_id] = summary
        outcome = Store(out).outcome(run.run_id)
        assert run.run_group == "grid"
        assert run.display_name.startswith("lr=")
        assert settings["model"]["optimizer"]["init_args"]["lr"] == float(run.display_name.removeprefix("lr="))
        assert summary["diverged"] == float(outcome.status == "diverged")
        if outcome.status == "done":
            assert summary["best_val_top1"] == pytest.approx(outcome.score)
            assert [row["val_top1"] for row in history if "val_top1" in row] == pytest.approx(
                [row["val_top1"] for row in outcome.history]
            )
    assert set(runs) == {path.parent.name for path in out.glob("trials/*/result.json")}
    assert len(runs) == 3
