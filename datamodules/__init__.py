"""Image sets as Lightning data modules: in memory as one uint8 tensor, in batches by index."""

from mlprank.datamodules.cifar10 import CIFAR10DataModule
from mlprank.datamodules.cifar100 import CIFAR100DataModule
from mlprank.datamodules.digits import DigitsDataModule
from mlprank.datamodules.fashion_mnist import FashionMNISTDataModule
from mlprank.datamodules.images import ImageDataModule
from mlprank.datamodules.mnist import MNISTDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "MNISTDataModule",
]
