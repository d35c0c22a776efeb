"""What a PruningCallback cannot be used beside, said before training starts."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy


def check_alone(callback: Callback, callbacks: Sequence[Callback]) -> None:
    """Raise a ValueError if another callback prunes the same network."""
    if any(isinstance(other, type(callback)) and other is not callback for other in callbacks):
        raise ValueError(
            "the trainer has two PruningCallbacks, and each would prune what the other has left, so that neither amount came out; use one,"
            " with a list for several networks (amount=[0.3, 0.5]) or a mapping for several layers (amount={'fc1': 0.3, 'fc2': 0.5})"
        )
    if any(isinstance(other, ModelPruning) for other in callbacks):
        raise ValueError(
            "the trainer has a PruningCallback and Lightning's ModelPruning, which mask the same weights; use one of them"
        )


def check_strategy(strategy: Strategy) -> None:
    """Raise a ValueError if no process holds the whole network."""
    if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"strategy: {type(strategy).__name__} splits the weights over processes, and ranking neurons needs whole layers; train without"
            ' the PruningCallback and prune the checkpoint (mlprank prune --ckpt_path ..., or mlprank.prune), or use strategy="ddp"'
        )
