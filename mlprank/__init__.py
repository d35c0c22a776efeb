"""Rank the neurons of a network by weighted PageRank, and take the least central ones out for real.

The names below are imported when they are first used, so that `import mlprank` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlprank.artifact.pruned import load_pruned as load_pruned
    from mlprank.pruning.pipeline import prune as prune
    from mlprank.pruning.pipeline import score as score
    from mlprank.pruning.result import PruningResult as PruningResult
    from mlprank.thesis import prune_mlp as prune_mlp

__version__ = "0.1.0"

_HOMES = {
    "PruningResult": "mlprank.pruning.result",
    "load_pruned": "mlprank.artifact.pruned",
    "prune": "mlprank.pruning.pipeline",
    "prune_mlp": "mlprank.thesis",
    "score": "mlprank.pruning.pipeline",
}
__all__ = ["PruningResult", "__version__", "load_pruned", "prune", "prune_mlp", "score"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlprank' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
