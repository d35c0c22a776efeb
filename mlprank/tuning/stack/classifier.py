"""K classifiers and their data trained as one stacked model inside an ordinary Lightning Trainer."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlprank.costs.metrics import ranks_of
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.stack.network import CannotStackError, Stack
from mlprank.tuning.store import MONITOR


def stacked_cross_entropy(
    scores: Float[Tensor, "K classes B"], targets: Tensor, *, label_smoothing: Float[Tensor, " K"] | None = None
) -> Float[Tensor, " K"]:
    """Return the mean cross-entropy of every trial."""
    log_p = scores.log_softmax(dim=1)
    if targets.is_floating_point():
        picked = (log_p * targets.movedim(-1, -2)).sum(dim=1)
    else:
        picked = log_p.gather(1, targets.expand(len(scores), -1).unsqueeze(1)).squeeze(1)
    if label_smoothing is not None:
        share = label_smoothing.to(log_p).unsqueeze(1)
        picked = (1 - share) * picked + share * log_p.mean(dim=1)
    return -picked.mean(dim=1)


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
        self._best: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[LRScheduler | None] = []
        self._restored: list[dict[str, Any] | None] | None = None

    @property
    def diverged(self) -> list[int]:
        """The trials that have diverged."""
        return [trial for trial, epochs in enumerate(self.history) if epochs and math.isnan(epochs[-1]["train_loss"])]

    def best_state(self, trial: int) -> dict[str, Tensor]:
        """Return the network's state dict of a trial's best epoch, on the CPU."""
        return {name: self._best[name][trial].detach().cpu().clone() for name in self.stack.names}

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
        """Start the sums of the epoch."""
        self._start("train_loss", "train_num")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the trials' losses."""
        images, targets = self._own(batch)
        shares = [classifier.label_smoothing for classifier in self.classifiers]
        smoothing = torch.tensor(shares, device=self.device) if any(shares) else None
        losses = stacked_cross_entropy(self.stack(images), targets, label_smoothing=smoothing)
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
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
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
        rank = ranks_of(targets.expand(len(scores), -1), scores)
        self._sums["val_loss"] += stacked_cross_entropy(scores, targets).to(self._sums["val_loss"]) * count
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

    def _start(self, *names: str) -> None:
        precise = torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        for name in names:
            self._sums[name] = torch.zeros(len(self.classifiers), dtype=precise, device=self.device)

    def _own(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Give every trial the batch of its stream; a batch shared by all stays shared."""
        images, targets = batch
        if self.streams is None or self.streams == list(range(len(images))):
            return images, targets
        return images[self.streams], targets[self.streams]

    def _record(self) -> None:
        sums = self._sums
        metrics = {"train_loss": sums["train_loss"] / sums["train_num"]}
        if "val_num" in sums:
            metrics |= {name: sums[name] / sums["val_num"] for name in ("val_loss", "val_top1", "val_top5")}
        values = {name: value.tolist() for name, value in metrics.items()}
        diverged = self.diverged
        for trial, epochs in enumerate(self.history):
            row = {name: column[trial] for name, column in values.items()}
            row = {"epoch": self.current_epoch, **row, "lr": float(self._optimizers[trial].param_groups[0]["lr"])}
            finite = trial not in diverged and all(map(math.isfinite, row.values()))
            epochs.append(row if finite else dict.fromkeys(row, math.nan))

    def _keep_best(self) -> None:
        better = []
        for trial, epochs in enumerate(self.history):
            *earlier, last = (epoch.get(MONITOR, -epoch["train_loss"]) for epoch in epochs)
            if math.isfinite(last) and all(last > value for value in earlier):
                better.append(trial)
                self.best_epoch[trial] = self.current_epoch
        for name in self.stack.names:
            value = self.stack.tensor(name).detach()
            if name not in self._best:
                self._best[name] = value.clone()
            elif better:
                self._best[name] = self._best[name].to(value.device)
                self._best[name][better] = value[better]


_FUSED_DEVICES = ("cpu", "cuda")
_NORM_EPS = 1e-6


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
        _choose_fused(group)
    for optimizer in optimizers:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn
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
    """Give the trials' optimizers the groups of the joined one again, after `load_state_dict` replaced them."""
    groups = iter(merged.param_groups)
    for optimizer in optimizers:
        optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]


def clip_gradients(gradients: Sequence[Tensor], *, value: float, algorithm: str = "norm") -> None:
    """Clip the gradients of every trial by themselves, in place."""
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-value, value)
        return
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
    factor = (value / (torch.linalg.vector_norm(norms, dim=0) + _NORM_EPS)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *(1,) * (gradient.dim() - 1)))


class StackedBatches:
    """Batches of several loaders of equal length, stacked: images (U, B, ...), labels (U, B, ...).

    Raises:
        CannotStackError: If their lengths differ.
    """

    def __init__(self, loaders: Sequence[Any]) -> None:
        lengths = sorted({len(loader) for loader in loaders})
        if len(lengths) > 1:
            raise CannotStackError(f"the trials' data have {lengths} batches an epoch; a stack needs one number")
        self.loaders = tuple(loaders)
        self.batch_sampler = self.sampler = self  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, in every loader."""
        for loader in self.loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the loaders in step."""
        for batches in zip(*self.loaders, strict=True):
            yield tuple(torch.stack(parts) for parts in zip(*batches, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the places of all loaders."""
        return {"loaders": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the places of all loaders."""
        for loader, place in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(place)


class StackedDataModule(LightningDataModule):
    """The data modules of several trials as one.

    With one data module every batch is shared by all trials; with several a batch has a leading dimension of one entry
    a data module.
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
        parts = [
            datamodule.on_after_batch_transfer((images, labels), dataloader_idx)
            for datamodule, images, labels in zip(self.datamodules, *batch, strict=True)
        ]
        return tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))

    def _stacked(self, loaders: Sequence[Any]) -> Any:
        return loaders[0] if len(loaders) == 1 else StackedBatches(loaders)
