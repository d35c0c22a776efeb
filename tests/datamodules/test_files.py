import builtins
import functools
import gzip
import http.server
import io
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import threading
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.utils import calculate_md5

from mlprank.datamodules import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule
from mlprank.datamodules.files import (
    DATA_DIR_VARIABLE,
    FileSet,
    read_cifar_batch,
    read_idx,
    read_idx_pair,
    resolve_data_dir,
)
from tests.datamodules.writers import (
    idx_bytes,
    images_and_labels,
    python2_batch,
    python3_batch,
    write_cifar10,
    write_mnist,
)


def unreachable(root: Path) -> None:
    raise urllib.error.URLError("no network")


def pieces(download=unreachable, **changes) -> FileSet:
    return FileSet(name="Pieces", files=("one", "two"), folders=("pieces", ""), download=download, **changes)


def test_the_argument_wins_over_the_variable_and_the_variable_over_the_cache(monkeypatch):
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert resolve_data_dir(None) == Path.home() / ".cache" / "mlprank"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert resolve_data_dir(None) == Path("/elsewhere/mlprank")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "/from/variable")
    assert resolve_data_dir(None) == Path("/from/variable")
    assert resolve_data_dir("~/mine") == Path.home() / "mine"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "raw", "."])
def test_idx_files_are_found_in_every_usual_place(tmp_path, folder, compress):
    written = write_mnist(tmp_path / folder, compress=compress)
    images, labels, _ = MNISTDataModule(data_dir=str(tmp_path), download=False).read("train")
    assert torch.equal(images, written["train"][0])
    assert torch.equal(labels, written["train"][1])


def test_the_variable_says_where_files_are(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    datamodule = MNISTDataModule(batch_size=8)
    assert len(datamodule.test_dataloader()) == 3


def test_files_that_are_there_are_never_downloaded(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).touch()
    pieces().ensure(tmp_path)
    assert pieces().locate(tmp_path) == {"one": tmp_path / "one", "two": tmp_path / "two"}


def test_an_incomplete_folder_does_not_count(tmp_path):
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "one").touch()
    (tmp_path / "two").touch()
    assert pieces().find(tmp_path) is None


def test_system_folders_come_last(tmp_path):
    for folder in ("system", "data"):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            (tmp_path / folder / name).touch()
    files = pieces(system_folders=(tmp_path / "system",))
    assert files.locate(tmp_path / "data")["one"] == tmp_path / "data" / "one"
    assert files.locate(tmp_path / "nowhere")["one"] == tmp_path / "system" / "one"


def test_without_network_and_files_one_error_names_the_directory_the_files_and_the_ways_out(tmp_path, monkeypatch):
    offline = replace(FashionMNISTDataModule.file_set, download=unreachable, system_folders=())
    monkeypatch.setattr(FashionMNISTDataModule, "file_set", offline)
    with pytest.raises(FileNotFoundError) as caught:
        FashionMNISTDataModule(data_dir=str(tmp_path)).prepare_data()
    message = str(caught.value)
    for part in (
        f"FashionMNIST is not in {tmp_path}",
        "the download failed: <urlopen error no network>",
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
        "may end in .gz",
        str(tmp_path / "FashionMNIST" / "raw"),
        "data_dir",
        DATA_DIR_VARIABLE,
        "apt-get install dataset-fashion-mnist",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_downloading_can_be_forbidden(tmp_path):
    datamodule = MNISTDataModule(data_dir=str(tmp_path), download=False)
    datamodule.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"MNIST is not in .* and nothing was downloaded"):
        datamodule.setup("fit")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        pieces().ensure(tmp_path / "data")


def test_a_data_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(FileNotFoundError, match=rf"Pieces is not in {re.escape(str(tmp_path))}/data .*File exists"):
        pieces().ensure(tmp_path / "data")


