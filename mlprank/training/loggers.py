"""Loggers that write into the run directory."""

from __future__ import annotations

import csv
import os
from argparse import Namespace as ArgparseNamespace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

_DEFAULT_PLACES = (None, ".", "lightning_logs")


class RunLogger(CSVLogger):
    """Writes `metrics.csv` into a run directory, and goes on with the one that an earlier part of the run has left.

    Args:
        run: The run directory.
        steps: Steps that the earlier part had done at the checkpoint it goes on from; later rows are dropped.
    """

    def __init__(self, run: str | os.PathLike[str], *, steps: int = 0) -> None:
        path = Path(run)
        # a row an epoch is written when it is logged, so that nothing is lost with a process that is killed
        super().__init__(save_dir=str(path.parent), name="", version=path.name, flush_logs_every_n_steps=1)
        self._metrics_file = path / "metrics.csv"
        self._earlier = [row for row in _read_metrics(self._metrics_file) if int(row["step"]) < steps]

    @property
    def experiment(self) -> Any:
        """The writer; it starts with the rows of the earlier part of the run."""
        fresh = self._experiment is None
        if fresh and self._earlier:
            self._metrics_file.unlink(missing_ok=True)  # the writer would warn of it and delete it
        writer = super().experiment
        if fresh and self._earlier:
            writer.metrics.extend(self._earlier)
            writer.save()
        return writer

    def log_hyperparams(self, params: dict[str, Any] | ArgparseNamespace | None = None) -> None:
        """Write nothing: the run directory has the full config."""


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]


def place_loggers(loggers: Any, run: Path) -> None:
    """Make the loggers of a parsed config write into the run directory, unless they were given a place.

    Args:
        loggers: The value of `trainer.logger`: a namespace with class_path and init_args, or a list of such.
        run: The run directory.
    """
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
