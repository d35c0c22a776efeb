"""FashionMNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in MNIST's format."""

from pathlib import Path
from typing import ClassVar

from mlprank.datamodules.files import FileSet
from mlprank.datamodules.mnist import IDX_FILES, MNISTDataModule


def download_fashion_mnist(root: Path) -> None:
    """Download FashionMNIST with torchvision and its progress bar into `root/FashionMNIST/raw`.

    Args:
        root: Directory to download into.

    Raises:
        RuntimeError: If the mirror does not give the files, or others than the official ones.
    """
    import torchvision.datasets  # heavy

    torchvision.datasets.FashionMNIST(root, download=True)


class FashionMNISTDataModule(MNISTDataModule):
    """FashionMNIST with pixels in [0, 1]: 48,000 training, 12,000 validation and 10,000 test images.

    The idx files, plain or gzipped, are looked for in `<data_dir>/FashionMNIST/raw`, `<data_dir>/FashionMNIST`,
    `<data_dir>/raw` and `<data_dir>`, then where Debian's package dataset-fashion-mnist puts them; where none has all
    four, torchvision downloads them.

    Source:
        Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST", arXiv:1708.07747.
    """

    file_set: ClassVar[FileSet] = FileSet(
        name="FashionMNIST",
        files=IDX_FILES,
        folders=("FashionMNIST/raw", "FashionMNIST", "raw", ""),
        download=download_fashion_mnist,
        suffixes=("", ".gz"),
        system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
        remedy="on Debian and Ubuntu `apt-get install dataset-fashion-mnist`, or run once with a network",
    )
