"""Read checkpoint files of tensors and plain types, and nothing that could run code."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
from collections import OrderedDict
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


class Unread:
    """Stands for an object of a checkpoint that is not a tensor or a plain type: nothing of it is imported, built or called."""

    def __new__(cls, *args: object, **kwargs: object) -> Unread:
        """Take whatever the object was made of, and keep none of it."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Take whatever the object held, and keep none of it."""

    def __setitem__(self, key: object, value: object) -> None:
        """Take an entry, and keep none of it."""

    def append(self, value: object) -> None:
        """Take an entry, and keep none of it."""

    extend = update = add = append


_READ: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{
        ("torch", name): value
        for name, value in vars(torch).items()
        if isinstance(value, torch.dtype) or (isinstance(value, type) and name.endswith("Storage"))
    },
}
"""The only names that are looked up when tensors are read from a checkpoint of other objects."""


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _READ.get((module, name), Unread)


class _Pickle:
    """What `torch.load` needs of a pickle module."""

    Unpickler = _TensorsOnly


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU, whatever objects it holds beside tensors and plain types.

    Hyper-parameters that are modules, functions and the like are passed over: code is neither imported nor run for them,
    and `Unread` stands in their place.

    Args:
        path: A file written by `torch.save`.

    Returns:
        The dict that it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; give the path of a file that training or pruning wrote"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Pickle)
    except (
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path} is damaged or not a checkpoint ({first_line(error)}); write it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint
