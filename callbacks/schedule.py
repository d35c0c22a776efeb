"""How much is pruned after how many epochs, when pruning is spread over training.

Someone else's schedule is any object with a method `share(progress)`; it is given as it is, by a dotted path, or by a
name that `register_schedule` knows. Epochs that it does not have as attributes are worked out as for `Linear`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from mlprank.utils.errors import check_amount, check_whole
from mlprank.utils.registry import Registry

Amount = float | Mapping[str, float]
EPOCHS = ("start_epoch", "end_epoch", "initial", "every")
"""The fields of a schedule that say when it prunes, apart from how much."""


@runtime_checkable
class Schedule(Protocol):
    """What is needed of a schedule: how far it is on its way."""

    def share(self, progress: float) -> float:
        """Return the share of the way to the target, in [0, 1], after a share of its epochs, in [0, 1]."""


@dataclass(frozen=True)
class Steps(ABC):
    """From one amount to another over some epochs, which are counted from 0.

    `end_epoch` is by default the last one that leaves `finetune_epochs` for fine-tuning (a quarter of training where
    that is not given), and `start_epoch` a third of the way to it.
    """

    start_epoch: int | None = None  # the first epoch that starts with a pruning
    end_epoch: int | None = None  # the epoch that starts with the last pruning, which reaches the target
    initial: float = 0.0  # the amount at `start_epoch`, in [0, 1)
    every: int = 1  # prune once in so many epochs

    def __post_init__(self) -> None:
        epochs = {"start_epoch": self.start_epoch, "end_epoch": self.end_epoch}
        check_whole("schedule: ", least=0, **{name: epoch for name, epoch in epochs.items() if epoch is not None})
        check_whole("schedule: ", every=self.every)
        check_amount(self.initial, "schedule: initial")
        if self.start_epoch is not None and self.end_epoch is not None and self.end_epoch < self.start_epoch:
            raise ValueError(
                f"schedule: it ends at end_epoch={self.end_epoch} before it starts at start_epoch={self.start_epoch}; "
                "swap them"
            )

    @abstractmethod
    def share(self, progress: float) -> float:
        """Return the share of the way to the target, in [0, 1], after a share of the epochs."""

    def at(self, epoch: int, target: Amount) -> Amount | None:
        """Return the absolute amount that an epoch (from 0) starts with, or None where that epoch prunes nothing.

        It is of all neurons and not of those that are left, and shaped as the `target`, the amount at the end.

        Examples:
            >>> [Linear(0, 2).at(epoch, 0.5) for epoch in range(4)]
            [0.0, 0.25, 0.5, None]
        """
        start, end = self.start_epoch, self.end_epoch
        assert start is not None and end is not None  # noqa: PT018
        if not start <= epoch <= end or (epoch != end and (epoch - start) % self.every):
            return None
        if epoch == end:
            return target
        progress = (epoch - start) / (end - start)
        share = float(self.share(progress))
        if not 0.0 <= share <= 1.0 or math.isnan(share):
            raise ValueError(f"schedule: {self.plain()['name']}.share({progress:g}) is {share}; it must be in [0, 1]")
        if isinstance(target, Mapping):
            return {name: self.initial + (amount - self.initial) * share for name, amount in target.items()}
        return self.initial + (target - self.initial) * share

    def plain(self) -> dict[str, Any]:
        """Return name, parameters and epochs as plain types."""
        epochs = {name: getattr(self, name) for name in EPOCHS}
        return {**SCHEDULES.describe(getattr(self, "curve", self)), **epochs}


@dataclass(frozen=True)
class Linear(Steps):
    """The amount grows by the same number of neurons every time.

    Examples:
        >>> Linear(start_epoch=1, end_epoch=5).share(0.25)
        0.25
    """

    def share(self, progress: float) -> float:
        """Return the progress itself."""
        return progress


@dataclass(frozen=True)
class Cubic(Steps):
    """The amount grows fast at first and slowly at the end, `1 - (1 - progress)^3`.

    Source:
        Zhu and Gupta 2017, arXiv:1710.01878.

    Examples:
        >>> Cubic(start_epoch=1, end_epoch=5).share(0.5)
        0.875
    """

    def share(self, progress: float) -> float:
        """Return `1 - (1 - progress)^3`."""
        return 1.0 - (1.0 - progress) ** 3


@dataclass(frozen=True)
class Foreign(Steps):
    """Someone else's schedule, with epochs."""

    curve: Schedule = field(default_factory=Linear, kw_only=True)

    def share(self, progress: float) -> float:
        """Return what it says."""
        return self.curve.share(progress)


SCHEDULES: Registry[Schedule] = Registry("schedule", Schedule, {"linear": Linear, "cubic": Cubic})

register_schedule = SCHEDULES.register
"""Make a schedule known by a name, for Python, YAML and the command line; see `Registry.register`."""


def get_schedule(schedule: Mapping[str, Any] | str | Schedule | None, *, finetune_epochs: int | None) -> Steps | None:
    """Return the schedule that the callback's arguments ask for, with epochs still open; None to prune once.

    Examples:
        >>> get_schedule({"name": "cubic", "every": 2}, finetune_epochs=None)
        Cubic(start_epoch=None, end_epoch=None, initial=0.0, every=2)
    """
    check_whole(least=0, finetune_epochs=0 if finetune_epochs is None else finetune_epochs)
    if schedule is None:
        return None
    found = SCHEDULES.find(schedule)
    if isinstance(found, Steps):
        return found
    return Foreign(**{name: getattr(found, name, getattr(Linear, name)) for name in EPOCHS}, curve=found)


def resolve_schedule(schedule: Steps | None, *, finetune_epochs: int | None, max_epochs: int | None) -> Steps | None:
    """Fill in the epochs that a schedule leaves open; None for one pruning, `finetune_epochs` before the end.

    Returned is None if nothing is pruned before the end of training; a ValueError names epochs that do not fit into it.
    """
    if schedule is None and not finetune_epochs:
        return None
    last = max_epochs if max_epochs is not None and max_epochs >= 0 else None
    given = Linear() if schedule is None else schedule
    end, tuned = given.end_epoch, finetune_epochs
    if last is None:
        if tuned is not None or end is None:
            raise ValueError(
                "schedule: without Trainer(max_epochs=...) its epochs cannot be derived; give max_epochs, or "
                "start_epoch and end_epoch and no finetune_epochs"
            )
    elif tuned is not None and tuned > last:
        raise ValueError(f"finetune_epochs={tuned} is more than Trainer(max_epochs={last}); lower it or train longer")
    elif end is None:
        end = max(0, last - max(1, last // 4 if tuned is None else tuned))
    elif tuned is not None and end + tuned != last:
        raise ValueError(
            f"schedule: end_epoch={end} and finetune_epochs={tuned} do not add up to Trainer(max_epochs={last}); give "
            "one of the two"
        )
    if last is not None and end >= last > 0:
        raise ValueError(
            f"schedule: end_epoch={end} is never reached by Trainer(max_epochs={last}); at most {last - 1} is"
        )
    start = end if schedule is None else end // 3 if given.start_epoch is None else given.start_epoch
    return replace(given, start_epoch=start, end_epoch=end)
