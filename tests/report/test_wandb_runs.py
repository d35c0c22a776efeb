"""An experiment in W&B, offline, read back from the files."""

import json
from pathlib import Path

import pytest
import wandb

from mlprank.cli import main
from mlprank.experiments.records import read_records
from tests.experiments.trained import write_digits_experiment
from tests.tuning.test_wandb import read_run, records


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def summary_of(path: Path) -> dict[str, object]:
    """What was written to a run's summary by name."""
    found: dict[str, object] = {}
    for record in records(path.read_bytes()):
        if record.HasField("summary"):
            found |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    return found


@pytest.mark.slow
def test_an_experiment_is_one_run_with_a_table_of_cells_and_the_best_in_its_summary(
    tmp_path: Path, offline: None
) -> None:
    config = write_digits_experiment(tmp_path, seeds=(0,), measures=["ChannelNorm"], methods=["Local"], amounts=[0.01])
    assert main(["experiment", "--config", str(config), "--wandb", "--wandb-project", "p"]) == 0
    wandb.teardown()  # waits until everything has been written
    out = tmp_path / "results"
    (path,) = out.glob("wandb/offline-run-*/run-*.wandb")
    run, settings, _, logged = read_run(path)
    summary = summary_of(path)
    assert run.run_id == (out / "wandb-id.txt").read_text().strip()
    assert (run.run_group, run.project, run.job_type) == ("small", "p", "experiment")
    assert settings["networks"] == ["MLP@Digits"]
    assert (logged["cells/_type"], logged["cells/nrows"]) == ("table-file", 2)
    assert (summary["cells_finished"], summary["cells_failed"]) == (2, 0)
    (cell,) = [record for record in read_records(out) if record.parameters.measure != "dense"]
    assert summary["best/top1"] == cell.metrics.top1
    assert summary["best/cell"] == cell.key
    assert any(name.startswith("tables/accuracy") for name in logged)
    assert any(name.startswith("plots/accuracy") for name in logged)


@pytest.mark.slow
def test_on_request_cells_are_runs_of_the_group_too_and_each_is_logged_once(
    tmp_path: Path, offline: None, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--measure-name", "norm", "--method-name", "Local", "--wandb", "--wandb-cells"]
    config = write_digits_experiment(tmp_path, seeds=(0, 1), latency=True)
    (tmp_path / "mlp-1.pth").write_bytes(b"no checkpoint")
    assert main(["experiment", "--config", str(config), "--amount", "0.5", *arguments]) == 1
    assert "4 cells logged to project mlprank, group small, 4 cells with runs of their own" in capfd.readouterr().out
    assert main(["experiment", "--config", str(config), "--amount", "0.5", "0.25", *arguments]) == 1
    assert "6 cells logged to project mlprank, group small, 2 cells with runs of their own" in capfd.readouterr().out
    wandb.teardown()
    out = tmp_path / "results"
    runs = [read_run(path) for path in out.glob("wandb/offline-run-*/run-*.wandb")]
    found = {run.run_id: (run, settings, summary) for run, settings, _, summary in runs}
    whole = (out / "wandb-id.txt").read_text().strip()
    cells = read_records(out)
    assert set(found) == {f"{whole}-{record.key}" for record in cells} | {whole}
    assert {run.run_group for run, _, _ in found.values()} == {"small"}
    for record in cells:
        run, settings, summary = found[f"{whole}-{record.key}"]
        assert run.job_type == ("dense" if record.parameters.measure == "dense" else "cell")
        assert settings["measure"] == record.parameters.measure
        assert settings["amount"] == record.parameters.amount
        if record.metrics is None:
            assert "top1" not in summary
            continue
        assert summary["top1"] == record.metrics.top1
        assert summary["amount"] == record.parameters.amount
        assert summary["latency_ms"] == pytest.approx(1000 * record.metrics.latency_s_after)
