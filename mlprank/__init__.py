"""Rank the neurons of a network by weighted PageRank, and take the least central ones out for real.

The names below and the subpackages are imported when they are first used, so that `import mlprank` costs nothing.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlprank.artifact.pruned import from_pretrained as from_pretrained
    from mlprank.artifact.pruned import load_pruned as load_pruned
    from mlprank.artifact.pruned import save_pruned as save_pruned
    from mlprank.pruning.pipeline import Pruning as Pruning
    from mlprank.pruning.pipeline import prune as prune
    from mlprank.pruning.pipeline import score as score
    from mlprank.pruning.recipe import Recipe as Recipe
    from mlprank.pruning.result import PruningResult as PruningResult
    from mlprank.pruning.shrink import shrink as shrink
    from mlprank.thesis import prune_mlp as prune_mlp

__version__ = "0.1.0"

_HOMES = {
    "Pruning": "mlprank.pruning.pipeline",
    "PruningResult": "mlprank.pruning.result",
    "Recipe": "mlprank.pruning.recipe",
    "from_pretrained": "mlprank.artifact.pruned",
    "load_pruned": "mlprank.artifact.pruned",
    "prune": "mlprank.pruning.pipeline",
    "prune_mlp": "mlprank.thesis",
    "save_pruned": "mlprank.artifact.pruned",
    "score": "mlprank.pruning.pipeline",
    "shrink": "mlprank.pruning.shrink",
}
_SUBPACKAGES = frozenset(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"mlprank.{name}")
    raise AttributeError(f"module 'mlprank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})
