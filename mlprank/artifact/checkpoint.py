"""Read checkpoint files of tensors and plain types, and nothing that could run code or has changed since."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlprank.utils.errors import FAILURES, first_line

DIGEST = "mlprank_digest"
"""The entry of a checkpoint that holds the digest of all others that mlprank reads."""
_DIGESTED = ("state_dict", "mlprank", "hyper_parameters")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their flags in one
        checkpoint = _loaded(Path(path), weights_only=True)
    if DIGEST in checkpoint:
        try:
            found = digest_of(checkpoint)
        except FAILURES as error:
            raise ValueError(f"{path} is damaged: {first_line(error)}; write it again") from error
        if checkpoint[DIGEST] != found:
            raise ValueError(f"{path} is damaged: its content differs from its digest; write it again")
    return checkpoint


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint as `read_checkpoint` does, whatever objects it holds beside tensors and plain types.

    Hyper-parameters that are modules, functions and the like are passed over: code is neither imported nor run for
    them, and `Unread` stands in their place.
    """
    return _loaded(Path(path), weights_only=False, pickle_module=_Pickle)


def _loaded(path: Path, **options: Any) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; give the path of a file that training or pruning wrote"
        )
    try:
        if zipfile.is_zipfile(path):  # older files are bare pickles
            with zipfile.ZipFile(path) as file:
                for part in file.infolist():
                    if part.compress_type != zipfile.ZIP_STORED:
                        raise ValueError(f"its part {part.filename!r:.80} is compressed")
                if broken := file.testzip():  # `torch.load` does not compare the parts with their CRCs
                    raise ValueError(f"its part {broken!r:.80} is not what its CRC says")
        checkpoint = torch.load(path, map_location="cpu", **options)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds objects that would run code when they are read; only files of tensors and "
            "plain types are read"
        ) from error
    except (OSError, *FAILURES, EOFError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        # EINVAL is what a file that was cut off, or a wrong place in it, gives.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        why = "nothing that torch.save writes looks like this" if isinstance(error, LookupError) else first_line(error)
        raise ValueError(f"{path} is damaged or not a checkpoint ({why}); write it again") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def digest_of(checkpoint: Mapping[str, Any]) -> str:
    """Return the digest of a checkpoint's weights, its record and its hyper-parameters."""
    return digest({name: checkpoint.get(name) for name in _DIGESTED})


def digest(content: object) -> str:
    """Return the SHA-256 of tensors and plain values, whatever order the entries of dicts are in; 1 is not 1.0."""
    hasher = hashlib.sha256()

    def feed(value: Any) -> None:
        """Feed a value with its type and length before it, so that no two values feed the same bytes."""
        if isinstance(value, Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} repeats its numbers; give it as contiguous()")
            hasher.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                hasher.update(flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().data)
        elif isinstance(value, (Mapping, list, tuple)):
            is_dict = isinstance(value, Mapping)
            hasher.update(f"{'dict' if is_dict else 'list'} {len(value)};".encode())
            keys = sorted(value, key=lambda key: (type(key).__name__, str(key))) if is_dict else ()
            for part in [part for key in keys for part in (key, value[key])] if is_dict else value:
                feed(part)
        elif value is None or isinstance(value, (bool, int, float, str)):
            encoded = (value.hex() if isinstance(value, float) else str(value)).encode("utf-8", "surrogatepass")
            hasher.update(f"{type(value).__name__} {len(encoded)};".encode() + encoded)
        else:
            raise TypeError(f"digest: a {type(value).__name__} is neither a tensor nor a plain value; give those only")

    feed(content)
    return hasher.hexdigest()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Unread:
    """Stands for an object that is not a tensor or a plain type: nothing of it is imported, built, called or kept."""

    def __new__(cls, *args: object, **kwargs: object) -> Unread:
        """Take whatever the object was made of, and keep none of it."""
        return super().__new__(cls)

    def append(self, *given: object) -> None:
        """Take an entry or a state, and keep none of it."""

    __setstate__ = __setitem__ = extend = update = add = append


_READ: dict[tuple[str, str], Any] = {
    (each.__module__, each.__name__): each
    for each in (
        *(OrderedDict, torch.Size, torch.device, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter),
        *(vars(torch)[name] for name in vars(torch) if name.endswith("Storage")),
    )
} | {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
"""The only names that are looked up when tensors are read from a checkpoint of other objects."""


class _Pickle:
    """What `torch.load` needs of a pickle module."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _READ.get((module, name), Unread)
