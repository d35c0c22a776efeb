"""Read the files of image sets: idx, plain or gzipped, and CIFAR's pickles. The whole file, or an error that names it.

CIFAR's files were pickled from dicts that hold lists, strings and one NumPy array. NumPy's own reconstruction trusts the
array's description in the pickle; a stranger's file may lie there. So the three names that such an array needs are
replaced by stand-ins that only keep its shape and bytes, and every other name is refused.
"""

import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor


def check_range(labels: Tensor, *, num_classes: int, place: Path) -> None:
    """Check that there are labels and that every one is a class.

    Args:
        labels: Classes, shape (n,), integer.
        num_classes: Number of classes; labels lie in [0, num_classes).
        place: The file that the labels came from, for the message.

    Raises:
        ValueError: If there is no label or one is out of range.
    """
    if len(labels) == 0:
        raise ValueError(f"{place}: holds no images; replace the file by a complete one")
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{place}: label {int(labels[first])} of image {first} is outside [0, {num_classes}) "
            f"({len(outside)} such labels); the file is damaged or belongs to another data set"
        )


def check_several_classes(labels: Tensor, *, place: Path) -> None:
    """Check that the labels are not all the same.

    Args:
        labels: Classes, shape (n,), at least one.
        place: The file or the directory that the labels came from, for the message.

    Raises:
        ValueError: If only one class occurs.
    """
    if labels.min() == labels.max():
        raise ValueError(
            f"{place}: all {len(labels)} images have label {int(labels[0])}; a classifier needs at least two classes"
        )


MAX_ITEMS = 1_000_000  # the official files hold 60,000; a header that claims far more is damage
_UBYTE = 0x08
_CHUNK_BYTES = 1 << 20


def read_idx(path: Path, *, item_shape: tuple[int, ...]) -> Tensor:
    """Read one idx file of unsigned bytes.

    Args:
        path: The file; a name that ends in `.gz` is decompressed.
        item_shape: Shape that every item must have: (H, W) for images, () for labels.

    Returns:
        The array, uint8, shape (n, *item_shape), n at least 1.

    Raises:
        ValueError: If the file is no such idx file, is truncated, longer than its header says or no whole gzip file.

    Source:
        LeCun et al., the MNIST database of handwritten digits, "the IDX file format".
    """
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            num_items = _read_header(stream, path=path, item_shape=item_shape)
            expected = num_items * math.prod(item_shape)
            content = bytearray()
            while len(content) <= expected and (chunk := stream.read(_CHUNK_BYTES)):
                content += chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: is not a whole gzip file ({error}); delete it and get it again") from error
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else f"more than {expected}"
        raise ValueError(
            f"{path}: its header announces {num_items} items in {expected} bytes and the file holds {found}; "
            "it is truncated or damaged: delete it and get it again"
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(num_items, *item_shape)


def _read_header(stream: BinaryIO | gzip.GzipFile, *, path: Path, item_shape: tuple[int, ...]) -> int:
    """Return the number of items that an idx header announces, after checking everything else in it."""
    num_dims = 1 + len(item_shape)
    magic = bytes([0, 0, _UBYTE, num_dims])
    header = stream.read(4 + 4 * num_dims)
    if header[:4] != magic:
        raise ValueError(
            f"{path}: starts with the bytes {header[:4].hex()!r}, an idx file of {num_dims}-dimensional unsigned bytes "
            f"with {magic.hex()!r}; it is another file or a damaged one: delete it and get it again"
        )
    if len(header) < 4 + 4 * num_dims:
        raise ValueError(f"{path}: ends within its header; it is truncated: delete it and get it again")
    num_items, *shape = struct.unpack(f">{num_dims}I", header[4:])
    if tuple(shape) != item_shape:
        raise ValueError(
            f"{path}: its items have the shape {tuple(shape)}, not {item_shape}; it is of another data set"
        )
    if not 0 < num_items <= MAX_ITEMS:
        raise ValueError(f"{path}: its header announces {num_items} items, outside [1, {MAX_ITEMS}]; get it again")
    return int(num_items)


def read_idx_pair(
    images_path: Path, labels_path: Path, *, in_shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Read the images of an idx file and their labels of another.

    Args:
        images_path: The file of images.
        labels_path: The file of labels.
        in_shape: Shape that an image must have, (1, H, W).
        num_classes: Number of classes; labels lie in [0, num_classes).

    Returns:
        Images, shape (n, 1, H, W), uint8, and labels, shape (n,), int64.

    Raises:
        ValueError: If a file is damaged, an image has another size, the counts differ or a label is out of range.
    """
    images = read_idx(images_path, item_shape=in_shape[1:])
    labels = read_idx(labels_path, item_shape=()).to(torch.int64)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; "
            "one of them is not of this set: delete both and get them again"
        )
    check_range(labels, num_classes=num_classes, place=labels_path)
    return images.unsqueeze(1), labels


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
