"""Lightning callbacks: when to prune. What to prune, and how, is `mlprank`'s."""

from mlprank.callbacks.pruning import PruningCallback
from mlprank.callbacks.schedule import Cubic, Linear, Schedule, register_schedule

__all__ = ["Cubic", "Linear", "PruningCallback", "Schedule", "register_schedule"]
