"""Lightning callbacks: when to prune. What to prune, and how, is `mlprank`'s."""

from mlprank.callbacks.pruning import PruningCallback

__all__ = ["PruningCallback"]
