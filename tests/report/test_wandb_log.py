"""An experiment in W&B, offline: every cell a run of one group, read back from the files."""

from pathlib import Path

import pytest
import wandb

from mlprank.cli import main
from mlprank.experiments.store import read_records
from tests.experiments.trained import write_digits_experiment
from tests.tuning.test_wandb import read_run


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.slow
def test_cells_are_runs_of_one_group_and_a_summary_holds_tables_and_plots(tmp_path: Path, offline: None) -> None:
    config = write_digits_experiment(tmp_path, seeds=(0, 1), methods=["Local"], amounts=[0.5], latency=True)
    (tmp_path / "mlp-1.pth").write_bytes(b"no checkpoint")
    assert main(["experiment", "--config", str(config), "--wandb", "--wandb-project", "p"]) == 1
    wandb.teardown()  # waits until everything has been written
    out = tmp_path / "results"
    runs = {path: read_run(path) for path in out.glob("wandb/offline-run-*/run-*.wandb")}
    found = {run.run_id: (run, settings, summary) for run, settings, _, summary in runs.values()}
    records = read_records(out)
    assert set(found) == {f"small-{record.key}" for record in records} | {"small-summary"}
    assert {run.run_group for run, _, _ in found.values()} == {"small"}
    assert {run.project for run, _, _ in found.values()} == {"p"}
    for record in records:
        run, settings, summary = found[f"small-{record.key}"]
        assert run.job_type == ("dense" if record.parameters.measure == "dense" else "cell")
        assert settings["measure"] == record.parameters.measure
        assert settings["amount"] == record.parameters.amount
        if record.metrics is None:
            assert "top1" not in summary
            continue
        assert summary["top1"] == record.metrics.top1
        assert summary["amount"] == record.parameters.amount
        assert summary["latency_ms"] == pytest.approx(1000 * record.metrics.latency_s_after)
    _, settings, summary = found["small-summary"]
    assert settings["networks"] == ["MLP@Digits"]
    assert any(name.startswith("tables/accuracy") for name in summary)
    assert any(name.startswith("plots/accuracy") for name in summary)


@pytest.mark.slow
def test_cells_are_logged_once(tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--measure-name", "norm", "--method-name", "Local", "--wandb"]
    config = write_digits_experiment(tmp_path)
    assert main(["experiment", "--config", str(config), "--amount", "0.5", *arguments]) == 0
    assert "W&B: 2 cells logged to project mlprank, group small" in capfd.readouterr().out
    assert main(["experiment", "--config", str(config), "--amount", "0.5", "0.25", *arguments]) == 0
    assert "W&B: 1 cells logged" in capfd.readouterr().out
