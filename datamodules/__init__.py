"""Image sets as Lightning data modules: in memory as one uint8 tensor, in batches by index."""

from mlprank.datamodules.images import ImageDataModule
from mlprank.datamodules.sets import (
    DATASETS,
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
    get_dataset,
    register_dataset,
)

__all__ = [
    "DATASETS",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "MNISTDataModule",
    "get_dataset",
    "register_dataset",
]
