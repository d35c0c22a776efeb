"""Image sets as Lightning data modules: in memory as one uint8 tensor, in batches by index.

Names are imported when they are first used: Lightning, which they need, takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mlprank.datamodules.sets"), name)
