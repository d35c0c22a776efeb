"""The image sets: scikit-learn's digits, MNIST, FashionMNIST, CIFAR-10 and CIFAR-100, by name."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mlprank.datamodules.files import FileSet, read_cifar_batch, read_idx_pair
from mlprank.datamodules.images import ImageDataModule, generator
from mlprank.utils.registry import Registry


class DigitsDataModule(ImageDataModule):
    """Scikit-learn's bundled 8 x 8 digits with pixels in [0, 1]: 1,150 training, 288 validation and 359 test images.

    The default data set: it needs no file and no network. `data_dir` and `download` have nothing to do here.

    Source:
        Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.

    Examples:
        >>> data = DigitsDataModule()
        >>> sum(len(images) for images, labels in data.calibration_dataloader(num_samples=100))
        100
    """

    num_classes = 10
    classes = tuple("0123456789")
    in_shape = (1, 8, 8)

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Return the training or the test images, their 17 grey levels stretched to 256; see `ImageDataModule.read`."""
        import sklearn.datasets  # takes a second to import

        bunch = sklearn.datasets.load_digits()
        images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target).to(torch.int64)
        # There are no official test images: a fifth is set apart, the same for every seed of the user's.
        order, num_test = torch.randperm(len(labels), generator=generator(0, "digits test set")), len(labels) // 5
        rows = order[:num_test] if part == "test" else order[num_test:]
        return images[rows], labels[rows], Path(sklearn.datasets.__file__)


def _idx_files(name: str, **options: Any) -> FileSet:
    """Return the files of MNIST or of a set that is laid out as it."""
    parts = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    folders = (f"{name}/raw", name, "raw", "")
    return FileSet(name, tuple(parts), folders, suffixes=("", ".gz"), **options)


class MNISTDataModule(ImageDataModule):
    """MNIST with pixels in [0, 1]: 48,000 training, 12,000 validation and 10,000 test images.

    The idx files, plain or gzipped, are looked for in `<data_dir>/MNIST/raw`, `<data_dir>/MNIST`, `<data_dir>/raw` and
    `<data_dir>`; where none has all four, torchvision downloads them.

    Source:
        LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition".

    Examples:
        >>> MNISTDataModule(batch_size=512).in_shape
        (1, 28, 28)
    """

    num_classes = 10
    classes = tuple("0123456789")
    in_shape = (1, 28, 28)
    file_set: ClassVar[FileSet] = _idx_files("MNIST")

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """See `ImageDataModule.read`."""
        paths = self.file_set.locate(self.data_dir)
        prefix = "train" if part == "train" else "t10k"
        places = paths[f"{prefix}-images-idx3-ubyte"], paths[f"{prefix}-labels-idx1-ubyte"]
        return *read_idx_pair(*places, in_shape=self.in_shape, num_classes=self.num_classes), places[1]


class FashionMNISTDataModule(MNISTDataModule):
    """FashionMNIST with pixels in [0, 1]: 48,000 training, 12,000 validation and 10,000 test images.

    The idx files, plain or gzipped, are looked for in `<data_dir>/FashionMNIST/raw`, `<data_dir>/FashionMNIST`,
    `<data_dir>/raw` and `<data_dir>`, then where Debian's package dataset-fashion-mnist puts them; where none has all
    four, torchvision downloads them.

    Source:
        Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST", arXiv:1708.07747.

    Examples:
        >>> FashionMNISTDataModule(random_flip=0.5).num_classes
        10
    """

    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    file_set = _idx_files(
        "FashionMNIST",
        system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
        remedy="on Debian and Ubuntu `apt-get install dataset-fashion-mnist`, or run once with a network",
    )


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10, normalised per channel: 40,000 training, 10,000 validation and 10,000 test images.

    The Python version's batch files are looked for in `<data_dir>/cifar-10-batches-py` and `<data_dir>`; where neither
    has all six, torchvision downloads them.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Examples:
        >>> CIFAR10DataModule(auto_augment="cifar10").in_shape
        (3, 32, 32)
    """

    num_classes = 10
    classes: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    )
    in_shape = (3, 32, 32)
    # Per channel over all pixels, scaled to [0, 1], of the 50,000 official training images; the values in common use.
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    label_key: ClassVar[str] = "labels"
    file_set: ClassVar[FileSet] = FileSet(
        "CIFAR10", (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"), ("cifar-10-batches-py", "")
    )

    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Read the training images from all files but the last, the test images from that."""
        paths = list(self.file_set.locate(self.data_dir).values())
        batches = [
            read_cifar_batch(path, label_key=self.label_key, num_classes=self.num_classes)
            for path in (paths[:-1] if part == "train" else paths[-1:])
        ]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        return images, labels, paths[0].parent


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100, its 100 fine classes, normalised per channel: 40,000 training, 10,000 validation, 10,000 test images.

    The Python version's files are looked for in `<data_dir>/cifar-100-python` and `<data_dir>`; where neither has both,
    torchvision downloads them.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Examples:
        >>> CIFAR100DataModule(mixup_alpha=0.2).num_classes
        100
    """

    num_classes = 100
    classes = ()
    # Per channel over all pixels, scaled to [0, 1], of the 50,000 official training images; the values in common use.
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    label_key = "fine_labels"
    file_set = FileSet("CIFAR100", ("train", "test"), ("cifar-100-python", ""))


_SETS = (DigitsDataModule, MNISTDataModule, FashionMNISTDataModule, CIFAR10DataModule, CIFAR100DataModule)
DATASETS: Registry[LightningDataModule] = Registry(
    "data set", LightningDataModule, {cls.__name__.removesuffix("DataModule"): cls for cls in _SETS}
)
"""The data modules by the name of their set."""

register_dataset = DATASETS.register
"""Make a data module, called with `batch_size` and `data_dir`, known by a name wherever a data set is named."""

get_dataset = DATASETS.find_class
"""Return the data module of a set by a name such as "CIFAR10" or a dotted path."""
