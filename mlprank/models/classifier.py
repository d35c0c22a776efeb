"""The LightningModule that trains an image classifier."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mlprank.artifact.spec import build_model, describe_model
from mlprank.models import check_state, schedule
from mlprank.surgery.masks import match_masks
from mlprank.surgery.narrow import narrow


class ImageClassifier(LightningModule):
    """Trains a network on cross-entropy and logs loss, top-1 and top-5 accuracy once an epoch.

    A batch is (images, targets): targets of shape (N,) are class indices, of shape (N, num_classes) probabilities, as
    mixup and cutmix make them. A checkpoint holds tensors and plain types only, and `load_from_checkpoint(path)` needs
    nothing else: the hyper-parameters describe the network, the optimizer and the schedule, and the record of a pruned
    network narrows it before the weights are loaded.

    Args:
        model: The network; logits of shape (N, num_classes). In place of it, `{"class_path", "init_args"}`.
        optimizer: Builds the optimizer from parameters: a class, a partial, or `{"class_path", "init_args"}`.
        lr_scheduler: Builds the schedule, stepped once an epoch, from the optimizer, likewise; None keeps the rate.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        bias_weight_decay: Weight decay of the biases; None leaves the optimizer's.
        norm_weight_decay: Weight decay of normalisation layers; None leaves the optimizer's.
        num_classes: Number of classes; None reads `model.num_classes` or the last linear layer.

    Raises:
        ValueError: If an argument is out of range, or the schedule does not fit the optimizer.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> from functools import partial
        >>> from mlprank.models import MLP
        >>> module = ImageClassifier(MLP(64, [32], 10), optimizer=partial(torch.optim.AdamW, lr=0.002))
        >>> type(module.configure_optimizers()).__name__
        'AdamW'
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        bias_weight_decay: float | None = None,
        norm_weight_decay: float | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        given: object = model
        self.model = build_model(given) if isinstance(given, Mapping) else model
        linears = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        if num_classes is None:
            num_classes = getattr(self.model, "num_classes", None) or (linears[-1].out_features if linears else None)
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(
                f"num_classes={num_classes!r} must be a positive integer; {type(self.model).__name__} does not tell it"
            )
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.bias_weight_decay, self.norm_weight_decay = bias_weight_decay, norm_weight_decay
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.pruning: dict[str, Any] | None = None  # what a pruned network's checkpoint says about it
        first, scheduler = self._build_optimizer()
        described = {
            "model": dict(given) if isinstance(given, Mapping) else describe_model(self.model),
            "optimizer": schedule.describe_factory(optimizer, first),
            "lr_scheduler": None if scheduler is None else schedule.describe_factory(lr_scheduler, scheduler),
        }
        names = ("label_smoothing", "bias_weight_decay", "norm_weight_decay", "num_classes")
        self.save_hyperparameters({**described, **{name: getattr(self, name) for name in names}})
        if scheduler is not None:
            schedule.check_scheduler(scheduler)
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, top_k=min(top_k, num_classes), average="micro", validate_args=False)
            for top_k in (1, 5)
        )
        self.mean_loss = MeanMetric()
        self._rate = math.nan
        self._loss_sum: float | Tensor = 0.0  # over the samples of the epoch so far
        self._num_samples = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of images."""
        logits: Tensor = self.model(images)
        return logits

    def configure_optimizers(self) -> Any:
        """Build the optimizer and, where there is one, the schedule, stepped once an epoch."""
        optimizer, scheduler = self._build_optimizer()
        if scheduler is None:
            return optimizer
        config = {"scheduler": scheduler, "interval": "epoch", "monitor": getattr(scheduler, "monitor", "val_loss")}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_epoch_start(self) -> None:
        """Start the epoch's mean loss anew, and note the learning rate that it is trained with."""
        self._loss_sum, self._num_samples = 0.0, 0
        self._rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        if not (math.isfinite(self._rate) and self._rate >= 0):
            raise ValueError(
                f"lr_scheduler has set lr={self._rate:g} for epoch {self.current_epoch}; it must be a finite number "
                "of at least 0, so check the schedule's arguments; checkpoints that were written before are kept"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch; a loss that is not a finite number stops the run."""
        images, targets = batch
        loss = F.cross_entropy(self.model(images), targets, label_smoothing=self.label_smoothing)
        on_cpu = loss.device.type == "cpu"
        self._num_samples += (samples := images.shape[0])
        self._loss_sum += (loss.item() if on_cpu else loss.detach()) * samples
        if on_cpu or batch_idx % 50 == 49:  # an accelerator is waited for, so its losses are read once in 50 steps
            self._mean_loss()
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss and the learning rate."""
        self.log("train_loss", self._mean_loss(), prog_bar=True, sync_dist=True)
        self.log("lr", self._rate, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Stop before a checkpoint is written where the loss of the epoch is not a finite number."""
        if self.trainer.training and self._num_samples:
            self._mean_loss()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the epoch's loss and accuracies."""
        images, targets = batch
        logits = self.model(images)
        self.mean_loss.update(F.cross_entropy(logits, targets), weight=len(images))
        self.top1.update(logits, targets)
        self.top5.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the loss and accuracies as val_loss, val_top1, val_top5; those of a test likewise."""
        stage = "test" if self.trainer.testing else "val"
        metrics = {"loss": self.mean_loss, "top1": self.top1, "top5": self.top5}
        values = {f"{stage}_{name}": metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        if self.trainer.state.fn != "fit" and not math.isfinite(loss := float(values[f"{stage}_loss"])):
            raise FloatingPointError(
                f"the loss is {loss} on the {stage} data, so its accuracies say nothing: weights or images are not "
                "finite; take another checkpoint (--ckpt_path), and look for non-finite images"
            )
        self.log_dict(values, prog_bar=True, sync_dist=True)

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the class probabilities, shape (N, num_classes), of a batch with or without targets."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return self.forward(images).softmax(dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Carry the record of a pruned network along."""
        if self.pruning is not None:
            checkpoint["mlprank"] = self.pruning

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the network the widths and masks of the checkpoint, and refuse another network's weights.

        The entry "mlprank" is that of a pruned network: its "slices" are the kept indices of every parameter that was
        narrowed, by its name in the classifier and its dimension, and its "biases" name those that pruning created.
        """
        state, record, was_narrow = checkpoint["state_dict"], checkpoint.get("mlprank"), self.pruning is not None
        slices: Any = record.get("slices") if isinstance(record, dict) else None
        if record is not None and not isinstance(slices, Mapping):
            raise ValueError("the checkpoint's entry 'mlprank' has no 'slices', so the file is damaged or foreign")
        own, created = self.state_dict(), [str(name) for name in (record or {}).get("biases", ())]
        differ = any(name in state and state[name].shape != tensor.shape for name, tensor in own.items())
        if was_narrow if record is None else differ or set(created) - set(own):
            spec: Any = self.hparams.get("model")
            if was_narrow and spec is None:
                raise ValueError("the network is narrow and its class is not recorded; build the classifier anew")
            kept = {str(name).removeprefix("model."): dims for name, dims in (slices or {}).items()}
            biases = tuple(name.removeprefix("model.") for name in created)
            self.model = narrow(build_model(spec) if was_narrow else self.model, kept, biases=biases)
        self.pruning = record
        match_masks(self, state)
        check_state(self.state_dict(), state, source="the checkpoint")

    def _build_optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
        groups = schedule.parameter_groups(
            self.model, bias_weight_decay=self.bias_weight_decay, norm_weight_decay=self.norm_weight_decay
        )
        optimizer = schedule.build_optimizer(self.optimizer, groups)
        return optimizer, None if self.lr_scheduler is None else schedule.build_scheduler(self.lr_scheduler, optimizer)

    def _mean_loss(self) -> float:
        """Return the mean training loss of the epoch so far; one that is not a finite number stops the run."""
        loss = float(self._loss_sum) / max(self._num_samples, 1)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss became {loss} at step {self.global_step} (epoch {self.current_epoch}, "
                f"lr={self._rate:g}); try a smaller learning rate, a warm-up, trainer.gradient_clip_val=1.0 or "
                "trainer.precision=32, and look for non-finite images; checkpoints that were written before are kept"
            )
        return loss
