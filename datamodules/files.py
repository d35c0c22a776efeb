"""The files of image sets: found, downloaded and read whole, or an error that names them and the remedy.

MNIST's are idx files, plain or gzipped. CIFAR's were pickled from dicts that hold lists, strings and one NumPy array.
NumPy's own reconstruction trusts the array's description in the pickle, where a stranger's file may lie. So the names
that such an array needs are replaced by stand-ins that only keep its shape and bytes, and every other name is refused.
"""

import gzip
import io
import math
import os
import pickle
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

DATA_DIR_VARIABLE = "MLPRANK_DATA_DIR"
TIMEOUT_S = 30.0
MAX_ITEMS = 1_000_000  # the official files hold 60,000; a header that claims far more is damage
PIXELS = 3 * 32 * 32
_AGAIN = "delete it and get it again"


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of the data sets, which need not exist yet.

    It is what the user asked for, else the environment variable MLPRANK_DATA_DIR, else `$XDG_CACHE_HOME/mlprank`, which
    is `~/.cache/mlprank` on most machines.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlprank"
    return Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or cache).expanduser()


@dataclass(frozen=True)
class FileSet:
    """The files of one data set, the places where they may lie, and how they are downloaded."""

    name: str  # name of the data set
    files: tuple[str, ...]  # names of all files; a set counts as found in a folder that holds all of them
    folders: tuple[str, ...]  # where to look inside the data directory, in this order; a download goes into the first
    download: Callable[[Path], None]  # downloads the set below a directory, into the first of `folders`
    suffixes: tuple[str, ...] = ("",)  # what may follow a file's name, such as `.gz`
    system_folders: tuple[Path, ...] = ()  # where to look after the data directory
    remedy: str = "run once with a network"  # how else to get the files

    def find(self, data_dir: Path) -> dict[str, Path] | None:
        """Return the paths of all files by their names, or None where no folder holds them all."""
        for folder in (*(data_dir / folder for folder in self.folders), *self.system_folders):
            candidates = ((name, folder / (name + suffix)) for name in self.files for suffix in reversed(self.suffixes))
            found = {name: path for name, path in candidates if path.is_file()}
            if len(found) == len(self.files):
                return found
        return None

    def locate(self, data_dir: Path) -> dict[str, Path]:
        """Return the paths of all files by their names."""
        found = self.find(data_dir)
        if found is None:
            raise self._missing(data_dir, "nothing was downloaded")
        return found

    def ensure(self, data_dir: Path) -> None:
        """Download the set into the data directory unless it is there. Every file appears whole or not at all."""
        if self.find(data_dir) is not None:
            return
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary, _network_timeout():
                self.download(Path(temporary))
                fetched, target = Path(temporary) / self.folders[0], data_dir / self.folders[0]
                target.mkdir(parents=True, exist_ok=True)
                for name in self.files:
                    os.replace(fetched / name, target / name)
        except (OSError, RuntimeError) as error:
            raise self._missing(data_dir, f"the download failed: {error}") from error

    def _missing(self, data_dir: Path, reason: str) -> FileNotFoundError:
        either = f" (each may end in {' or '.join(filter(None, self.suffixes))})" if any(self.suffixes) else ""
        folders = ", ".join(str(data_dir / folder) for folder in self.folders)
        return FileNotFoundError(
            f"{self.name} is not in {data_dir} and {reason}. Expected the files {', '.join(self.files)}{either} in "
            f"one of {folders}. Put them there, or set data_dir or the environment variable {DATA_DIR_VARIABLE} to "
            f"where they are, or {self.remedy}."
        )


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Let a connection that stays silent fail instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def check_range(labels: Tensor, *, num_classes: int, place: Path) -> None:
    """Check that there are labels, shape (n,), and that every one lies in [0, num_classes)."""
    if len(labels) == 0:
        raise ValueError(f"{place}: holds no images; replace the file by a complete one")
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(
            f"{place}: label {int(labels[first])} of image {first} is outside [0, {num_classes}) ({len(outside)} such "
            "labels); the file is damaged or belongs to another data set"
        )


