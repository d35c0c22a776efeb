"""The files of image sets: found, downloaded and read whole, or an error that names them and the remedy."""

import gzip
import io
import math
import os
import pickle
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlprank.utils.errors import FAILURES

DATA_DIR_VARIABLE = "MLPRANK_DATA_DIR"
TIMEOUT_S = 30.0
MAX_ITEMS = 1_000_000  # the official files hold 60,000; a header that claims far more is damage
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
    suffixes: tuple[str, ...] = ("",)  # what may follow a file's name, such as `.gz`
    system_folders: tuple[Path, ...] = ()  # where to look after the data directory
    remedy: str = "run once with a network"  # how else to get the files
    download: Callable[[Path], None] | None = None  # into the first folder below a directory; torchvision's by default

    def find(self, data_dir: Path) -> dict[str, Path] | None:
        """Return the paths of all files by their names, or None where no folder holds them all."""
        for folder in (*(data_dir / folder for folder in self.folders), *self.system_folders):
            candidates = ((name, folder / (name + suffix)) for name in self.files for suffix in reversed(self.suffixes))
            found = {name: path for name, path in candidates if path.is_file()}
            if len(found) == len(self.files):
                return found
        return None

    def locate(self, data_dir: Path) -> dict[str, Path]:
        """Return the paths of all files by their names; a FileNotFoundError says where they may lie."""
        if (found := self.find(data_dir)) is None:
            raise self._missing(data_dir, "nothing was downloaded")
        return found

    def ensure(self, data_dir: Path) -> None:
        """Download the set into the data directory unless it is there. Every file appears whole or not at all."""
        if self.find(data_dir) is not None:
            return
        before = socket.getdefaulttimeout()
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary:
                socket.setdefaulttimeout(TIMEOUT_S)  # a connection that stays silent fails
                (self.download or self._download)(Path(temporary))
                fetched, target = Path(temporary) / self.folders[0], data_dir / self.folders[0]
                target.mkdir(parents=True, exist_ok=True)
                for name in self.files:
                    os.replace(fetched / name, target / name)
        except (OSError, RuntimeError) as error:
            raise self._missing(data_dir, f"the download failed: {error}") from error
        finally:
            socket.setdefaulttimeout(before)

    def _download(self, root: Path) -> None:
        """Download torchvision's set of this name below a directory, with a progress bar, and check it."""
        import torchvision.datasets  # heavy

        source = getattr(torchvision.datasets, self.name)
        if hasattr(source, "tgz_md5"):  # CIFAR's, one archive: the set's own download would unpickle what is in it
            fetch = torchvision.datasets.utils.download_and_extract_archive
            fetch(source.url, str(root), filename=source.filename, md5=source.tgz_md5)
        else:
            source(root, download=True)

    def _missing(self, data_dir: Path, reason: str) -> FileNotFoundError:
        either = f" (each may end in {' or '.join(filter(None, self.suffixes))})" if any(self.suffixes) else ""
        folders = ", ".join(str(data_dir / folder) for folder in self.folders)
        return FileNotFoundError(
            f"{self.name} is not in {data_dir} and {reason}. Expected the files {', '.join(self.files)}{either} in "
            f"one of {folders}. Put them there, or set data_dir or the environment variable {DATA_DIR_VARIABLE} to "
            f"where they are, or {self.remedy}."
        )


