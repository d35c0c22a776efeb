"""Image sets as Lightning data modules: in memory as one uint8 tensor, in batches by index.

Names are imported when they are first used: Lightning, which they need, takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlprank.datamodules.images import ImageDataModule as ImageDataModule
    from mlprank.datamodules.sets import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if not name.endswith(("DataModule", "_dataset", "DATASETS")):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("mlprank.datamodules.sets"), name)
