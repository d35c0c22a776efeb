"""Where a run writes."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from mlprank.callbacks.ranks import gathered


def run_directory(trainer: Trainer, dirpath: str | None) -> Path:
    """Return the directory of a run; call it on all processes.

    Args:
        trainer: The run.
        dirpath: The directory that the user chose, if any.

    Returns:
        That, else the first logger's directory for this run, else the trainer's `default_root_dir`.
    """
    if dirpath is not None:
        return Path(dirpath)
    logger = trainer.loggers[0] if trainer.loggers else None
    root = Path(trainer.default_root_dir)
    if logger is None:
        return root
    if isinstance(logger, (CSVLogger, TensorBoardLogger)):
        return Path(trainer.log_dir or root)
    saved = Path(logger.save_dir or root)
    shared = saved.resolve() == Path.cwd() or saved.resolve() != root.resolve()
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    own = saved / str(logger.name) / version if shared else saved
    return Path(trainer.strategy.broadcast(str(own)))


def check_writable(trainer: Trainer, directory: Path) -> None:
    """Write something to a directory and take it away again, before hours are spent on what could not be kept.

    Call it on all processes: the first one tries, and all of them fail together.

    Raises:
        OSError: If that fails; the directory is named.
    """
    problems = gathered(trainer, _problem(directory) if trainer.is_global_zero else None)
    for problem in problems:
        if isinstance(problem, OSError):
            raise problem


def _problem(directory: Path) -> OSError | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return type(error)(
            error.errno,
            f"PruningCallback cannot write to the run directory {directory} ({os.strerror(error.errno or 0)}); free it, or give another"
            ' one, as in PruningCallback(dirpath="runs/pruned")',
        )