def read_idx(path: Path, *, item_shape: tuple[int, ...]) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped where its name ends in `.gz`, as uint8, shape (n, *item_shape).

    Source:
        LeCun et al., the MNIST database of handwritten digits, "the IDX file format".
    """
    num_dims, item_bytes = 1 + len(item_shape), math.prod(item_shape)
    magic = bytes([0, 0, 8, num_dims])  # 8 for unsigned bytes
    try:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as stream:
            header = stream.read(4 + 4 * num_dims)
            num_items, *shape = struct.unpack(f">{num_dims}I", header[4:].ljust(4 * num_dims, b"\0"))
            content = bytearray(stream.read(min(num_items, MAX_ITEMS) * item_bytes + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is not a whole gzip file ({error}); {_AGAIN}") from error
    size, expected = len(content), num_items * item_bytes
    found = f"only {size}" if size < expected else f"more than {expected}"
    for is_there, fault in (
        (header[:4] != magic, f"starts with the bytes {header[:4].hex()!r} and not with {magic.hex()!r}"),
        (len(header) < 4 + 4 * num_dims, "ends within its header"),
        (tuple(shape) != item_shape, f"its items have the shape {tuple(shape)}, not {item_shape}"),
        (not 0 < num_items <= MAX_ITEMS, f"its header announces {num_items} items, outside [1, {MAX_ITEMS}]"),
        (size != expected, f"its header announces {num_items} items in {expected} bytes and the file holds {found}"),
    ):
        if is_there:
            raise ValueError(f"{path}: {fault}; it is of another data set, truncated or damaged: {_AGAIN}")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(num_items, *item_shape)


def read_idx_pair(
    images_path: Path, labels_path: Path, *, in_shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Read images, shape (n, 1, H, W), uint8, of an idx file and their labels, shape (n,), int64, of another."""
    images, labels = read_idx(images_path, item_shape=in_shape[1:]), read_idx(labels_path, item_shape=())
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} holds {len(images)} images and {labels_path} {len(labels)} labels; one of them is not of "
            "this set: delete both and get them again"
        )
    return images.unsqueeze(1), _labels(labels.tolist(), num_classes=num_classes, place=labels_path)


class _StandIn:
    """Stands for a NumPy array or its type in a pickle: keeps what it is made of, and does nothing."""

    state: Any = ()

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain types and arrays of bytes, and refuses everything else before it is imported.

    NumPy's own reconstruction would trust an array's description, in which a stranger's file may lie.
    """

    _known: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": None,  # an argument, which is never called
        "numpy.dtype": _StandIn,
        "numpy.core.multiarray._reconstruct": _StandIn,
        "numpy._core.multiarray._reconstruct": _StandIn,
        "_codecs.encode": str.encode,  # by which Python 3 writes bytes in protocol 2
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name that an array needs."""
        if f"{module}.{name}" not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self._known[f"{module}.{name}"]


def read_cifar_batch(path: Path, *, label_key: str, num_classes: int) -> tuple[Tensor, Tensor]:
    """Read one batch file of the Python version of CIFAR-10 or CIFAR-100.

    Images have shape (n, 3, 32, 32), uint8, and labels, in [0, num_classes), (n,), int64.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images", the CIFAR-10 and CIFAR-100 data sets.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (*FAILURES, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: is not a whole CIFAR batch file ({error}); {_AGAIN}") from error
    entries = content if isinstance(content, dict) else {}  # Python 2 wrote its keys as bytes
    array, classes = (entries.get(key.encode(), entries.get(key)) for key in ("data", label_key))
    match array:  # its state is version, shape, type, whether it is in Fortran's order, bytes
        case _StandIn(state=(_, (int(num_images), 3072), _StandIn(arguments=("u1" | b"u1", *_)), False, bytes(pixels))):
            whole = len(pixels) == num_images * 3072
        case _:
            whole = False
    if not whole:
        raise ValueError(f'{path}: its entry "data" is not whole, unsigned bytes of shape (n, 3072) in C order')
    if not isinstance(classes, list) or not all(type(label) is int for label in classes):
        raise ValueError(f'{path}: has no list of integers "{label_key}"; it belongs to another data set')
    if len(classes) != num_images:
        raise ValueError(f"{path}: holds {num_images} images and {len(classes)} labels; it is damaged: {_AGAIN}")
    labels = _labels(classes, num_classes=num_classes, place=path)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(-1, 3, 32, 32), labels


def _labels(labels: list[int], *, num_classes: int, place: Path) -> Tensor:
    """Return labels, int64, once they are known to be some and to lie in [0, num_classes)."""
    if not labels:
        raise ValueError(f"{place}: holds no images; replace the file by a complete one")
    outside = [index for index, label in enumerate(labels) if not 0 <= label < num_classes]
    if outside:
        raise ValueError(
            f"{place}: label {labels[outside[0]]} of image {outside[0]} is outside [0, {num_classes}) ({len(outside)} "
            "such labels); the file is damaged or belongs to another data set"
        )
    return torch.tensor(labels, dtype=torch.int64)
