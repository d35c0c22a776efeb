"""Run directories: numbered, claimed by one run each, and found again by their checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINTS = "checkpoints"
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


def discard_if_empty(run: Path | None) -> None:
    """Take a run directory away again that nothing was written to."""
    if run is not None and run.is_dir() and not any(run.iterdir()):
        run.rmdir()


def discard_partial(run: Path) -> None:
    """Delete the parts of checkpoints that a killed process was writing."""
    for part in (run / CHECKPOINTS).glob(".*-*.ckpt"):
        part.unlink(missing_ok=True)


def run_of_config(config: Path | None, base: Path) -> Path | None:
    """Return the run directory that a saved config lies in, or None for any other config."""
    if config is None or config.name != "config.yaml":
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
    candidates = (path.parent.parent / "config.yaml", path.parent / "config.yaml")
    return next((candidate for candidate in candidates if path.is_file() and candidate.is_file()), None)
