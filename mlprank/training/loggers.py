"""Loggers that write into the run directory, and W&B offline where it has no account or network to ask."""

import csv
import netrc
import os
import socket
import sys
from argparse import Namespace as ArgparseNamespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlparse

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

LOGGED = "mlprank_logged"
"""Where a checkpoint keeps what its epoch logs."""
_CONNECT_TIMEOUT_S = 3.0
_DEFAULT_PLACES = (None, ".", "lightning_logs")


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into a run directory, and goes on with the one that an earlier part of the run has left.

    Rows from `steps` on, those that the earlier part had done, are dropped; `logged` is what its last epoch logged, of
    which what was not written any more is added.
    """

    def __init__(
        self, run: str | os.PathLike[str], *, steps: int = 0, logged: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        path = Path(run)
        # a row an epoch is written when it is logged, so that nothing is lost with a process that is killed
        super().__init__(save_dir=str(path.parent), name="", version=path.name, flush_logs_every_n_steps=1)
        self._metrics_file, self._aside = path / "metrics.csv", path / ".metrics.csv"
        self._earlier: list[dict[str, Any]] = []
        found = self._aside if self._aside.is_file() else self._metrics_file  # a process ended while it wrote
        if found.is_file():
            with found.open(newline="") as file:
                rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
            self._earlier = [row for row in rows if int(row["step"]) < steps]
        epoch = {"epoch", "step"}.union(*[row for row in self._earlier if row.get("epoch") == str(logged.get("epoch"))])
        if set(logged) - epoch:
            row = {name: value for name, value in logged.items() if name in ("epoch", "step") or name not in epoch}
            self._earlier.append(row)

    @property
    def experiment(self) -> Any:
        """The writer; it starts with the rows of the earlier part of the run."""
        fresh = self._experiment is None
        if fresh and self._earlier:
            if not self._aside.is_file() and self._metrics_file.is_file():
                os.replace(self._metrics_file, self._aside)  # the writer would warn of it and delete it
            self._metrics_file.unlink(missing_ok=True)
        writer = super().experiment
        if fresh and self._earlier:
            writer.metrics.extend(self._earlier)
            writer.save()
            self._aside.unlink(missing_ok=True)
        return writer

    def log_hyperparams(self, params: dict[str, Any] | ArgparseNamespace | None = None) -> None:
        """Write nothing: the run directory has the full config."""


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
