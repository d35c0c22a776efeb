"""Writers of genuine idx and CIFAR files, and of a network that remembers the batches it saw."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array of unsigned bytes as an idx file's content."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images_and_labels(count: int, *, num_classes: int = 10, shape: tuple[int, ...] = (28, 28)) -> tuple:
    """Return random images, uint8, and labels in which every class occurs, uint8."""
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), (np.arange(count) % num_classes).astype(np.uint8)


def write_mnist(folder: Path, *, num_train: int = 100, num_test: int = 20, compress: bool = False) -> dict[str, Tensor]:
    """Write the four files of MNIST's format; return the images and labels by part."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for prefix, part, count in (("train", "train", num_train), ("t10k", "test", num_test)):
        images, labels = images_and_labels(count)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name, content = f"{prefix}-{kind}-ubyte", idx_bytes(array)
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
        written[part] = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long()
    return written


def _python2_bytes(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text  # BINSTRING, as Python 2 wrote every str


def python2_batch(pixels: np.ndarray, entries: dict[bytes, list[int]]) -> bytes:
    """Return a batch as Python 2.7 and its NumPy pickled it in 2009: protocol 2, byte strings, a pickled ndarray."""
    dtype = b"cnumpy\ndtype\n" + _python2_bytes(b"u1") + b"K\x00K\x01\x87R(K\x03" + _python2_bytes(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(b"J" + struct.pack("<i", size) for size in pixels.shape) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _python2_bytes(b"b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + _python2_bytes(pixels.tobytes()) + b"tb"
    content = b"\x80\x02}(" + _python2_bytes(b"data") + array
    for key, labels in entries.items():
        content += _python2_bytes(key) + b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"
    return content + b"u."


def python3_batch(pixels: np.ndarray, entries: dict[bytes, list[int]]) -> bytes:
    """Return a batch as today's Python and NumPy pickle it in protocol 2."""
    return pickle.dumps({b"data": pixels, **entries}, protocol=2)


def write_cifar10(folder: Path, *, per_file: int = 20) -> dict[str, tuple[Tensor, Tensor]]:
    """Write the six files of CIFAR-10; return the images and labels by part."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{number}" for number in range(1, 6)]
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "test": []}
    for number, name in enumerate([*names, "test_batch"]):
        pixels, labels = images_and_labels(per_file + number, shape=(3072,))
        (folder / name).write_bytes(python2_batch(pixels, {b"labels": labels.tolist()}))
        batch = torch.from_numpy(pixels).view(-1, 3, 32, 32), torch.from_numpy(labels).long()
        parts["test" if name == "test_batch" else "train"].append(batch)
    return {
        part: tuple(torch.cat(tensors) for tensors in zip(*batches, strict=True)) for part, batches in parts.items()
    }


def write_cifar100(folder: Path, *, num_train: int = 200, num_test: int = 100) -> None:
    """Write the two files of CIFAR-100."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", num_train), ("test", num_test)):
        pixels, labels = images_and_labels(count, num_classes=100, shape=(3072,))
        fine = labels.tolist()
        entries = {b"fine_labels": fine, b"coarse_labels": [label // 5 for label in fine]}
        (folder / name).write_bytes(python2_batch(pixels, entries))
