"""Run directories: numbered, held by one process each, found again by their checkpoints, which are whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.models import weights_of
from mlprank.utils.files import BusyError, locked, whole_file

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
_LOCK = ".lock"


def claim_run(base: Path) -> Path:
    """Create the next numbered directory under `base`, such as `runs/quickstart/001`, for this run alone."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            run = base / f"{1 + max((int(run.name) for run in numbered_runs(base)), default=0):03d}"
            with suppress(FileExistsError):  # one of the runs that start at the same time has it
                run.mkdir()
                return run
    except OSError as error:
        raise type(error)(
            f"no run directory can be made under {base}: {error.strerror or error}; give another with "
            "--trainer.default_root_dir"
        ) from error


def numbered_runs(base: Path) -> list[Path]:
    """Return the run directories under `base`, oldest first."""
    return sorted((run for run in base.glob("*") if run.name.isdecimal() and run.is_dir()), key=lambda r: int(r.name))


@contextmanager
def held(run: Path) -> Iterator[Path]:
    """Hold a run directory for this process alone; take it away again where nothing was written to it.

    What a killed process has left in it, files that it was writing, is deleted first. A BusyError says who holds it.
    """
    busy = f"{run} is in use by process {{holder}}; wait until it ends, or leave out --ckpt_path for a run of its own"
    ours = False  # a directory that another process holds is not ours to take away, however empty it is
    try:
        with locked(run / _LOCK, busy=busy):
            ours = True
            for folder in (run, run / CHECKPOINTS):
                for part in folder.glob(".[0-9]*-*"):
                    part.unlink(missing_ok=True)
            yield run
    finally:
        if ours and run.is_dir() and all(path.name.startswith(_LOCK) for path in run.iterdir()):
            shutil.rmtree(run)


@contextmanager
def claimed(base: Path, *, run: Path | None = None) -> Iterator[Path]:
    """Hold a run directory under `base`, by default the next numbered one, which is created.

    The directories that killed processes claimed there and wrote nothing whole to are taken away first.
    """
    for other in numbered_runs(base):
        if not (other / CONFIG).is_file() and (other / _LOCK).exists():  # without a lock it was claimed a moment ago
            with suppress(BusyError), held(other):
                pass
    with held(run or claim_run(base)) as directory:
        yield directory


def home_of(checkpoint: Path) -> Path:
    """Return the run directory that a checkpoint belongs to, or the directory that it lies in."""
    return (beside_checkpoint(checkpoint) or checkpoint).parent


def find_checkpoint(base: Path, given: str, *, config: Path | None = None) -> Path:
    """Find the newest run's `last` or `best` checkpoint under `base`, or that of the run whose saved config is given.

    Anything else is the path of a checkpoint.
    """
    if given not in ("last", "best"):
        return Path(given)
    runs = numbered_runs(base)[::-1]
    if config is not None and config.name == CONFIG:
        runs = [run for run in runs if run.resolve() == config.parent.resolve()] or runs
    if found := next(filter(None, (_newest_checkpoint(each, f"{given}*.ckpt") for each in runs)), None):
        return found
    place = f"{base} (no run is there)" if not runs else f"{', '.join(str(r / CHECKPOINTS) for r in runs[:3])}"
    raise FileNotFoundError(
        f"--ckpt_path {given}: there is no {given}.ckpt in {place}; train with `mlprank fit` first, without "
        "--ckpt_path, or give the path of a checkpoint"
    )


def kept(run: Path | None) -> str:
    """Say in a few words what a run that ended early has left behind."""
    if run is None or not run.is_dir():
        return "nothing was written"
    newest = _newest_checkpoint(run, "[!.]*.ckpt")
    if newest is None:
        return f"{run} holds no checkpoint yet: none is written before the first epoch has ended"
    return f"{newest} is kept; go on with the same command and --ckpt_path last"


def _newest_checkpoint(run: Path, pattern: str) -> Path | None:
    return max((run / CHECKPOINTS).glob(pattern), key=lambda path: path.stat().st_mtime, default=None)


def beside_checkpoint(checkpoint: str | os.PathLike[str]) -> Path | None:
    """Return the config of the run that wrote a checkpoint, or None where there is none beside it."""
    path = Path(checkpoint)
    places = (path.parent.parent / CONFIG, path.parent / CONFIG) if path.is_file() else ()
    return next((place for place in places if place.is_file()), None)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is complete, so that the previous one is kept."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint."""
        try:
            with whole_file(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise OSError(f"checkpoint {path} cannot be written: {reason}; earlier checkpoints are kept") from error


def read_trained(path: Path) -> dict[str, Any]:
    """Read a checkpoint, and refuse a file that does not hold the weights of a network.

    Lightning brings older checkpoints up to date itself.
    """
    content = read_checkpoint(path)
    weights_of(content, path)
    written = content.get("pytorch-lightning_version", lightning.__version__)
    try:
        version = Version(str(written))
    except InvalidVersion as error:
        raise ValueError(f"{path} is damaged: pytorch-lightning_version={written!r} is not a version") from error
    if version.major > Version(lightning.__version__).major:
        raise ValueError(
            f"{path} was written by Lightning {version}, and {lightning.__version__} is installed; upgrade lightning, "
            "or load its weights alone with mlprank.models.classifier.ImageClassifier.load_from_checkpoint"
        )
    return content