def read_idx(path: Path, *, item_shape: tuple[int, ...]) -> Tensor:
    """Read one idx file of unsigned bytes.

    The array is uint8 of shape (n, *item_shape), n at least 1; a file whose name ends in `.gz` is decompressed.

    Source:
        LeCun et al., the MNIST database of handwritten digits, "the IDX file format".
    """
    with path.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            num_items = _read_header(stream, path=path, item_shape=item_shape)
            expected = num_items * math.prod(item_shape)
            content = bytearray(stream.read(expected + 1))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: is not a whole gzip file ({error}); {_AGAIN}") from error
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else f"more than {expected}"
        raise ValueError(
            f"{path}: its header announces {num_items} items in {expected} bytes and the file holds {found}; it is "
            f"truncated or damaged: {_AGAIN}"
        )
    return torch.frombuffer(content, dtype=torch.uint8).reshape(num_items, *item_shape)


def _read_header(stream: BinaryIO | gzip.GzipFile, *, path: Path, item_shape: tuple[int, ...]) -> int:
    """Return the number of items that an idx header announces, after checking everything else in it."""
    num_dims = 1 + len(item_shape)
    magic = bytes([0, 0, 8, num_dims])  # 8 for unsigned bytes
    header = stream.read(4 + 4 * num_dims)
    if header[:4] != magic:
        raise ValueError(
            f"{path}: starts with the bytes {header[:4].hex()!r}, an idx file of {num_dims}-dimensional unsigned "
            f"bytes with {magic.hex()!r}; it is another file or a damaged one: {_AGAIN}"
        )
    if len(header) < 4 + 4 * num_dims:
        raise ValueError(f"{path}: ends within its header; it is truncated: {_AGAIN}")
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

    Images have shape (n, 1, H, W), uint8, and labels, in [0, num_classes), (n,), int64.
    """
    images = read_idx(images_path, item_shape=in_shape[1:])
    labels = read_idx(labels_path, item_shape=()).to(torch.int64)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; one of them is not of "
            "this set: delete both and get them again"
        )
    check_range(labels, num_classes=num_classes, place=labels_path)
    return images.unsqueeze(1), labels


_BIG = 2**62  # a hostile label may not fit into 64 bits
_DAMAGE = (
    *(pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError),
    *(MemoryError, RecursionError, TypeError, ValueError),
)


class _Type:
    """Stand-in for `numpy.dtype`: keeps the type's code, such as `u1`, which says all."""

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, _state: object) -> None:
        """Ignore byte order, alignment and flags."""


class _Array:
    """Stand-in for `numpy.ndarray`: an array of unsigned bytes in C order, checked."""

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


_STAND_INS: dict[tuple[str, str], Any] = {
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
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def read_cifar_batch(path: Path, *, label_key: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read one batch file of the Python version of CIFAR-10 or CIFAR-100.

    Images have shape (n, 3, 32, 32), uint8, and labels, in [0, num_classes), (n,), int64.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images", the CIFAR-10 and CIFAR-100 data sets.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _DAMAGE as error:
        raise ValueError(f"{path}: is no whole CIFAR batch file ({error}); {_AGAIN}") from error
    entries = content if isinstance(content, dict) else {}  # Python 2 wrote its keys as bytes
    pixels, classes = (entries.get(key.encode(), entries.get(key)) for key in ("data", label_key))
    if not isinstance(pixels, _Array) or len(pixels.shape) != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f'{path}: has no entry "data" of shape (n, {PIXELS}); it is no CIFAR batch file')
    if not isinstance(classes, list) or not all(type(label) is int for label in classes):
        raise ValueError(f'{path}: has no list of integers "{label_key}"; it belongs to another data set')
    if len(classes) != pixels.shape[0]:
        raise ValueError(f"{path}: holds {pixels.shape[0]} images and {len(classes)} labels; it is damaged: {_AGAIN}")
    labels = torch.tensor([max(-_BIG, min(label, _BIG)) for label in classes], dtype=torch.int64)
    check_range(labels, num_classes=num_classes, place=path)
    images = torch.frombuffer(bytearray(pixels.content), dtype=torch.uint8)
    return images.reshape(-1, 3, 32, 32), labels