def test_an_interrupted_download_leaves_no_file(tmp_path):
    def interrupted(root: Path) -> None:
        (root / "pieces").mkdir()
        (root / "pieces" / "one").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pieces(interrupted).ensure(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_connection_times_out_and_the_default_is_restored(tmp_path):
    seen = []

    def look(root: Path) -> None:
        seen.append(socket.getdefaulttimeout())
        raise RuntimeError("stop")

    with pytest.raises(FileNotFoundError, match="stop"):
        pieces(look).ensure(tmp_path)
    assert seen == [30.0]
    assert socket.getdefaulttimeout() is None


@pytest.fixture
def serve():
    """Serve a directory over HTTP on this machine; return its address."""
    servers = []

    def start(directory: Path) -> str:
        handler = functools.partial(QuietHandler, directory=str(directory))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments) -> None:
        """Keep the tests' output clean."""


def test_mnist_is_downloaded_by_torchvision_and_checked(tmp_path, monkeypatch, serve):
    mirror = tmp_path / "mirror"
    written = write_mnist(mirror, compress=True)
    monkeypatch.setattr(MNIST, "mirrors", [serve(mirror)])
    monkeypatch.setattr(MNIST, "resources", [(path.name, calculate_md5(path)) for path in sorted(mirror.iterdir())])
    datamodule = MNISTDataModule(data_dir=str(tmp_path / "data"))
    datamodule.prepare_data()
    assert torch.equal(datamodule.read("test")[0], written["test"][0])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["MNIST"]
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(b"another file")
    with pytest.raises(FileNotFoundError, match="the download failed"):
        MNISTDataModule(data_dir=str(tmp_path / "again")).prepare_data()


def test_cifar_is_downloaded_and_checked_before_anything_is_read(tmp_path, monkeypatch, serve):
    written = write_cifar10(tmp_path / "cifar-10-batches-py")
    archive = tmp_path / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", arcname="cifar-10-batches-py")
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", serve(tmp_path) + archive.name)
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in .* download failed: File not found or corrupted"):
        CIFAR10DataModule(data_dir=str(tmp_path / "data")).prepare_data()
    monkeypatch.setattr(CIFAR10, "tgz_md5", calculate_md5(archive))
    datamodule = CIFAR10DataModule(data_dir=str(tmp_path / "data"))
    datamodule.prepare_data()
    assert torch.equal(datamodule.read("train")[0], written["train"][0])


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


PIXELS, CLASSES = images_and_labels(30, shape=(3072,))
ENTRIES = {b"labels": CLASSES.tolist()}


def read(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    return read_cifar_batch(path, label_key="labels", num_classes=10)


@pytest.mark.parametrize("write", [python2_batch, python3_batch])
def test_a_batch_is_read_as_written(tmp_path, write):
    images, labels = read(tmp_path, write(PIXELS, ENTRIES))
    assert torch.equal(images, torch.from_numpy(PIXELS).view(-1, 3, 32, 32))
    assert images.dtype == torch.uint8
    assert torch.equal(labels, torch.from_numpy(CLASSES).long())


def test_the_python_2_writer_of_these_tests_writes_what_pickle_reads():
    batch = pickle.load(io.BytesIO(python2_batch(PIXELS, ENTRIES)), encoding="bytes")
    assert np.array_equal(batch[b"data"], PIXELS)
    assert batch[b"labels"] == CLASSES.tolist()


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, builtins.exec, builtins.eval])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, function):
    victim = tmp_path / "victim"
    argument = {
        os.mkdir: str(victim),
        os.system: f"mkdir {victim}",
        builtins.exec: f"import os; os.mkdir({str(victim)!r})",
        builtins.eval: f"__import__('os').mkdir({str(victim)!r})",
    }[function]
    content = pickle.dumps({b"data": Hostile(function, argument), **ENTRIES}, protocol=2)
    with pytest.raises(
        ValueError, match=rf"data_batch_1: is not a whole CIFAR batch file \(it asks for .*{function.__name__}"
    ):
        read(tmp_path, content)
    assert not victim.exists()


