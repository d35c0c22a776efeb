"""A warm-up before any other learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LinearLR, LRScheduler, SequentialLR

from mlprank.models.optim import build_scheduler


class WarmUp(SequentialLR):
    """Starts with a small learning rate for some epochs, then hands over to another schedule, which starts there.

    Args:
        optimizer: The optimizer.
        after: The schedule after the warm-up, e.g. `partial(StepLR, step_size=30)`.
        epochs: How many epochs the warm-up takes, at least 1.
        method: "linear" rises from `start_factor` to 1; "constant" stays at `start_factor`.
        start_factor: The first learning rate as a share of the full one, in (0, 1].

    Raises:
        ValueError: If an argument is out of range or `after` does not fit the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        after: Callable[[Optimizer], LRScheduler],
        epochs: int = 5,
        method: Literal["linear", "constant"] = "linear",
        start_factor: float = 0.01,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be at least 1: it is the length of the warm-up")
        if not 0.0 < start_factor <= 1.0:
            raise ValueError(f"start_factor={start_factor} must lie in (0, 1]: it scales the learning rate")
        if method not in ("linear", "constant"):
            raise ValueError(f"method={method!r} must be 'linear' or 'constant'")
        warm_up = (
            LinearLR(optimizer, start_factor=start_factor, total_iters=epochs)
            if method == "linear"
            else ConstantLR(optimizer, factor=start_factor, total_iters=epochs)
        )
        super().__init__(optimizer, [warm_up, build_scheduler(after, optimizer)], milestones=[epochs])
