"""CIFAR-100: 60,000 colour photographs of 100 kinds of things, 32 x 32 pixels."""

from pathlib import Path
from typing import ClassVar

from mlprank.datamodules.cifar10 import CIFAR10DataModule
from mlprank.datamodules.files import FileSet


def download_cifar100(root: Path) -> None:
    """Download CIFAR-100's archive with torchvision's progress bar, check it and unpack it into `root`.

    Args:
        root: Directory to download into.

    Raises:
        OSError: If there is no network.
        RuntimeError: If the archive is not the official one.
    """
    from torchvision.datasets import CIFAR100  # heavy
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(CIFAR100.url, str(root), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5)


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100, its 100 fine classes, normalised per channel: 40,000 training, 10,000 validation, 10,000 test images.

    The Python version's files are looked for in `<data_dir>/cifar-100-python` and `<data_dir>`; where neither has both,
    torchvision downloads them.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    num_classes: ClassVar[int] = 100
    # Per channel over all pixels, scaled to [0, 1], of the 50,000 official training images; the values in common use.
    mean: ClassVar[tuple[float, ...] | None] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...] | None] = (0.2673, 0.2564, 0.2762)
    label_key: ClassVar[str] = "fine_labels"
    train_files: ClassVar[tuple[str, ...]] = ("train",)
    test_file: ClassVar[str] = "test"
    file_set: ClassVar[FileSet] = FileSet(
        name="CIFAR100",
        files=("train", "test"),
        folders=("cifar-100-python", ""),
        download=download_cifar100,
        remedy="run once with a network",
    )
