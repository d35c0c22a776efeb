"""CIFAR-10: 60,000 colour photographs of 10 kinds of things, 32 x 32 pixels."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mlprank.datamodules.cifar_files import read_cifar_batch
from mlprank.datamodules.files import FileSet
from mlprank.datamodules.images import ImageDataModule

TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))


def download_cifar10(root: Path) -> None:
    """Download CIFAR-10's archive with torchvision's progress bar, check it and unpack it into `root`.

    Args:
        root: Directory to download into.

    Raises:
        OSError: If there is no network.
        RuntimeError: If the archive is not the official one.
    """
    from torchvision.datasets import CIFAR10  # heavy
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10, normalised per channel: 40,000 training, 10,000 validation and 10,000 test images.

    The Python version's batch files are looked for in `<data_dir>/cifar-10-batches-py` and `<data_dir>`; where neither
    has all six, torchvision downloads them.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    num_classes: ClassVar[int] = 10
    in_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    # Per channel over all pixels, scaled to [0, 1], of the 50,000 official training images; the values in common use.
    mean: ClassVar[tuple[float, ...] | None] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...] | None] = (0.2470, 0.2435, 0.2616)
    label_key: ClassVar[str] = "labels"
    train_files: ClassVar[tuple[str, ...]] = TRAIN_FILES
    test_file: ClassVar[str] = "test_batch"
    file_set: ClassVar[FileSet] = FileSet(
        name="CIFAR10",
        files=(*TRAIN_FILES, "test_batch"),
        folders=("cifar-10-batches-py", ""),
        download=download_cifar10,
        remedy="run once with a network",
    )

    def prepare_data(self) -> None:
        """Download the files unless they are there or `download` is off.

        Raises:
            FileNotFoundError: If the download fails; it names the directory, the files and how to get them.
        """
        if self.download:
            self.file_set.ensure(self.data_dir)

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Read the training or the test images.

        Args:
            part: `train` or `test`.

        Returns:
            Images, shape (N, 3, 32, 32), uint8; labels, shape (N,), int64; the files' directory.

        Raises:
            FileNotFoundError: If the files are not there.
            ValueError: If a file is damaged or asks to run something; it names the file.
        """
        paths = self.file_set.locate(self.data_dir)
        names = self.train_files if part == "train" else (self.test_file,)
        batches = [
            read_cifar_batch(paths[name], label_key=self.label_key, num_classes=self.num_classes) for name in names
        ]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return images, labels, paths[names[0]].parent
