"""Real processes: killed, out of disk, and two at a time."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CONFIG

STOPPER = """\
import os, signal
import torch
from lightning.pytorch import Callback
import mlprank.training.runs as checkpoints

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

class InAnEpoch(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2 * 9 + 4:
            kill()

class InACheckpoint(Callback):
    def on_train_epoch_start(self, trainer, *_):
        if trainer.current_epoch == 2:
            save = torch.save
            def half(content, path):
                save(content, path)
                os.truncate(path, os.path.getsize(path) // 2)
                kill()
            checkpoints.torch.save = half
"""
FIT = ("fit", "--config=small.yaml", "--trainer.max_epochs=4")


def _start(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlprank", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False, **options
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "stopper.py").write_text(STOPPER)
    return tmp_path


def _checkpoint(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("place", ["InAnEpoch", "InACheckpoint"])
def test_a_process_killed_with_9_goes_on_and_ends_with_the_weights_of_a_whole_run(folder: Path, place: str) -> None:
    whole = _start(folder, *FIT, "--trainer.default_root_dir=whole")
    assert whole.returncode == 0, whole.stderr
    killed = _start(folder, *FIT, "--trainer.default_root_dir=cut", f"--trainer.callbacks+=stopper.{place}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = {path.name: _checkpoint(path) for path in (folder / "cut/001/checkpoints").glob("[!.]*.ckpt")}
    assert set(checkpoints) == {"best.ckpt", "last.ckpt"}, "whole ones"
    assert checkpoints["last.ckpt"]["global_step"] == 18
    resumed = _start(folder, *FIT, "--trainer.default_root_dir=cut", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on in cut/001" in resumed.stdout
    assert sorted(path.name for path in (folder / "cut/001/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    expected, found = (_checkpoint(folder / name / "001/checkpoints/last.ckpt") for name in ("whole", "cut"))
    assert found["global_step"] == expected["global_step"] == 36
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor), name
    assert (folder / "whole/001/metrics.csv").read_text() == (folder / "cut/001/metrics.csv").read_text()


@pytest.mark.slow
def test_of_two_processes_that_go_on_at_once_one_wins_and_the_other_says_who_holds_the_run(folder: Path) -> None:
    assert _start(folder, *FIT).returncode == 0
    command = [sys.executable, "-m", "mlprank", "fit", "--config=small.yaml", "--ckpt_path=last", "--epochs=400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options: Any = {
        "cwd": folder,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    (winner,) = (process.pid for process in both if process.returncode == 0)
    (error,) = (err for process, (_, err) in zip(both, outputs, strict=True) if process.returncode == 2)
    assert f"runs/small/001 is in use by process {winner}; wait until it ends" in error
    assert "Traceback" not in error
    assert _checkpoint(folder / "runs/small/001/checkpoints/last.ckpt")["epoch"] == 399
    assert [path.name for path in (folder / "runs/small").iterdir()] == ["001"]


@pytest.mark.slow
def test_a_checkpoint_that_the_system_refuses_to_write_is_named_and_leaves_no_part(folder: Path) -> None:
    def at_most_100_kb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = _start(folder, *FIT, "--model.model.widths=[512]", preexec_fn=at_most_100_kb)
    assert result.returncode == 2, result.stderr
    assert "checkpoint " in result.stderr
    assert "runs/small/001/checkpoints/" in result.stderr
    assert "cannot be written: " in result.stderr
    assert "earlier checkpoints are kept" in result.stderr
    assert not list((folder / "runs/small/001/checkpoints").glob("*"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(folder: Path) -> None:
    options = ("--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.max_epochs=2")
    two = ("--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=64", "--trainer.default_root_dir=two")
    pair = _start(folder, *FIT, *options, *two)
    assert pair.returncode == 0, pair.stderr
    single = _start(folder, *FIT, *options, "--data.batch_size=128", "--trainer.default_root_dir=one")
    assert single.returncode == 0, single.stderr
    expected, found = (_checkpoint(folder / name / "001/checkpoints/last.ckpt") for name in ("one", "two"))
    assert found["global_step"] == expected["global_step"] == 18
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)
    assert [path.name for path in (folder / "two").iterdir()] == ["001"], "one run directory for both"
