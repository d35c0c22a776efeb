import gzip
import re
import struct

import numpy as np
import pytest
import torch

from mlprank.datamodules.idx_files import read_idx, read_idx_pair
from tests.datamodules.writers import idx_bytes, images_and_labels

IMAGES = idx_bytes(images_and_labels(5)[0])
LABELS = idx_bytes(images_and_labels(5)[1])


@pytest.fixture
def pair(tmp_path):
    def write(images=IMAGES, labels=LABELS):
        paths = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
        for path, content in zip(paths, (images, labels), strict=True):
            path.write_bytes(content)
        return paths

    return write


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_is_read_as_written(tmp_path, suffix):
    images = images_and_labels(300)[0]
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(images)) if suffix else idx_bytes(images))
    assert torch.equal(read_idx(path, item_shape=(28, 28)), torch.from_numpy(images))


def test_a_pair_has_a_channel_and_integer_labels(pair):
    images, labels = read_idx_pair(*pair(), in_shape=(1, 28, 28), num_classes=10)
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "starts with the bytes ''"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "starts with the bytes '89504e47'"),
        (LABELS, "starts with the bytes '00000801'.*'00000803'"),
        (IMAGES[:10], "ends within its header"),
        (IMAGES[:-1], r"announces 5 items in 3920 bytes and the file holds only 3919.*truncated"),
        (IMAGES[:100], "truncated or damaged: delete it and get it again"),
        (IMAGES + b"x", "holds more than 3920"),
        (IMAGES[:4] + struct.pack(">3I", 6, 28, 28) + IMAGES[16:], "announces 6 items"),
        (IMAGES[:4] + struct.pack(">3I", 0, 28, 28), "announces 0 items"),
        (IMAGES[:4] + struct.pack(">3I", 2**32 - 1, 28, 28) + IMAGES[16:], r"announces 4294967295 items, outside"),
        (idx_bytes(np.zeros((5, 8, 8), np.uint8)), r"shape \(8, 8\), not \(28, 28\)"),
    ],
)
def test_a_damaged_file_of_images_is_named_and_never_half_read(pair, content, complaint):
    images, labels = pair(images=content)
    with pytest.raises(ValueError, match=f"{re.escape(str(images))}.*{complaint}"):
        read_idx_pair(images, labels, in_shape=(1, 28, 28), num_classes=10)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "not gzip", "checksum"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    whole = gzip.compress(IMAGES)
    content = {
        "truncated": whole[: len(whole) // 2],
        "corrupted": whole[:50] + bytes(200) + whole[250:],
        "not gzip": IMAGES,
        "checksum": whole[:-8] + bytes(8),
    }[damage]
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: is not a whole gzip file.*get it again"):
        read_idx(path, item_shape=(28, 28))


def test_images_and_labels_of_different_number_are_refused(pair):
    images, labels = pair(labels=idx_bytes(images_and_labels(4)[1]))
    with pytest.raises(ValueError, match=r"holds 5 images and .*labels-idx1-ubyte 4 labels"):
        read_idx_pair(images, labels, in_shape=(1, 28, 28), num_classes=10)


def test_a_label_out_of_range_is_refused_with_its_file_and_place(pair):
    images, labels = pair(labels=idx_bytes(np.array([0, 1, 2, 10, 4], np.uint8)))
    with pytest.raises(ValueError, match=rf"{re.escape(str(labels))}: label 10 of image 3 is outside \[0, 10\)"):
        read_idx_pair(images, labels, in_shape=(1, 28, 28), num_classes=10)
