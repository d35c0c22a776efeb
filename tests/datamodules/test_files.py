import functools
import http.server
import os
import re
import shutil
import socket
import tarfile
import threading
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.utils import calculate_md5

from mlprank.datamodules import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule
from mlprank.datamodules.files import DATA_DIR_VARIABLE, FileSet, resolve_data_dir
from tests.datamodules.writers import write_cifar10, write_mnist


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