@pytest.mark.parametrize(
    "state",
    [
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",  # another codec
        b"c_codecs\nencode\nN}X\x08\x00\x00\x00__call__Ns\x86b.",  # state for a stand-in
        b"cnumpy\ndtype\n}b.",
        b"cnumpy.core.multiarray\n_reconstruct\n)b.",
        b"cnumpy\nndarray\nK\x01\x85R.",  # only _reconstruct makes arrays
    ],
)
def test_stand_ins_cannot_be_misused(tmp_path, state):
    with pytest.raises(ValueError, match="data_batch_1: is not a whole CIFAR batch file"):
        read(tmp_path, b"\x80\x02" + state)


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.int64), PIXELS.astype("S1"), np.asfortranarray(PIXELS)])
def test_arrays_of_anything_but_bytes_in_c_order_are_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match=r'data_batch_1: its entry "data" is not .*unsigned bytes.* in C order'):
        read(tmp_path, python3_batch(pixels, ENTRIES))


def test_an_array_of_objects_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'data_batch_1: its entry "data" is not .*unsigned bytes.* in C order'):
        read(tmp_path, python3_batch(np.array([[1, "a"]], dtype=object), ENTRIES))


def test_an_array_that_lies_about_its_size_is_refused(tmp_path):
    content = python2_batch(PIXELS, ENTRIES).replace(b"J\x1e\x00\x00\x00J\x00\x0c", b"J\x1f\x00\x00\x00J\x00\x0c", 1)
    with pytest.raises(ValueError, match=r'data_batch_1: its entry "data" is not whole'):
        read(tmp_path, content)


@pytest.mark.parametrize("kept", [0, 1, 40, 5000, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/data_batch_1: is not a whole CIFAR batch file"):
        read(tmp_path, python2_batch(PIXELS, ENTRIES)[:kept])


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_give_an_error_that_names_the_file_or_a_whole_set(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(python2_batch(PIXELS[:1], {b"labels": [3]}))
    for position in (*rng.integers(0, 200, 3), *rng.integers(len(content) - 30, len(content), 1)):
        content[position] = rng.integers(0, 256)
    outcome = ""
    try:
        images, labels = read(tmp_path, bytes(content))
    except ValueError as error:
        outcome = str(error)
    assert "data_batch_1" in outcome or (images.shape == (1, 3, 32, 32) and 0 <= int(labels) < 10)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({b"labels": CLASSES.tolist()[:-1]}, "holds 30 images and 29 labels"),
        ({b"labels": [*CLASSES.tolist()[:-1], 10]}, r"label 10 of image 29 is outside \[0, 10\)"),
        ({b"labels": [-1, *CLASSES.tolist()[1:]]}, r"label -1 of image 0 is outside"),
        ({b"fine_labels": CLASSES.tolist()}, 'has no list of integers "labels".*another data set'),
    ],
)
def test_wrong_labels_are_refused(tmp_path, entries, complaint):
    with pytest.raises(ValueError, match=f"data_batch_1: {complaint}"):
        read(tmp_path, python2_batch(PIXELS, entries))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], 'its entry "data" is not'),
        ({b"labels": [1]}, 'its entry "data" is not'),
        ({b"data": PIXELS[:, :100], **ENTRIES}, r'"data" is not .* of shape \(n, 3072\)'),
        ({b"data": PIXELS[:1], b"labels": ["3"]}, "has no list of integers"),
        ({b"data": PIXELS[:1], b"labels": [2**100]}, "is outside"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, complaint):
    with pytest.raises(ValueError, match=f"data_batch_1: .*{complaint}"):
        read(tmp_path, pickle.dumps(content, protocol=2))


def test_a_file_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data_batch_1: holds no images"):
        read(tmp_path, python2_batch(PIXELS[:0], {b"labels": []}))
