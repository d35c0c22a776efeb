"""Loggers that write into the run directory, and W&B offline where it has no account or network to ask."""

import csv
import netrc
import os
import socket
import sys
from argparse import Namespace as ArgparseNamespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from jsonargparse import Namespace
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger

ROWS = "mlprank_rows"
"""Where a checkpoint keeps the rows of `metrics.csv`."""
_CONNECT_TIMEOUT_S = 3.0
_DEFAULT_PLACES = (None, ".", "lightning_logs")


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into a run directory; a run that goes on starts with the rows of its earlier part."""

    def __init__(self, run: Path, rows: Sequence[Mapping[str, float]] = ()) -> None:
        # a row an epoch is written when it is logged, so that nothing is lost with a process that is killed
        super().__init__(save_dir=str(run.parent), name="", version=run.name, flush_logs_every_n_steps=1)
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; it takes the file of the earlier part away, and writes its rows again."""
        if self._experiment is None:
            writer = super().experiment
            writer.metrics.extend(self.rows)
            writer.save()
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write a row."""
        super().log_metrics(metrics, step)
        self.rows.append({**metrics, "step": step})

    def log_hyperparams(self, params: dict[str, Any] | ArgparseNamespace | None = None) -> None:
        """Write nothing: the run directory has the full config."""


def rows_of(checkpoint: Mapping[str, Any], run: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv` up to a checkpoint, which holds them; of an earlier version's the file does."""
    file = run / "metrics.csv"
    if ROWS in checkpoint or not file.is_file():
        return list(checkpoint.get(ROWS, ()))
    with file.open(newline="") as lines:
        given = [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]
    rows = [{name: int(value) if value.isdecimal() else float(value) for name, value in row.items()} for row in given]
    return [row for row in rows if row["step"] < checkpoint["global_step"]]


def place_loggers(loggers: Any, run: Path) -> None:
    """Make the loggers of a parsed config write into the run directory, unless they were given a place."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        init_args = logger.get("init_args")
        if init_args.get("save_dir") not in _DEFAULT_PLACES:
            continue
        if logger.class_path.rpartition(".")[2] in ("CSVLogger", "TensorBoardLogger"):
            init_args.save_dir, init_args.name, init_args.version = str(run.parent), run.name, ""
        elif "save_dir" in init_args:
            init_args.save_dir = str(run.absolute())  # the process that W&B writes from may stand elsewhere


def reason_for_offline() -> str | None:
    """Say why W&B cannot be reached from here, or None where it can or where the user has chosen a mode."""
    if os.environ.get("WANDB_MODE"):
        return None
    url = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host, logins = url.hostname or "", os.environ.get("NETRC") or Path.home() / ".netrc"
    try:
        knows = bool(os.environ.get("WANDB_API_KEY") or netrc.netrc(str(logins)).authenticators(host))
    except (OSError, netrc.NetrcParseError):
        knows = False
    if not knows:
        return f"no login for {host} (`wandb login` or WANDB_API_KEY)"
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{host} cannot be reached ({error})"
    return None


def prepare_wandb() -> None:
    """Put W&B into offline mode where it would ask, wait or fail, and say so."""
    reason = reason_for_offline()
    if reason is not None:
        os.environ["WANDB_MODE"] = "offline"
        print(f"mlprank: W&B runs offline: {reason}; `wandb sync` sends the run later", file=sys.stderr)


def wandb_is_running() -> bool:
    """Whether this process has a W&B run, without importing wandb."""
    wandb = sys.modules.get("wandb")
    return wandb is not None and wandb.run is not None


def finish_wandb(*, failed: bool) -> None:
    """End the W&B run of this process, where there is one, so that its files are whole."""
    if wandb_is_running():
        sys.modules["wandb"].finish(exit_code=1 if failed else 0)
