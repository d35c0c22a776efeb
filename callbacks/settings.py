"""What a PruningCallback was asked to do, and what it cannot be used beside."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.strategies import Strategy

from mlprank.callbacks.data import ToInputs
from mlprank.callbacks.run import is_lightning
from mlprank.pruning.budgets import Budgets
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.selection import check_amount

Amount = float | Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """The choices that every pruning of a callback shares.

    Attributes:
        amounts: The amounts; one network comes out for each.
        recipe: All other choices of a pruning.
        network: Name of the submodule to prune; None finds it out.
        apply: "mask", "remove" or "none".
        inputs: Makes the network's inputs of a batch; None for what it gets in training.
        max_drop: Percentage points of validation accuracy that may be lost; the amount is then found out.

    Raises:
        ValueError: If one is out of range.
    """

    amounts: tuple[Amount, ...]
    recipe: Recipe
    network: str | None
    apply: str
    inputs: ToInputs | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.amounts:
            raise ValueError("amount=[] holds no amount; give at least one, such as 0.5")
        for amount in self.amounts:
            check_amount(amount)
        if self.apply not in ("mask", "remove", "none"):
            raise ValueError(f'apply="{self.apply}" is unknown; choose "mask", "remove" or "none"')
        if self.max_drop is not None:
            Budgets(max_drop=self.max_drop)
            if self.amounts != (Recipe().amount,):
                raise ValueError(
                    f"amount={self.amounts[0] if len(self.amounts) == 1 else list(self.amounts)} and max_drop={self.max_drop}"
                    " contradict each other: max_drop finds the amount; give one of them"
                )

    @property
    def num_samples(self) -> int:
        """Number of calibration samples, over all processes."""
        return self.recipe.num_samples or sys.maxsize

    @property
    def changed(self) -> dict[str, Any]:
        """The recipe's fields that are not the defaults."""
        usual = Recipe()
        named = {each.name: getattr(self.recipe, each.name) for each in fields(Recipe)}
        return {name: value for name, value in named.items() if value != getattr(usual, name)}

    def plain(self) -> dict[str, Any]:
        """Return what a resumed run must share, as plain types."""
        amounts = [dict(each) if isinstance(each, Mapping) else float(each) for each in self.amounts]
        amount = amounts[0] if len(amounts) == 1 else amounts
        return {
            **self.recipe.plain(),
            "amount": amount,
            **({} if self.max_drop is None else {"max_drop": self.max_drop}),
        }


def check_resumed(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Compare the choices of a resumed run with those in its checkpoint.

    Raises:
        ValueError: If one differs; it is named, with both values.
    """
    for name, value in now.items():
        if name in before and before[name] != value:
            raise ValueError(
                f"PruningCallback({name}={_short(value)}) cannot resume a checkpoint that was written with {name}={_short(before[name])};"
                f" resume with that {name}, or start a new run from the checkpoint's weights"
            )


def _short(value: Any) -> str:
    """A measure or method by its name, with its parameters."""
    if isinstance(value, Mapping) and "name" in value:
        parameters = ", ".join(f"{key}={own}" for key, own in value.items() if key != "name")
        return f"{value['name']}({parameters})" if parameters else str(value["name"])
    return str(value)


def check_alone(callback: Callback, callbacks: Sequence[Callback]) -> None:
    """Raise a ValueError if another callback prunes the same network."""
    if any(isinstance(other, type(callback)) and other is not callback for other in callbacks):
        raise ValueError(
            "the trainer has two PruningCallbacks, and each would prune what the other has left, so that neither amount"
            " came out; use one, with a list for several networks (amount=[0.3, 0.5]) or a mapping for several layers"
            " (amount={'fc1': 0.3, 'fc2': 0.5})"
        )
    if any(is_lightning(other, "ModelPruning") for other in callbacks):
        raise ValueError(
            "the trainer has a PruningCallback and Lightning's ModelPruning, which mask the same weights; use one of them"
        )


def refused_strategy(strategy: Strategy) -> str | None:
    """Say why pruning cannot go along with a strategy, and what to do; None where it can."""
    name = type(strategy).__name__
    if is_lightning(strategy, "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"):
        return (
            f"strategy: {name} splits the weights over processes, and ranking neurons needs whole layers; train without"
            " the PruningCallback and prune the checkpoint (mlprank prune --ckpt_path ..., or mlprank.prune), or use"
            ' strategy="ddp"'
        )
    if is_lightning(strategy.launcher, "_MultiProcessingLauncher"):
        return (
            f"strategy: {name} trains in processes of its own, which end with fit and take with them what the"
            ' PruningCallback has measured and written down; in a script use strategy="ddp", in a notebook one device'
            " (devices=1), or train without the callback and call mlprank.prune(module, data) afterwards"
        )
    return None
