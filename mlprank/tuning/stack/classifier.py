"""K classifiers and their data trained as one stacked model inside an ordinary Lightning Trainer."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlprank.costs.metrics import ranks_of
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.local import METRICS
from mlprank.tuning.stack.network import CannotStackError, Stack
from mlprank.tuning.store import MONITOR


def stacked_cross_entropy(
    scores: Float[Tensor, "K classes B"], targets: Tensor, *, label_smoothing: Float[Tensor, " K"] | None = None
) -> Float[Tensor, " K"]:
    """Return the mean cross-entropy of every trial."""
    if targets.is_floating_point():
        losses = F.cross_entropy(scores, targets.mT.expand(scores.shape), reduction="none")
    else:
        losses = F.cross_entropy(scores, targets.expand(len(scores), -1), reduction="none")
    if label_smoothing is not None:
        share = label_smoothing.to(losses).unsqueeze(1)
        losses = (1 - share) * losses - share * scores.log_softmax(dim=1).mean(dim=1)
    return losses.mean(dim=1)


_CHECKPOINT_KEY = "mlprank_stack"


class StackedClassifier(LightningModule):
    """Trains K `ImageClassifier`s that differ only in numbers of the optimizer, the seed or label smoothing.

    The loss is the sum over the trials, which never meet, so every trial has the gradients of training by itself. A
    trial whose loss is not finite at the end of an epoch has diverged; the others go on unchanged to the bit. The
    weights of every trial's best epoch (highest validation top-1) are kept.

    Args:
        classifiers: One a trial, initialised as it would be for training by itself. They are bound to the stack.
        in_shape: Shape of one image.
        streams: For every trial the place of its batch in a stacked batch; None where all share one batch.
        seeds: Of every trial's dropout; 0, 1, … by default.

    Attributes:
        history: For every trial the metrics of every epoch; from the diverging one on NaN.
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
        self.history: list[list[dict[str, float]]] = [[] for _ in classifiers]
        self.best_epoch = [-1] * len(classifiers)
        self.on_epoch: Callable[[StackedClassifier], None] | None = None
        self._best: list[dict[str, Tensor]] = [{} for _ in classifiers]
        self._sums: dict[str, Any] = defaultdict(int)
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[LRScheduler | None] = []
        self._restored: list[dict[str, Any] | None] | None = None

    @property
    def diverged(self) -> list[int]:
        """The trials that have diverged."""
        return [trial for trial, epochs in enumerate(self.history) if epochs and math.isnan(epochs[-1]["train_loss"])]

    def best_state(self, trial: int) -> dict[str, Tensor]:
        """Return the network's state dict of a trial's best epoch, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self._best[trial].items()}

    def configure_optimizers(self) -> Optimizer:
        """Let every classifier build optimizer and schedule over its slice of the stack, and join the optimizers."""
        self.stack.bind([classifier.model for classifier in self.classifiers])
        self._optimizers, self._schedulers = [], []
        for classifier in self.classifiers:
            configured = classifier.configure_optimizers()
            schedule = configured.get("lr_scheduler") if isinstance(configured, dict) else None
            if schedule is not None and schedule.get("interval", "epoch") != "epoch":
                raise CannotStackError("a stack steps schedulers once an epoch, this one is to be stepped more often")
            self._optimizers.append(configured["optimizer"] if isinstance(configured, dict) else configured)
            self._schedulers.append(None if schedule is None else schedule["scheduler"])
        return merge_optimizers(self._optimizers)

    def on_train_start(self) -> None:
        """Bring back what a checkpoint held about the schedules."""
        if self._restored is not None:
            separate_groups(self.trainer.optimizers[0], self._optimizers)
            for scheduler, state in zip(self._schedulers, self._restored, strict=True):
                if scheduler is not None and state is not None:
                    scheduler.load_state_dict(state)
            self._restored = None

    def on_train_epoch_start(self) -> None:
        """Start the sums of the epoch, over samples; of every trial, but for their numbers."""
        self._sums = defaultdict(int)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the trials' losses."""
        images, targets = self._own(batch)
        shares = [classifier.label_smoothing for classifier in self.classifiers]
        smoothing = torch.tensor(shares, device=self.device) if any(shares) else None
        losses = stacked_cross_entropy(self.stack(images), targets, label_smoothing=smoothing)
        count = targets.shape[0 if self.streams is None else 1]
        self._sums["train_loss"] += losses.detach().to(self._precise) * count
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
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of every trial by themselves."""
        clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
        for classifier in self.classifiers if gradient_clip_val else ():
            clip(classifier.model.parameters(), float(gradient_clip_val or 0.0))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums."""
        images, targets = self._own(batch)
        scores = self.stack(images)
        count = targets.shape[-1]
        rank = ranks_of(targets.expand(len(scores), -1), scores)
        self._sums["val_loss"] += stacked_cross_entropy(scores, targets).to(self._precise) * count
        self._sums["val_top1"] += (rank < 1).sum(dim=1)
        self._sums["val_top5"] += (rank < min(5, scores.shape[1])).sum(dim=1)
        self._sums["val_num"] += count

    def on_train_epoch_end(self) -> None:
        """Record the epoch, keep the best weights, step the schedules."""
        self._record()
        self._keep_best()
        diverged = self.diverged
        for trial, scheduler in enumerate(self._schedulers):
            if isinstance(scheduler, ReduceLROnPlateau) and trial not in diverged:
                scheduler.step(self.history[trial][-1]["val_loss"])
            elif scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
        for trial, epochs in enumerate(self.history):
            self.log_dict({f"{name}/{trial}": value for name, value in epochs[-1].items() if name != "epoch"})
        if len(diverged) == len(self.classifiers):
            self.trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the stack needs to go on; a checkpoint is to be written at the end of an epoch."""
        checkpoint[_CHECKPOINT_KEY] = {
            "history": self.history,
            "best_epoch": list(self.best_epoch),
            "best": self._best,
            "schedulers": [None if scheduler is None else scheduler.state_dict() for scheduler in self._schedulers],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's record."""
        record = checkpoint[_CHECKPOINT_KEY]
        self.history, self.best_epoch, self._best = record["history"], record["best_epoch"], record["best"]
        self._restored = record["schedulers"]

    @property
    def _precise(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack

    def _own(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Give every trial the batch of its stream; a batch shared by all stays shared."""
        images, targets = batch
        if self.streams is None or self.streams == list(range(len(images))):
            return images, targets
        return images[self.streams], targets[self.streams]

    def _record(self) -> None:
        sums = self._sums
        names: list[str] = [name for name in METRICS if name in sums]
        values = {name: (sums[name] / sums[f"{name.partition('_')[0]}_num"]).tolist() for name in names}
        diverged = self.diverged
        for trial, epochs in enumerate(self.history):
            row = {name: column[trial] for name, column in values.items()}
            row = {"epoch": self.current_epoch, **row, "lr": float(self._optimizers[trial].param_groups[0]["lr"])}
            finite = trial not in diverged and all(map(math.isfinite, row.values()))
            epochs.append(row if finite else dict.fromkeys(row, math.nan))

    def _keep_best(self) -> None:
        for trial, epochs in enumerate(self.history):
            *earlier, last = (epoch.get(MONITOR, -epoch["train_loss"]) for epoch in epochs)
            if math.isfinite(last) and all(last > value for value in earlier):
                self.best_epoch[trial], self._best[trial] = self.current_epoch, self.stack.unstack(trial)


def merge_optimizers(optimizers: Sequence[Optimizer]) -> Optimizer:
    """Join the trials' optimizers into one that steps them all.

    It is of the trials' own class and holds the groups of all. Every group keeps its options, and the group dicts stay
    those of the trials' optimizers, so that a scheduler on a trial's optimizer sets that trial's rate.
    Groups that leave the implementation open use torch's fused one, which reads and writes every parameter once.

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
        is_open = group.get("fused", False) is None and not group.get("foreach") and not group.get("differentiable")
        if is_open and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group |= {"fused": True, "foreach": False}
    for optimizer in optimizers:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn
    return merged


def separate_groups(merged: Optimizer, optimizers: Sequence[Optimizer]) -> None:
    """Give the trials' optimizers the groups of the joined one again, after `load_state_dict` replaced them."""
    groups = iter(merged.param_groups)
    for optimizer in optimizers:
        optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]


class StackedDataModule(LightningDataModule):
    """The data modules of several trials as one.

    With one data module every batch is shared by all trials; with several a batch has a leading dimension of one entry
    a data module.

    Raises:
        CannotStackError: If they have different numbers of batches.
    """

    def __init__(self, datamodules: Sequence[LightningDataModule]) -> None:
        super().__init__()
        self.datamodules = tuple(datamodules)

    def prepare_data(self) -> None:
        """Download what is missing."""
        self.datamodules[0].prepare_data()

    def setup(self, stage: str) -> None:
        """Read the data."""
        for datamodule in self.datamodules:
            datamodule.trainer = self.trainer
            datamodule.setup(stage)

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self._stacked([datamodule.train_dataloader() for datamodule in self.datamodules])

    def val_dataloader(self) -> Any:
        """Return the validation batches."""
        return self._stacked([datamodule.val_dataloader() for datamodule in self.datamodules])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and cast every data module's part of a batch on the model's device."""
        if len(self.datamodules) == 1:
            return self.datamodules[0].on_after_batch_transfer(batch, dataloader_idx)
        pairs = zip(self.datamodules, batch, strict=True)
        parts = [datamodule.on_after_batch_transfer(part, dataloader_idx) for datamodule, part in pairs]
        return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))

    def _stacked(self, loaders: Sequence[Any]) -> Any:
        lengths = sorted({len(loader) for loader in loaders})
        if len(lengths) > 1:
            raise CannotStackError(f"the trials' data have {lengths} batches an epoch; a stack needs one number")
        return loaders[0] if len(loaders) == 1 else CombinedLoader(loaders, mode="min_size")
