"""Lightning callbacks: when to prune. What to prune, and how, is `mlprank`'s."""

from mlprank.callbacks.pruning import PruningCallback
from mlprank.callbacks.schedule import Cubic, Linear

__all__ = ["Cubic", "Linear", "PruningCallback"]
