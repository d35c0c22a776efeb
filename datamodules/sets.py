"""The image sets: scikit-learn's digits, MNIST, FashionMNIST, CIFAR-10 and CIFAR-100, and the look-up of a set by name."""

from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mlprank.datamodules.batches import generator
from mlprank.datamodules.files import FileSet
from mlprank.datamodules.formats import read_cifar_batch, read_idx_pair
from mlprank.datamodules.images import ImageDataModule
from mlprank.utils.registry import Registry

TEST_FRACTION = 0.2
_TEST_SEED = 0  # the set has no official test images: these 359 are set apart for every seed of the user's
_LEVELS = 16


class DigitsDataModule(ImageDataModule):
    """Scikit-learn's bundled 8 x 8 digits with pixels in [0, 1]: 1,150 training, 288 validation and 359 test images.

    The default data set: it needs no file and no network. `data_dir` and `download` have nothing to do here.

    Source:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.
    """

    num_classes: ClassVar[int] = 10
    in_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Return the training or the test images.

        Args:
            part: `train` or `test`.

        Returns:
            Images, shape (N, 1, 8, 8), uint8, their 17 grey levels stretched to 256; labels, shape (N,), int64; their
            place.
        """
        import sklearn.datasets  # takes a second to import

        bunch = sklearn.datasets.load_digits()
        images = torch.from_numpy(bunch.images).mul(255 / _LEVELS).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        order = torch.randperm(len(labels), generator=generator(_TEST_SEED, "digits test set"))
        num_test = round(TEST_FRACTION * len(labels))
        rows = order[:num_test] if part == "test" else order[num_test:]
        return images[rows], labels[rows], Path(sklearn.datasets.__file__)


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


DATASETS = Registry(
    "data set",
    LightningDataModule,
    {
        cls.__name__.removesuffix("DataModule"): cls
        for cls in (
            DigitsDataModule,
            MNISTDataModule,
            FashionMNISTDataModule,
            CIFAR10DataModule,
            CIFAR100DataModule,
        )
    },
)
"""The data modules by the name of their set; `register_dataset` adds one."""


def register_dataset(name: str, cls: type[LightningDataModule]) -> None:
    """Make a data module known by the name of its set wherever a set is named: in `prune_mlp`, configs, experiments.

    Args:
        name: Not yet taken.
        cls: A class of data modules, called with `batch_size` and `data_dir`; best a subclass of `ImageDataModule`.

    Raises:
        TypeError: If `cls` is not a class of data modules.
        ValueError: If the name is taken or empty.

    Examples:
        >>> from mlprank.datamodules import DATASETS, DigitsDataModule, get_dataset, register_dataset
        >>> class Mine(DigitsDataModule): ...
        >>> register_dataset("Mine", Mine)
        >>> get_dataset("Mine") is Mine
        True
        >>> del DATASETS["Mine"]
    """
    if not (isinstance(cls, type) and issubclass(cls, LightningDataModule)):
        raise TypeError(f'data set "{name}": {cls!r} is not a subclass of LightningDataModule')
    DATASETS.register(name, cls)


def get_dataset(name: str) -> type[LightningDataModule]:
    """Return the data module of a set, by its name or a dotted path.

    Args:
        name: Such as "CIFAR10" or "my_package.data.Mine".

    Raises:
        ValueError: If there is none; the message lists all and the nearest.
        TypeError: If the path leads to something else.
    """
    found = DATASETS.find_class(name)
    if not issubclass(found, LightningDataModule):
        raise TypeError(f"data set {name!r} is not a subclass of LightningDataModule")
    return found
