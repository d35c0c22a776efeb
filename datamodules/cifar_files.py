"""Read the batch files of CIFAR, which are pickles, without letting them run anything.

The files were pickled from dicts that hold lists, strings and one NumPy array. NumPy's own reconstruction trusts the
array's description in the pickle; a stranger's file may lie there. So the three names that such an array needs are
replaced by stand-ins that only keep its shape and bytes, and every other name is refused.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlprank.datamodules.labels import check_range

PIXELS = 3 * 32 * 32
_BIG = 2**62  # a hostile label may not fit into 64 bits
_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Type:
    """Stand-in for `numpy.dtype`: keeps the type's code and ignores what else the pickle says about it."""

    __slots__ = ("code",)

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, _state: object) -> None:
        """Ignore byte order, alignment and flags: the code `u1` says all."""


class _Array:
    """Stand-in for `numpy.ndarray`: an array of unsigned bytes in C order, checked."""

    __slots__ = ("content", "shape")

    def __init__(self, *_arguments: object) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.content = b""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take shape and bytes from the state that `numpy.ndarray` pickles: version, shape, type, order, bytes."""
        _version, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _Type) or dtype.code != "u1" or fortran_order:
            raise ValueError("an array is not one of unsigned bytes in C order")
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"an array has the shape {shape!r}")
        if not isinstance(content, bytes) or len(content) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} does not hold {math.prod(shape)} bytes")
        self.shape, self.content = shape, content


class _Latin1(bytes):
    """Stand-in for `_codecs.encode`, by which Python 3 writes bytes in protocol 2: latin-1 and nothing else."""

    def __new__(cls, text: str, encoding: str) -> "_Latin1":
        if encoding != "latin1":
            raise ValueError(f"bytes are encoded as {encoding!r}, not as latin1")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, _state: object) -> None:
        raise ValueError("bytes carry a state")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle plain types and arrays of bytes; refuse everything else before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name that an array needs."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def read_cifar_batch(path: Path, *, label_key: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read one batch file of the Python version of CIFAR-10 or CIFAR-100.

    Args:
        path: The file.
        label_key: Entry that holds the classes: `labels` for CIFAR-10, `fine_labels` for CIFAR-100.
        num_classes: Number of classes; labels lie in [0, num_classes).

    Returns:
        Images, shape (n, 3, 32, 32), uint8, and labels, shape (n,), int64.

    Raises:
        ValueError: If the file is truncated, is no CIFAR batch, asks to import something, or has labels out of range.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images", the CIFAR-10 and CIFAR-100 data sets.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _DAMAGE as error:
        raise ValueError(f"{path}: is no whole CIFAR batch file ({error}); delete it and get it again") from error
    entries = _entries(content)
    pixels, classes = entries.get("data"), entries.get(label_key)
    if not isinstance(pixels, _Array) or len(pixels.shape) != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f'{path}: has no entry "data" of shape (n, {PIXELS}); it is no CIFAR batch file')
    if not isinstance(classes, list) or not all(type(label) is int for label in classes):
        raise ValueError(f'{path}: has no list of integers "{label_key}"; it belongs to another data set')
    if len(classes) != pixels.shape[0]:
        raise ValueError(
            f"{path}: holds {pixels.shape[0]} images and {len(classes)} labels; it is damaged: delete it, get it again"
        )
    labels = torch.tensor([max(-_BIG, min(label, _BIG)) for label in classes], dtype=torch.int64)
    check_range(labels, num_classes=num_classes, place=path)
    images = torch.frombuffer(bytearray(pixels.content), dtype=torch.uint8)
    return images.reshape(-1, 3, 32, 32), labels


def _entries(content: object) -> dict[str, object]:
    """Return a batch's entries by text keys; Python 2 wrote its keys as bytes."""
    if not isinstance(content, dict):
        return {}
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
