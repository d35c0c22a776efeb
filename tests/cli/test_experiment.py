"""`mlprank experiment` from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlprank.cli import main
from mlprank.experiments.records import RecordStore, read_records
from tests.experiments.trained import DIGITS, digits_network, save_published, write_digits_experiment


def test_a_config_runs_and_says_what_was_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_digits_experiment(tmp_path, seeds=(0, 1))
    assert main(["experiment", "--config", str(config)]) == 0
    out, err = capfd.readouterr()
    assert "small: 18 cells of 2 trained networks" in out
    assert "MLP on Digits, local" in out
    assert "Weighted PageRank keeps" in out
    assert f"next: mlprank report {tmp_path / 'results'}" in out
    assert "\x1b" not in out + err
    assert (tmp_path / "results" / "config.yaml").read_text().startswith("name: small")
    assert main(["experiment", "--config", str(config)]) == 0
    assert "18 of them were finished before" in capfd.readouterr().out


def test_the_flags_of_the_original_win_over_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_digits_experiment(tmp_path)
    flags = [
        "--measure_name",
        "ChannelNorm",
        "--method-name",
        "Local",
        "--amount",
        "0.1",
        "0.2",
        "--out_path=elsewhere",
    ]
    args = ["--measure-args", json.dumps({"ChannelNorm": {"p": 2}}), "--seed", "4", "--no-latency", "--report"]
    assert main(["experiment", "--config", str(config), *flags, *args]) == 0
    records = read_records(tmp_path / "elsewhere")
    assert [record.parameters.amount for record in records] == [0.0, 0.1, 0.2]
    assert {json.dumps(dict(record.parameters.measure_args)) for record in records[1:]} == {'{"p": 2}'}
    assert {record.parameters.calibration_seed for record in records[1:]} == {4}
    assert (tmp_path / "elsewhere" / "report" / "report.md").is_file()
    assert "report.html" in capfd.readouterr().out


def test_checkpoints_are_found_and_missing_ones_name_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_flags = ["experiment", "--model-name", "TwoLayerMLP", "SixLayerMLP"]
    assert main(with_flags) == 2
    err = capfd.readouterr().err
    assert "missing: TwoLayerMLP@MNIST" in err
    assert "mlprank fit --config configs/thesis/two_layer_mnist.yaml" in err
    assert "mlprank fit --config configs/thesis/six_layer_cifar10.yaml" in err
    assert "no network of the grid has a checkpoint" in err
    (tmp_path / "TwoLayerMLP_MNIST.pth").write_bytes(b"")
    assert main([*with_flags, "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert "experiment: 61 cells of 1 trained network\n" in out
    assert "TwoLayerMLP on MNIST, weighted_pagerank, local, 10 %, seed 0" in out
    assert "SixLayerMLP@CIFAR10" in err
    assert not (tmp_path / "runs").exists()


def test_a_failed_cell_makes_the_exit_code_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_digits_experiment(tmp_path, seeds=(0, 1))
    (tmp_path / "mlp-1.pth").write_bytes(b"no checkpoint")
    assert main(["experiment", "--config", str(config)]) == 1
    out, err = capfd.readouterr()
    assert "9 cells failed" in out
    assert "failed: MLP on Digits, dense" in err


def test_a_checkpoint_by_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_published(digits_network(), tmp_path / "any.pth")
    (tmp_path / "c.yaml").write_text(f"networks: [MLP@Digits]\nmodel_args: {{MLP@Digits: {json.dumps(DIGITS)}}}\n")
    arguments = [
        "--config",
        "c.yaml",
        "--checkpoint",
        str(path),
        "--amount",
        "0.5",
        "--measure-name",
        "norm",
        "--out",
        "o",
    ]
    assert main(["experiment", *arguments]) == 0
    assert {record.parameters.checkpoint for record in read_records("o")} == {str(path)}


def test_a_network_of_the_config_that_is_typed_keeps_what_the_config_says_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    networks = {"networks": ["MLP@Digits", "ThreeLayerMLP"], "measures": ["norm"], "amounts": [0.5]}
    config = str(write_digits_experiment(tmp_path, **networks))
    for typed in (["--model-name", "MLP"], ["--model", "MLP", "--data", "Digits"]):
        assert main(["experiment", "--config", config, *typed, "--dry-run"]) == 0
        out, err = capfd.readouterr()
        assert "3 cells of 1 trained network\n" in out
        assert "missing" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amount", "1.0"], r"amounts=1.0 is not in [0, 1)"),
        (["--measure-name", "ChanelNorm"], "unknown measure \"ChanelNorm\"; did you mean 'ChannelNorm'"),
        (["--method-name", "Lokal"], "unknown method \"Lokal\"; did you mean 'local'"),
        (["--model-name", "TwoLayerMLPs@MNIST"], 'unknown model "TwoLayerMLPs"; did you mean'),
        (["--model-name", "TwoLayerMLP", "--dataset-name", "MNISTT"], 'unknown data set "MNISTT"; did you mean'),
        (["--measure-args", '{"ChannelWandA": {"p": 2}}'], "measure_args: 'ChannelWandA' is not in the grid"),
        (["--checkpoint", "x.pth", "--model-name", "TwoLayerMLP", "ThreeLayerMLP"], "--ckpt_path is for one network"),
        (
            ["--model-name", "A", "B", "--dataset-name", "X", "Y", "Z"],
            "--model names 2 networks and --data 3",
        ),
    ],
)
def test_wrong_flags_are_named(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_digits_experiment(tmp_path)
    assert main(["experiment", "--config", str(config), *arguments]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "results").exists()


def test_no_arguments_say_what_to_give(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment"]) == 2
    assert "nothing to run: give --config experiments/thesis" in capfd.readouterr().err


def test_a_second_process_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = write_digits_experiment(tmp_path)
    with RecordStore(tmp_path / "results"):
        assert main(["experiment", "--config", str(config)]) == 2
    assert f"is in use by process {os.getpid()}; wait until it ends" in capfd.readouterr().err
    assert (tmp_path / "results" / "records.jsonl").read_bytes() == b""


def test_results_of_another_schema_and_a_cut_file_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_digits_experiment(tmp_path)
    assert main(["experiment", "--config", str(config)]) == 0
    records = tmp_path / "results" / "records.jsonl"
    whole = records.read_text()
    records.write_text(whole.replace('"schema_version":2', '"schema_version":9', 1))
    assert main(["experiment", "--config", str(config)]) == 2
    assert "schema version 9, but this mlprank reads version 2" in capfd.readouterr().err
    records.write_text(whole[:100] + "\n" + whole[300:])
    assert main(["experiment", "--config", str(config)]) == 2
    assert "records.jsonl line 1: not a whole record" in capfd.readouterr().err
    records.write_text(whole[:-20])
    assert main(["experiment", "--config", str(config)]) == 0
    assert "the last line was torn" in capfd.readouterr().err
    assert len(read_records(tmp_path / "results")) == whole.count("\n")


def _start(config: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlprank", "experiment", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_cells_are_neither_lost_nor_repeated_by_kill_9(tmp_path: Path) -> None:
    measures = ["WeightedPageRank", "ModifiedPageRank", "ChannelNorm", "ChannelActivation", "ChannelWandA"]
    amounts = [round(0.03 * step, 2) for step in range(1, 25)]
    config = write_digits_experiment(tmp_path, seeds=(0, 1, 2), measures=measures, amounts=amounts)
    records = tmp_path / "results" / "records.jsonl"
    for wanted in (1, 200):
        process = _start(config)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if records.exists() and records.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    seen = records.read_bytes().rpartition(b"\n")[0].split(b"\n")
    assert len(seen) < 3 * (1 + 5 * 2 * 24)
    assert _start(config).wait(timeout=900) == 0
    lines = records.read_bytes().splitlines()
    assert lines[: len(seen)] == seen
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys)) == 3 * (1 + 5 * 2 * 24)
    assert {record.status for record in read_records(records)} == {"ok"}
