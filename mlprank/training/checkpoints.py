"""Checkpoints that are whole or absent, and checked before they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.utils.files import whole_file


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
    """Refuse a file that is no checkpoint of a training run.

    Returns:
        The number of steps that the run had done.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, would run code, lacks what a checkpoint of Lightning has, or was written by a
            Lightning of a later major version.
    """
    content = read_checkpoint(path)
    missing = [key for key in ("state_dict", "pytorch-lightning_version") if key not in content]
    if missing:
        hint = "; a published .pth is read by mlprank.models.load_published" if "model" in content else ""
        raise ValueError(f"{path} is no checkpoint of `mlprank fit` or `mlprank prune`: it has no {missing[0]!r}{hint}")
    _check_version(path, content["pytorch-lightning_version"])
    return int(content.get("global_step", 0))


def _check_version(path: Path, written: object) -> None:
    """Refuse a later major version of Lightning; it reads its own and brings older checkpoints up to date."""
    try:
        version = Version(str(written))
    except InvalidVersion as error:
        raise ValueError(f"{path} is damaged: pytorch-lightning_version={written!r} is no version") from error
    if version.major > Version(lightning.__version__).major:
        raise ValueError(
            f"{path} was written by Lightning {version}, and {lightning.__version__} is installed; upgrade lightning, or "
            "load its weights alone with mlprank.models.ImageClassifier.load_from_checkpoint"
        )
