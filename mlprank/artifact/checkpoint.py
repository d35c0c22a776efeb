"""Read checkpoint files of tensors and plain types, and nothing that could run code."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mlprank.utils.errors import first_line


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU.

    Args:
        path: A file written by `torch.save`.

    Returns:
        The dict that it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; give the path of a file that training or pruning wrote"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their flags in one
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds objects that would run code when they are read; only files of tensors and plain types are read"
        ) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # what torch raises for a zip file that was cut off
            raise
        raise ValueError(f"{path} is damaged: it ends too early; write it again") from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({first_line(error)}); write it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
