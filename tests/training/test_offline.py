import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from mlprank.training.loggers import prepare_wandb, reason_for_offline


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_without_a_login_it_is_offline_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "")  # restored afterwards
    prepare_wandb()
    assert os.environ["WANDB_MODE"] == "offline"
    assert "W&B runs offline: no login for api.wandb.ai" in capsys.readouterr().err


def test_a_chosen_mode_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert reason_for_offline() is None


def test_a_login_and_a_server_are_enough_and_a_dead_server_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password 0123\n")
    (tmp_path / "netrc").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert reason_for_offline() is None
    assert "127.0.0.1 cannot be reached" in str(reason_for_offline())
    (tmp_path / "netrc").write_text("machine\n")
    assert "no login for 127.0.0.1" in str(reason_for_offline())


def test_a_wandb_run_lies_in_the_run_directory_and_holds_config_and_metrics(
    mlprank: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_SILENT", "true")
    result = mlprank("fit", "--config=small.yaml", "--trainer.logger=WandbLogger")
    assert result.code == 0, result.err
    assert "W&B runs offline" in result.err
    wandb.teardown()  # waits until everything has been written
    [file] = (tmp_path / "runs/small/001/wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"val_top1" in content
    assert b"batch_size" in content
    assert not (tmp_path / "wandb").exists()
    assert yaml.safe_load((tmp_path / "runs/small/001/config.yaml").read_text())["trainer"]["logger"]
