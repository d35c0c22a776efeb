import csv
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from mlprank.cli import main
from mlprank.models.classifier import ImageClassifier
from mlprank.training import run as training_run
from mlprank.training.loggers import RunLogger
from mlprank.training.runs import held
from tests.conftest import CONFIG

Program = Callable[..., Any]
FIT = ("fit", "--config", "small.yaml")


class _Killed(BaseException):
    """Stands for a process that ends without another word."""


def _at_step(step: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    class AtStep(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == step:
                action()

    original = training_run._run_callbacks
    monkeypatch.setattr(training_run, "_run_callbacks", lambda *a, **k: [*original(*a, **k), AtStep()])


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run_of_one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run, trained once for all tests that only read them."""
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    (folder / "small.yaml").write_text(CONFIG)
    os.chdir(folder)
    assert main([*FIT, "--trainer.max_epochs=1"]) == 0
    os.chdir(before)
    return folder / "runs"


@pytest.fixture
def trained(run_of_one_epoch: Path, tmp_path: Path) -> Path:
    """The checkpoints of a finished run in the test's own directory."""
    shutil.copytree(run_of_one_epoch, tmp_path / "runs")
    return tmp_path / "runs" / "small" / "001" / "checkpoints"


def test_every_fit_has_a_directory_with_config_metrics_and_checkpoints(mlprank: Program, tmp_path: Path) -> None:
    for number in ("001", "002"):
        result = mlprank(*FIT)
        assert result.code == 0, result.err
        assert f"writes to runs/small/{number}" in result.out
        assert "epoch 2/2  train_loss" in result.out
        run = tmp_path / "runs" / "small" / number
        files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
        assert files == [".lock", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.csv"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["default_root_dir"] == "runs/small"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.003
    assert [float(row["lr"]) for row in _metrics(run) if row["lr"]] == pytest.approx([0.003, 0.0021])
    module = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert module.hparams["lr_scheduler"]["init_args"]["gamma"] == 0.7


def test_a_saved_config_tests_validates_and_predicts_and_trains_again(
    mlprank: Program, trained: Path, tmp_path: Path
) -> None:
    saved = "runs/small/001/config.yaml"
    before = sorted(tmp_path.rglob("*"))
    tested = mlprank("test", "--config", saved, "--ckpt_path", "runs/small/001/checkpoints/best.ckpt")
    assert tested.code == 0, tested.err
    assert "test_top1" in tested.out
    found = mlprank("test", "--ckpt_path=runs/small/001/checkpoints/best.ckpt").out
    assert found == f"mlprank test: takes model and data from {saved}\n{tested.out}"
    assert mlprank("test", "--config", saved, "--ckpt_path=best").out == tested.out
    assert "val_top5" in mlprank("validate", "--config", saved, "--ckpt_path=last").out
    assert sorted(tmp_path.rglob("*")) == before, "they write nothing"
    predicted = mlprank("predict", "--config", saved, "--ckpt_path=last")
    assert "359 predictions in runs/small/predict/001/predictions.csv" in predicted.out
    assert len((tmp_path / "runs/small/predict/001/predictions.csv").read_text().splitlines()) == 360
    assert "writes to runs/small/002" in mlprank("fit", "--config", saved, "--trainer.max_epochs=1").out


@pytest.mark.parametrize("within", ["a step", "a step, by an earlier version", "the end of an epoch"])
def test_a_killed_run_that_goes_on_ends_with_the_weights_and_metrics_of_a_whole_one(
    mlprank: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str
) -> None:
    log = RunLogger.log_metrics

    def kill() -> None:
        raise _Killed

    def kill_before_row(self: Any, metrics: Any, step: int) -> None:
        if "train_loss" in metrics and metrics["epoch"] == 1:
            raise _Killed
        log(self, metrics, step)

    assert mlprank(*FIT, "--trainer.max_epochs=4", "--trainer.default_root_dir=whole").code == 0
    with monkeypatch.context() as patched:
        if within.startswith("a step"):
            _at_step(2 * 9 + 4, kill, patched)
        else:
            patched.setattr(RunLogger, "log_metrics", kill_before_row)
        with pytest.raises(_Killed):
            mlprank(*FIT, "--trainer.max_epochs=4", "--trainer.default_root_dir=cut")
    if within == "a step":  # the rows are in the checkpoint
        (tmp_path / "cut" / "001" / "metrics.csv").unlink()
    elif within == "a step, by an earlier version":  # they are in the file alone
        last = tmp_path / "cut" / "001" / "checkpoints" / "last.ckpt"
        torch.save({name: value for name, value in _state(last).items() if name != "mlprank_rows"}, last)
    result = mlprank(*FIT, "--trainer.max_epochs=4", "--trainer.default_root_dir=cut", "--ckpt_path=last")
    assert result.code == 0, result.err
    assert "goes on in cut/001" in result.out
    whole, cut = (_state(tmp_path / name / "001" / "checkpoints" / "last.ckpt") for name in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][name], cut["state_dict"][name]) for name in whole["state_dict"])
    assert whole["lr_schedulers"] == cut["lr_schedulers"]
    assert _metrics(tmp_path / "whole" / "001") == _metrics(tmp_path / "cut" / "001")


def test_a_run_that_another_process_goes_on_with_is_refused_and_says_who_holds_it(
    mlprank: Program, trained: Path
) -> None:
    run = Path("runs/small/001")
    with held(run):
        result = mlprank(*FIT, "--ckpt_path=last")
    assert result.code == 2
    assert f"{run} is in use by process {os.getpid()}; wait until it ends" in result.err
    assert "goes on in" not in result.out


def test_ctrl_c_says_what_is_kept_and_exits_130(
    mlprank: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.getsignal", signal.getsignal)
    _at_step(13, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    assert threading.current_thread() is threading.main_thread()
    result = mlprank(*FIT)
    assert result.code == 130
    last = "runs/small/001/checkpoints/last.ckpt"
    assert f"mlprank fit: interrupted; {last} is kept; go on with the same command and --ckpt_path last" in result.err
    assert "Traceback" not in result.err
    assert _state(tmp_path / last)["global_step"] == 9


def test_what_is_typed_wins_over_what_the_checkpoint_holds(mlprank: Program, trained: Path, tmp_path: Path) -> None:
    arguments = ("--model.optimizer.lr=0.777", "--model.label_smoothing=0.3", "--trainer.max_epochs=2")
    result = mlprank(*FIT, *arguments, "--ckpt_path=runs/small/001/checkpoints/last.ckpt")
    assert result.code == 0, result.err
    config = yaml.safe_load((tmp_path / "runs/small/002/config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.777
    assert config["ckpt_path"] is None, "a saved config starts anew"
    hyper_parameters = _state(tmp_path / "runs/small/002/checkpoints/last.ckpt")["hyper_parameters"]
    assert hyper_parameters["label_smoothing"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--ckpt_path=none.ckpt"), "checkpoint none.ckpt does not exist"),
        (("fit", "--ckpt_path=last"), "there is no last.ckpt in runs/small (no run is there)"),
        (("test", "--ckpt_path=best"), "there is no best.ckpt in runs/small (no run is there)"),
        (("test",), "mlprank test needs --ckpt_path"),
        (("test", "--ckpt_path=text.ckpt"), "text.ckpt is damaged"),
        (("test", "--ckpt_path=published.pth"), "published.pth holds no weights: neither a `state_dict`"),
    ],
)
def test_a_wrong_checkpoint_is_named(
    mlprank: Program, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"model": {}}, tmp_path / "published.pth")
    result = mlprank(arguments[0], "--config=small.yaml", *arguments[1:])
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.9.5", None),
        ("2.999", None),
        ("9.0.0", "last.ckpt was written by Lightning 9.0.0, and 2."),
        ("new", "last.ckpt is damaged: pytorch-lightning_version='new' is not a version"),
    ],
)
def test_the_checkpoint_of_another_lightning_is_read_or_refused_by_its_version(
    mlprank: Program, trained: Path, version: str, message: str | None
) -> None:
    path = trained / "last.ckpt"
    torch.save({**_state(path), "pytorch-lightning_version": version}, path)
    result = mlprank("validate", "--config=small.yaml", f"--ckpt_path={path}")
    assert result.code == (2 if message else 0), result.err
    assert (message or "") in result.err
    assert ("val_top1" in result.out) == (message is None)


def test_another_networks_checkpoint_is_named_by_layer_and_sizes(mlprank: Program, trained: Path) -> None:
    result = mlprank("test", "--config=small.yaml", "--model.model.widths=[17]", "--ckpt_path=best")
    assert result.code == 2
    assert "another network: model.fc1.weight is 16×64 there and 17×64 here" in result.err


def test_a_run_directory_that_cannot_be_written_is_named(mlprank: Program, tmp_path: Path) -> None:
    (tmp_path / "occupied").touch()
    result = mlprank(*FIT, "--trainer.default_root_dir=occupied")
    assert result.code == 2
    assert "no run directory can be made under occupied" in result.err
    assert "--trainer.default_root_dir" in result.err


def test_a_full_disk_names_the_checkpoint_and_keeps_the_one_before(
    mlprank: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def full(content: Any, path: Path) -> None:
        calls.append(path)
        save(content, path)
        if len(calls) > 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlprank.training.runs.torch.save", full)
    result = mlprank(*FIT)
    assert result.code == 2
    assert ".ckpt cannot be written: No space left on device; earlier checkpoints are kept" in result.err
    folder = tmp_path / "runs/small/001/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert {_state(path)["global_step"] for path in folder.iterdir()} == {9}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    mlprank: Program, tmp_path: Path
) -> None:
    result = mlprank(*FIT, "--model.optimizer=SGD", "--model.optimizer.lr=1e30", "--model.lr_scheduler=null")
    assert result.code == 2
    assert "the training loss became" in result.err
    assert "lr=1e+30" in result.err
    assert not list(tmp_path.glob("runs/small/001/checkpoints/*"))


def test_tensorboard_and_csv_loggers_write_into_the_run_directory(mlprank: Program, tmp_path: Path) -> None:
    result = mlprank(*FIT, "--trainer.logger=TensorBoardLogger", "--trainer.logger+=CSVLogger")
    assert result.code == 0, result.err
    run = tmp_path / "runs/small/001"
    assert list(run.glob("events.out.tfevents*"))
    assert "val_top1" in (run / "metrics.csv").read_text()
    assert yaml.safe_load((run / "hparams.yaml").read_text())["data"]["init_args"]["batch_size"] == 128
    assert not (tmp_path / "lightning_logs").exists()


def test_no_logger_and_a_fast_run_write_no_more_than_asked(mlprank: Program, tmp_path: Path) -> None:
    assert mlprank(*FIT, "--trainer.fast_dev_run=true").code == 0
    assert not (tmp_path / "runs").exists()
    assert mlprank(*FIT, "--trainer.logger=false", "--trainer.enable_checkpointing=false").code == 0
    names = sorted(path.name for path in (tmp_path / "runs/small/001").iterdir())
    assert names == [".lock", "config.yaml"]
