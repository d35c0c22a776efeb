"""K classifiers trained as one stacked model inside an ordinary Lightning Trainer."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.stack.network import CannotStackError, Stack
from mlprank.tuning.trial import MONITOR


def stacked_cross_entropy(
    scores: Float[Tensor, "K classes B"], targets: Tensor, *, label_smoothing: Float[Tensor, " K"] | None = None
) -> Float[Tensor, " K"]:
    """Return the mean cross-entropy of every trial.

    Args:
        scores: Logits, shape (K, classes, B).
        targets: Class indices, shape (B,) for all or (K, B), or probabilities, shape (B, classes) or (K, B, classes).
        label_smoothing: Share of the target that is spread over all classes, of every trial, in [0, 1); None is 0.

    Returns:
        Losses, shape (K,).
    """
    log_p = scores.log_softmax(dim=1)
    if targets.is_floating_point():
        picked = (log_p * targets.movedim(-1, -2)).sum(dim=1)
    else:
        picked = log_p.gather(1, targets.expand(len(scores), -1).unsqueeze(1)).squeeze(1)
    if label_smoothing is not None:
        share = label_smoothing.to(log_p).unsqueeze(1)
        picked = (1 - share) * picked + share * log_p.mean(dim=1)
    return -picked.mean(dim=1)


def rank_of_target(scores: Float[Tensor, "K classes B"], targets: Int[Tensor, "..."]) -> Int[Tensor, "K B"]:
    """Return how many classes are scored above the right one; 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal scores the lower class comes first, as in `argmax`. A sample whose scores are not finite ranks last.

    Args:
        scores: Logits, shape (K, classes, B).
        targets: Class indices, shape (B,) or (K, B).

    Returns:
        Ranks, shape (K, B), int64.
    """
    classes = scores.shape[1]
    index = targets.expand(len(scores), -1).unsqueeze(1)
    own = scores.gather(1, index)
    lower = torch.arange(classes, device=scores.device).view(1, -1, 1) < index
    rank = ((scores > own) | ((scores == own) & lower)).sum(dim=1)
    return torch.where(scores.isfinite().all(dim=1), rank, classes)


_CHECKPOINT_KEY = "mlprank_stack"


class StackedClassifier(LightningModule):
    """Trains K `ImageClassifier`s that differ only in numbers of the optimizer, the seed or label smoothing.

    The loss is the sum over the trials, so every trial has the gradients of training by itself. A trial whose loss is
    not finite at the end of an epoch has diverged: it is dropped from the stack, and the others go on unchanged to the
    bit. The weights of every trial's best epoch (highest validation top-1) are kept.

    Args:
        classifiers: One a trial, initialised as it would be for training by itself. They are bound to the stack.
        in_shape: Shape of one image.
        streams: For every trial the place of its batch in a stacked batch; None where all share one batch.
        seeds: Of every trial's dropout; 0, 1, … by default.

    Attributes:
        alive: The trials in the stack, in order.
        history: For every trial the metrics of every epoch; those of the diverging epoch are NaN.
        on_epoch: Called with the module when an epoch is recorded.
        best_epoch: For every trial the epoch, from 0, of its best validation accuracy; -1 before the first.

    Raises:
        CannotStackError: If the networks cannot be stacked.
    """

    def __init__(
        self,
        classifiers: Sequence[ImageClassifier],
        *,
        in_shape: tuple[int, ...],
        streams: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.stack = Stack([classifier.model for classifier in classifiers], in_shape=in_shape, seeds=seeds)
        self.classifiers = tuple(classifiers)
        self.streams = None if streams is None else list(streams)
        self.alive = list(range(len(classifiers)))
        self.history: list[list[dict[str, float]]] = [[] for _ in classifiers]
        self.best_epoch = [-1] * len(classifiers)
        self.on_epoch: Callable[[StackedClassifier], None] | None = None
        self._best: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[LRScheduler | None] = []
        self._restored: Mapping[str, Any] | None = None

    @property
    def diverged(self) -> list[int]:
        """The trials that were dropped."""
        return [trial for trial in range(len(self.classifiers)) if trial not in self.alive]

    def best_state(self, trial: int) -> dict[str, Tensor]:
        """Return the network's state dict of a trial's best epoch, on the CPU.

        Args:
            trial: Its place among `classifiers`; it must not have diverged.
        """
        place = self.alive.index(trial)
        return {name: self._best[name][place].detach().cpu().clone() for name in self.stack.names}

    def configure_optimizers(self) -> Optimizer:
        """Let every classifier build its optimizer and schedule over its slice of the stack, and join the optimizers."""
        self.stack.bind(self._networks())
        self._optimizers, self._schedulers = [], []
        for trial in self.alive:
            configured = self.classifiers[trial].configure_optimizers()
            schedule = configured.get("lr_scheduler") if isinstance(configured, dict) else None
            if schedule is not None and schedule.get("interval", "epoch") != "epoch":
                raise CannotStackError("a stack steps schedulers once an epoch, this one is to be stepped more often")
            self._optimizers.append(configured["optimizer"] if isinstance(configured, dict) else configured)
            self._schedulers.append(None if schedule is None else schedule["scheduler"])
        return merge_optimizers(self._optimizers)

    def on_train_start(self) -> None:
        """Bring back what a checkpoint held about the schedules."""
        if self._restored is not None:
            separate_groups(self._merged, self._optimizers)
            for scheduler, state in zip(self._schedulers, self._restored["schedulers"], strict=True):
                if scheduler is not None:
                    scheduler.load_state_dict(state)
            self._restored = None

    def on_train_epoch_start(self) -> None:
        """Start the sums of the epoch."""
        self._start("train_loss", "train_num")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the trials' losses."""
        images, targets = self._own(batch)
        losses = stacked_cross_entropy(self.stack(images), targets, label_smoothing=self._smoothing())
        count = targets.shape[0 if self.streams is None else 1]
        self._sums["train_loss"] += losses.detach().to(self._sums["train_loss"]) * count
        self._sums["train_num"] += count
        return losses.sum()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Drop the stacked gradients and the trials' views of them."""
        self.stack.zero_grad()
        self.stack.share_gradients()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Give every trial its slice of the gradients."""
        self.stack.share_gradients()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of every trial by themselves."""
        if gradient_clip_val:
            gradients = [parameter.grad for parameter in self.stack.parameters() if parameter.grad is not None]
            clip_gradients(gradients, value=float(gradient_clip_val), algorithm=str(gradient_clip_algorithm or "norm"))

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the validation."""
        self._start("val_loss", "val_top1", "val_top5", "val_num")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums."""
        images, targets = self._own(batch)
        scores = self.stack(images)
        count = targets.shape[-1]
        rank = rank_of_target(scores, targets)
        self._sums["val_loss"] += stacked_cross_entropy(scores, targets).to(self._sums["val_loss"]) * count
        self._sums["val_top1"] += (rank < 1).sum(dim=1)
        self._sums["val_top5"] += (rank < min(5, scores.shape[1])).sum(dim=1)
        self._sums["val_num"] += count

    def on_train_epoch_end(self) -> None:
        """Record the epoch, keep the best weights, drop what diverged, step the schedules."""
        metrics = self._record()
        finite = torch.stack([values.isfinite() for values in metrics.values()]).all(dim=0).tolist()
        self._keep_best()
        if not all(finite):
            self._drop([place for place, ok in enumerate(finite) if ok])
        for trial, scheduler in zip(self.alive, self._schedulers, strict=True):
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self.history[trial][-1]["val_loss"])
            elif scheduler is not None:
                scheduler.step()
        for trial, epochs in enumerate(self.history):
            self.log_dict({f"{name}/{trial}": value for name, value in epochs[-1].items() if name != "epoch"})
        if not self.alive:
            self.trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the stack needs to go on; a checkpoint is to be written at the end of an epoch."""
        checkpoint[_CHECKPOINT_KEY] = {
            "alive": list(self.alive),
            "history": self.history,
            "best_epoch": list(self.best_epoch),
            "best": self._best,
            "schedulers": [None if scheduler is None else scheduler.state_dict() for scheduler in self._schedulers],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's record and drop what had diverged, before the weights are loaded."""
        record = checkpoint[_CHECKPOINT_KEY]
        self._restored = record
        self.history, self.best_epoch = record["history"], record["best_epoch"]
        self._best = record["best"]
        self._keep([self.alive.index(trial) for trial in record["alive"]])

    @property
    def _merged(self) -> Optimizer:
        return self.trainer.optimizers[0]

    def _networks(self) -> list[Any]:
        return [self.classifiers[trial].model for trial in self.alive]

    def _start(self, *names: str) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        for name in names:
            self._sums[name] = torch.zeros(len(self.alive), dtype=precise, device=self.device)

    def _own(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Give every trial the batch of its stream; a batch shared by all stays shared."""
        images, targets = batch
        if self.streams is None or self.streams == list(range(len(images))):
            return images, targets
        return images[self.streams], targets[self.streams]

    def _smoothing(self) -> Tensor | None:
        shares = [self.classifiers[trial].label_smoothing for trial in self.alive]
        return torch.tensor(shares, device=self.device) if any(shares) else None

    def _record(self) -> dict[str, Tensor]:
        sums = self._sums
        metrics = {"train_loss": sums["train_loss"] / sums["train_num"]}
        if "val_num" in sums:
            metrics |= {name: sums[name] / sums["val_num"] for name in ("val_loss", "val_top1", "val_top5")}
        values = {name: value.tolist() for name, value in metrics.items()}
        for trial in self.diverged:
            self.history[trial].append(dict.fromkeys(self.history[trial][-1], math.nan))
        for place, trial in enumerate(self.alive):
            row = {name: column[place] for name, column in values.items()}
            rate = float(self._optimizers[place].param_groups[0]["lr"])
            self.history[trial].append({"epoch": self.current_epoch, **row, "lr": rate})
        return metrics

    def _keep_best(self) -> None:
        better = []
        for place, trial in enumerate(self.alive):
            *earlier, last = (epoch.get(MONITOR, -epoch["train_loss"]) for epoch in self.history[trial])
            finite = all(math.isfinite(value) for value in self.history[trial][-1].values())
            if finite and all(last > value for value in earlier):
                better.append(place)
                self.best_epoch[trial] = self.current_epoch
        for name in self.stack.names:
            value = self.stack.tensor(name).detach()
            if name not in self._best:
                self._best[name] = value.clone()
            elif better:
                self._best[name] = self._best[name].to(value.device)
                self._best[name][better] = value[better]

    def _drop(self, places: list[int]) -> None:
        merged = self._merged
        for place, optimizer in enumerate(self._optimizers):
            if place not in places:
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        merged.state.pop(parameter, None)
        self._optimizers = [self._optimizers[place] for place in places]
        self._schedulers = [self._schedulers[place] for place in places]
        merged.param_groups[:] = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        self._best = {name: value[places].clone() for name, value in self._best.items()}
        self._keep(places)
        if places:
            self.stack.bind(self._networks())

    def _keep(self, places: list[int]) -> None:
        if places and len(places) < len(self.alive):
            self.stack.keep(places)
        self.streams = None if self.streams is None else [self.streams[place] for place in places]
        self.alive = [self.alive[place] for place in places]


_FUSED_DEVICES = ("cpu", "cuda")
_NORM_EPS = 1e-6


def merge_optimizers(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Join the trials' optimizers into one that steps them all.

    It is of the trials' own class and holds the groups of all. Every group keeps its options, and the group dicts stay
    those of the trials' optimizers, so that a scheduler on a trial's optimizer sets that trial's rate.
    Groups that leave the implementation open use torch's fused one, which reads and writes every parameter once.

    Args:
        optimizers: One a trial, not stepped yet, of one class.

    Returns:
        The joined one; its groups are those of trial 0, then of trial 1, and so on.

    Raises:
        CannotStackError: If the classes differ or the class needs a closure.
    """
    first = optimizers[0]
    for optimizer in optimizers:
        if type(optimizer) is not type(first):
            raise CannotStackError(
                f"the trials use {type(first).__name__} and {type(optimizer).__name__}; a stack needs one kind"
            )
    if isinstance(first, LBFGS):
        raise CannotStackError("LBFGS evaluates the loss again within a step; it cannot step a stack of trials")
    merged = copy.copy(first)
    merged.state = defaultdict(dict)
    merged.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in merged.param_groups:
        _choose_fused(group)
    for optimizer in optimizers:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn: only the joined one is stepped
    return merged


def _choose_fused(group: dict[str, Any]) -> None:
    wanted = (
        "fused" in group and group["fused"] is None and not group.get("foreach") and not group.get("differentiable")
    )
    parameters: Sequence[Tensor] = group["params"]
    if wanted and all(p.is_floating_point() and p.device.type in _FUSED_DEVICES for p in parameters):
        group["fused"] = True
        group["foreach"] = False


def separate_groups(merged: Optimizer, optimizers: Sequence[Optimizer]) -> None:
    """Give the trials' optimizers the groups of the joined one again, after `load_state_dict` replaced them.

    Args:
        merged: What `merge_optimizers` returned for `optimizers`.
        optimizers: The trials' optimizers.
    """
    groups = iter(merged.param_groups)
    for optimizer in optimizers:
        optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]


def clip_gradients(gradients: Sequence[Tensor], *, value: float, algorithm: str = "norm") -> None:
    """Clip the gradients of every trial by themselves, in place.

    Args:
        gradients: Stacked gradients, each of shape (K, ...).
        value: Largest norm of one trial's gradients, or largest absolute value of an entry.
        algorithm: `norm` (as `torch.nn.utils.clip_grad_norm_`) or `value` (as `clip_grad_value_`).
    """
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-value, value)
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factor = (value / (torch.linalg.vector_norm(norms, dim=0) + _NORM_EPS)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *(1,) * (gradient.dim() - 1)))
