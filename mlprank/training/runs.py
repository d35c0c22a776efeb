"""Run directories: numbered, held by one process each, found again by their checkpoints; and checkpoints that are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.training.networks import weights_of
from mlprank.utils.files import BusyError, locked, whole_file

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
_LOCK = ".lock"
_MOST_RUNS = 100_000


def claim_run(base: Path) -> Path:
    """Create the next numbered directory under `base`, such as `runs/quickstart/001`, for this run alone.

    Args:
        base: Directory of a config's runs; created where it is missing.

    Returns:
        The directory, empty.

    Raises:
        OSError: If it cannot be created.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        number = max((int(run.name) for run in numbered_runs(base)), default=0)
        while number < _MOST_RUNS:
            number += 1
            run = base / f"{number:03d}"
            try:
                run.mkdir()  # fails for all but one of the runs that start at the same time
            except FileExistsError:
                continue
            return run
    except OSError as error:
        raise type(error)(
            f"no run directory can be made under {base}: {error.strerror or error}; "
            "give another with --trainer.default_root_dir"
        ) from error
    raise FileExistsError(f"{base} holds {_MOST_RUNS} runs; give another directory with --trainer.default_root_dir")


def numbered_runs(base: Path) -> list[Path]:
    """Return the run directories under `base`, oldest first."""
    if not base.is_dir():
        return []
    return sorted((run for run in base.iterdir() if run.name.isdecimal() and run.is_dir()), key=lambda r: int(r.name))


@contextmanager
def held(run: Path) -> Iterator[Path]:
    """Hold a run directory for this process alone; take it away again where nothing was written to it.

    What a killed process has left in it, files that it was writing, is deleted first.

    Args:
        run: The directory.

    Raises:
        BusyError: If another process writes there.
    """
    busy = f"{run} is in use by process {{holder}}; wait until it ends, or leave out --ckpt_path for a run of its own"
    with ExitStack() as stack:
        stack.callback(discard_if_empty, run)
        stack.enter_context(locked(run / _LOCK, busy=busy))
        discard_partial(run)
        yield run


@contextmanager
def claimed(base: Path) -> Iterator[Path]:
    """Create and hold the next numbered directory under `base`, after taking away what killed processes left there.

    Args:
        base: Directory of the runs.
    """
    discard_abandoned(base)
    with held(claim_run(base)) as run:
        yield run


def home_of(checkpoint: Path) -> Path:
    """Return the run directory that a checkpoint belongs to, or the directory that it lies in."""
    config = beside_checkpoint(checkpoint)
    return config.parent if config is not None else checkpoint.parent


def discard_if_empty(run: Path | None) -> None:
    """Take a run directory away again that nothing but its lock was written to."""
    if run is None or not run.is_dir():
        return
    content = [path for path in run.iterdir() if not path.name.startswith(_LOCK)]
    if not content:
        for path in run.iterdir():
            path.unlink(missing_ok=True)
        run.rmdir()


def discard_partial(run: Path) -> None:
    """Delete the parts of files that a killed process was writing."""
    for folder in (run, run / CHECKPOINTS):
        for part in folder.glob(".[0-9]*-*"):
            part.unlink(missing_ok=True)


def discard_abandoned(base: Path) -> None:
    """Take away the run directories under `base` that killed processes claimed and wrote nothing whole to."""
    for run in numbered_runs(base):
        if (run / CONFIG).is_file() or not (run / _LOCK).exists():  # without a lock it was claimed a moment ago
            continue
        try:
            with held(run):
                pass
        except BusyError:
            continue


def run_of_config(config: Path | None, base: Path) -> Path | None:
    """Return the run directory that a saved config lies in, or None for any other config."""
    if config is None or config.name != CONFIG:
        return None
    run = config.parent
    return run if run.resolve().parent == base.resolve() and run.resolve().name.isdecimal() else None


def find_checkpoint(base: Path, keyword: str, *, run: Path | None = None) -> Path:
    """Find the newest run's checkpoint.

    Args:
        base: Directory of a config's runs.
        keyword: "last" or "best".
        run: The one run to look in; None looks from the newest to the oldest.

    Returns:
        Path of the file.

    Raises:
        FileNotFoundError: If no run has such a checkpoint.
    """
    runs = numbered_runs(base)[::-1] if run is None else [run]
    for candidate in runs:
        found = sorted((candidate / CHECKPOINTS).glob(f"{keyword}*.ckpt"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
    place = f"{base} (no run is there)" if not runs else f"{', '.join(str(r / CHECKPOINTS) for r in runs[:3])}"
    raise FileNotFoundError(
        f"--ckpt_path {keyword}: there is no {keyword}.ckpt in {place}; train with `mlprank fit` first, without "
        "--ckpt_path, or give the path of a checkpoint"
    )


def kept(run: Path | None) -> str:
    """Say in a few words what a run that ended early has left behind."""
    if run is None or not run.is_dir():
        return "nothing was written"
    checkpoints = sorted((run / CHECKPOINTS).glob("[!.]*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        return f"{run} holds no checkpoint yet: none is written before the first epoch has ended"
    return f"{checkpoints[-1]} is kept; go on with the same command and --ckpt_path last"


def beside_checkpoint(checkpoint: str | os.PathLike[str]) -> Path | None:
    """Return the config of the run that wrote a checkpoint, or None where there is none beside it."""
    path = Path(checkpoint)
    candidates = (path.parent.parent / CONFIG, path.parent / CONFIG)
    return next((candidate for candidate in candidates if path.is_file() and candidate.is_file()), None)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is complete.

    A process that is killed while it writes leaves the previous checkpoint as it was.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: If it cannot be written, e.g. because the disk is full; it names the file.
        """
        try:
            with whole_file(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise OSError(f"checkpoint {path} cannot be written: {reason}; earlier checkpoints are kept") from error


def check_trained(path: Path) -> int:
    """Refuse a file that does not hold the weights of a network.

    Returns:
        The number of steps that the run had done.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, would run code, holds no weights, or was written by a Lightning of a later major
            version.
    """
    content = read_checkpoint(path)
    weights_of(content, path)
    if "pytorch-lightning_version" in content:
        _check_version(path, content["pytorch-lightning_version"])
    return int(content.get("global_step", 0))


def _check_version(path: Path, written: object) -> None:
    """Refuse a later major version of Lightning; it reads its own and brings older checkpoints up to date."""
    try:
        version = Version(str(written))
    except InvalidVersion as error:
        raise ValueError(f"{path} is damaged: pytorch-lightning_version={written!r} is not a version") from error
    if version.major > Version(lightning.__version__).major:
        raise ValueError(
            f"{path} was written by Lightning {version}, and {lightning.__version__} is installed; upgrade lightning, or "
            "load its weights alone with mlprank.models.ImageClassifier.load_from_checkpoint"
        )
