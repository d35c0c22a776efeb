"""MNIST: 70,000 handwritten digits of 28 x 28 pixels."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from mlprank.datamodules.files import FileSet
from mlprank.datamodules.idx_files import read_idx_pair
from mlprank.datamodules.images import ImageDataModule

IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def download_mnist(root: Path) -> None:
    """Download MNIST with torchvision and its progress bar into `root/MNIST/raw`.

    Args:
        root: Directory to download into.

    Raises:
        RuntimeError: If no mirror gives the files, or others than the official ones.
    """
    import torchvision.datasets  # heavy

    torchvision.datasets.MNIST(root, download=True)


class MNISTDataModule(ImageDataModule):
    """MNIST with pixels in [0, 1]: 48,000 training, 12,000 validation and 10,000 test images.

    The idx files, plain or gzipped, are looked for in `<data_dir>/MNIST/raw`, `<data_dir>/MNIST`, `<data_dir>/raw` and
    `<data_dir>`; where none has all four, torchvision downloads them.

    Source:
        LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".
    """

    num_classes: ClassVar[int] = 10
    in_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    file_set: ClassVar[FileSet] = FileSet(
        name="MNIST",
        files=IDX_FILES,
        folders=("MNIST/raw", "MNIST", "raw", ""),
        download=download_mnist,
        suffixes=("", ".gz"),
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
            Images, shape (N, 1, 28, 28), uint8; labels, shape (N,), int64; the file of labels.

        Raises:
            FileNotFoundError: If the files are not there.
            ValueError: If a file is damaged; it names the file.
        """
        paths = self.file_set.locate(self.data_dir)
        prefix = "train" if part == "train" else "t10k"
        labels_path = paths[f"{prefix}-labels-idx1-ubyte"]
        images, labels = read_idx_pair(
            paths[f"{prefix}-images-idx3-ubyte"], labels_path, in_shape=self.in_shape, num_classes=self.num_classes
        )
        return images, labels, labels_path
