"""Read the idx files of MNIST and FashionMNIST, plain or gzipped: the whole file or an error that names it."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mlprank.datamodules.labels import check_range

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
