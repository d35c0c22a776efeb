"""K classifiers of one shape trained as one: `torch.vmap` of the first's forward pass over everyone's weights."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.overrides import TorchFunctionMode

from mlprank.costs.metrics import ranks_of
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.store import METRICS, MONITOR
from mlprank.utils.errors import FAILURES, first_line

_EXAMPLES = 3


class CannotStackError(ValueError):
    """These trials cannot be trained as one stacked model; the text says what stands in the way."""


class Stack(nn.Module):
    """K networks of one shape that are computed together, each on its own samples or all on the same.

    Parameters and buffers of `network` have a leading dimension K. Trials never meet: no value of one enters the result
    of another. `seeds` are those of every trial's dropout; 0, 1, … by default. A CannotStackError is raised where the
    networks differ in shape, or `torch.vmap` cannot carry out their forward pass.
    """

    def __init__(
        self, networks: Sequence[nn.Module], *, in_shape: tuple[int, ...], seeds: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.in_shape, self.num_trials = tuple(in_shape), len(networks)
        try:
            parameters, buffers = stack_module_state(list(networks))
        except RuntimeError as error:
            raise CannotStackError(f"the networks differ in more than numbers: {first_line(error)}") from error
        names: dict[int, str] = {}
        for name, tensor in networks[0].state_dict(keep_vars=True).items():
            if names.setdefault(id(tensor), name) != name:
                raise CannotStackError(f"{names[id(tensor)]!r} and {name!r} are one tensor; a stack needs two")
        for name, module in networks[0].named_modules():
            if isinstance(module, _ConvNd):  # measured: a fifth slower than one network after another
                raise CannotStackError(f"{name!r} is a convolution, which is slower in a stack than by itself")
        self.network = copy.deepcopy(networks[0]).train()
        for name, tensor in {**parameters, **buffers}.items():
            owner, _, key = name.rpartition(".")
            own = nn.Parameter(tensor, requires_grad=tensor.requires_grad) if name in parameters else tensor
            setattr(self.network.get_submodule(owner), key, own)
        self.generators = [torch.Generator().manual_seed(seed) for seed in (seeds or range(self.num_trials))]
        kind = type(self.network).__name__  # a few samples of the first trial show whether `torch.vmap` can
        state = {name: tensor.detach()[:1].clone() for name, tensor in self.tensors.items()}
        samples = next(self.network.parameters()).new_zeros(1, _EXAMPLES, *self.in_shape)
        try:
            scores = self._scores(state, samples, [torch.Generator()])
        except FAILURES as error:
            raise CannotStackError(f"{kind} cannot be computed by torch.vmap: {first_line(error)}") from error
        shape = tuple(scores.shape[1:]) if isinstance(scores, Tensor) else type(scores).__name__
        if len(shape) != 2 or shape[0] != _EXAMPLES:
            raise CannotStackError(f"{kind} returns {shape} for {_EXAMPLES} samples; a stack needs one score a class")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, shape (K, ...)."""
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    def forward(self, batch: Tensor) -> Float[Tensor, "K classes B"]:
        """Compute the scores of every network."""
        if batch.dim() == 1 + len(self.in_shape):
            batch = batch.expand(self.num_trials, *batch.shape)
        if batch.shape[0] != self.num_trials:
            raise ValueError(f"batch of shape {tuple(batch.shape)} holds no batch for each of {self.num_trials} trials")
        return self._scores(self.tensors, batch, self.generators).mT

    def _scores(
        self, state: Mapping[str, Tensor], batch: Tensor, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "K B classes"]:
        with _Together(generators, next(iter(state.values())).dtype):
            scores: Tensor = torch.vmap(lambda own, x: functional_call(self.network, own, (x,)))(state, batch)
        return scores

    def unstack(self, trial: int) -> dict[str, Tensor]:
        """Return the state dict of one trial's network."""
        return {name: tensor[trial].clone() for name, tensor in self.network.state_dict().items()}

    def bind(self, networks: Sequence[nn.Module]) -> None:
        """Make ordinary networks share their parameters, gradients and buffers with the stack, again after a move."""
        tensors = self.tensors
        for trial, network in enumerate(networks):
            for name, tensor in network.state_dict(keep_vars=True).items():
                tensor.data = tensors[name].data[trial]
        for stacked, *slices in zip(self.network.parameters(), *(each.parameters() for each in networks), strict=True):
            if stacked.requires_grad:
                stacked.register_post_accumulate_grad_hook(partial(_share_gradient, slices))


def _share_gradient(slices: Sequence[Tensor], stacked: Any) -> None:
    for parameter, gradient in zip(slices, stacked.grad, strict=True):
        parameter.grad = gradient


class _Together(TorchFunctionMode):
    """Carries out what `vmap` does slowly, for one type of numbers only, or with one generator for all trials."""

    def __init__(self, generators: Sequence[torch.Generator], dtype: torch.dtype) -> None:
        super().__init__()
        self.generators, self.dtype = generators, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dim() == 2:
            return _linear(*args, **kwargs)
        if func is F.batch_norm:  # in mixed precision its input has another type than its statistics
            return func(args[0].to(self.dtype), *args[1:], **kwargs).to(args[0].dtype)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        kept: Tensor = _Kept.apply(x, p, self.generators)
        return x * kept / (1 - p) if p < 1 else x * 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute feature by feature, so that the gradient of the weight comes out in the weight's own layout."""
    out = weight @ x.mT
    return (out if bias is None else out + bias.unsqueeze(-1).to(out.dtype)).mT


class _Kept(torch.autograd.Function):
    """Which values dropout keeps, 1 or 0; under `vmap` drawn from one generator a trial."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: Sequence[torch.Generator]) -> Tensor:
        raise AssertionError("only called under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, p: float, generators: Sequence[torch.Generator]) -> tuple[Tensor, int]:
        kept = torch.empty(x.movedim(in_dims[0], 0).shape, dtype=x.dtype)
        for mask, generator in zip(kept, generators, strict=True):
            mask.bernoulli_(1 - p, generator=generator)
        return kept.to(x.device), 0


def join_optimizers(optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler] = ()) -> Optimizer:
    """Return one that steps the optimizers of all trials, of one class, at once; its state has that of the schedules.

    The trials' group dicts are its own, so that a schedule of a trial's optimizer sets that trial's rate. Groups that
    leave the implementation open use torch's fused one, which reads and writes every parameter once.
    """
    kinds = {type(optimizer).__name__: type(optimizer) for optimizer in optimizers}
    if len(kinds) > 1:
        raise CannotStackError(f"the trials use {' and '.join(kinds)}; a stack needs one kind")
    if LBFGS in kinds.values():
        raise CannotStackError("LBFGS evaluates the loss again within a step; it cannot step a stack of trials")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    joined = copy.copy(optimizers[0])  # one step for all: every step by itself costs as much as a small layer
    joined.state, joined.param_groups = defaultdict(dict), groups
    for group in groups:
        is_open = group.get("fused", False) is None and not group.get("foreach") and not group.get("differentiable")
        if is_open and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group |= {"fused": True, "foreach": False}
    for optimizer in optimizers:
        vars(optimizer)["_opt_called"] = True  # else schedules warn

    def load_schedules(_: Optimizer, state: Mapping[str, Any]) -> None:
        for scheduler, own in zip(schedulers, state["schedules"], strict=True):
            scheduler.load_state_dict(own)

    def keep_groups(_: Optimizer) -> None:
        for group, loaded in zip(groups, joined.param_groups, strict=True):
            group |= loaded
        joined.param_groups = groups

    joined.register_state_dict_post_hook(lambda _, state: {**state, "schedules": [s.state_dict() for s in schedulers]})
    joined.register_load_state_dict_pre_hook(load_schedules)
    joined.register_load_state_dict_post_hook(keep_groups)
    return joined


def stacked_cross_entropy(
    scores: Float[Tensor, "K classes B"], targets: Tensor, *, label_smoothing: Float[Tensor, " K"] | None = None
) -> Float[Tensor, " K"]:
    """Return the mean cross-entropy of every trial."""
    own = targets.mT.expand(scores.shape) if targets.is_floating_point() else targets.expand(len(scores), -1)
    losses = F.cross_entropy(scores, own, reduction="none")
    if label_smoothing is not None:
        share = label_smoothing.to(losses).unsqueeze(1)
        losses = (1 - share) * losses - share * scores.log_softmax(dim=1).mean(dim=1)
    return losses.mean(dim=1)


class StackedClassifier(LightningModule):
    """Trains K `ImageClassifier`s that differ only in numbers of the optimizer, the seed or label smoothing.

    The loss is the sum over the trials, which never meet, so every trial has the gradients of training by itself. A
    trial whose loss is not finite at the end of an epoch has diverged; the others go on unchanged to the bit. The
    weights of every trial's best epoch (highest validation top-1) are in `best`, on the CPU, and in `history` every
    trial's metrics of every epoch, from the diverging one on NaN; then `on_epoch` is called with the module.

    The `classifiers`, one a trial and initialised as for training by itself, are bound to the stack; `seeds` are those
    of every trial's dropout. Batches are those of a `StackedDataModule`.
    """

    def __init__(
        self,
        classifiers: Sequence[ImageClassifier],
        *,
        in_shape: tuple[int, ...],
        seeds: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.stack = Stack([classifier.model for classifier in classifiers], in_shape=in_shape, seeds=seeds)
        self.classifiers = tuple(classifiers)
        self.history: list[list[dict[str, float]]] = [[] for _ in classifiers]
        self.on_epoch: Callable[[StackedClassifier], None] = lambda module: None
        self.best: list[dict[str, Tensor]] = [{} for _ in classifiers]
        self._sums: dict[str, Any] = defaultdict(int)

    @property
    def diverged(self) -> list[int]:
        """The trials that have diverged."""
        return [trial for trial, epochs in enumerate(self.history) if epochs and math.isnan(epochs[-1]["train_loss"])]

    def configure_optimizers(self) -> Optimizer:
        """Let every classifier build optimizer and schedule over its slice of the stack, and join the optimizers."""
        self.stack.bind([classifier.model for classifier in self.classifiers])
        built = [classifier.configure_optimizers() for classifier in self.classifiers]
        parts = [each if isinstance(each, dict) else {"optimizer": each} for each in built]
        self._optimizers = [part["optimizer"] for part in parts]
        self._schedulers = [part.get("lr_scheduler", {}).get("scheduler") for part in parts]
        return join_optimizers(self._optimizers, [each for each in self._schedulers if each is not None])

    def on_train_epoch_start(self) -> None:
        """Start the sums of the epoch, over samples; of every trial, but for their numbers."""
        self._sums = defaultdict(int)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the trials' losses."""
        images, targets = batch
        shares = [classifier.label_smoothing for classifier in self.classifiers]
        smoothing = torch.tensor(shares, device=self.device) if any(shares) else None
        losses = stacked_cross_entropy(self.stack(images), targets, label_smoothing=smoothing)
        count = images.shape[-1 - len(self.stack.in_shape)]
        self._sums["train_loss"] += losses.detach().to(self._precise) * count
        self._sums["train_num"] += count
        return losses.sum()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the stacked gradients and the trials' views of them."""
        self.stack.zero_grad()
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the gradients of every trial by themselves."""
        clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
        for classifier in self.classifiers if gradient_clip_val else ():
            clip(classifier.model.parameters(), float(gradient_clip_val or 0.0))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the sums."""
        images, targets = batch
        scores = self.stack(images)
        count = targets.shape[-1]
        rank = ranks_of(targets.expand(len(scores), -1), scores)
        self._sums["val_loss"] += stacked_cross_entropy(scores, targets).to(self._precise) * count
        self._sums["val_top1"] += (rank < 1).sum(dim=1)
        self._sums["val_top5"] += (rank < min(5, scores.shape[1])).sum(dim=1)
        self._sums["val_num"] += count

    def on_train_epoch_end(self) -> None:
        """Record the epoch, keep the best weights, step the schedules; stop where every trial has diverged."""
        names = [name for name in METRICS if name in self._sums]
        columns = {name: (self._sums[name] / self._sums[f"{name.partition('_')[0]}_num"]).tolist() for name in names}
        diverged = set(self.diverged)
        for trial, epochs in enumerate(self.history):
            row = {"epoch": self.current_epoch} | {name: column[trial] for name, column in columns.items()}
            row["lr"] = float(self._optimizers[trial].param_groups[0]["lr"])
            if trial in diverged or not all(map(math.isfinite, row.values())):
                diverged.add(trial)
                row = dict.fromkeys(row, math.nan)
            elif all(row[MONITOR] > epoch[MONITOR] for epoch in epochs):
                self.best[trial] = {name: tensor.cpu() for name, tensor in self.stack.unstack(trial).items()}
            epochs.append(row)
            scheduler = self._schedulers[trial]
            if isinstance(scheduler, ReduceLROnPlateau):
                if trial not in diverged:
                    scheduler.step(row["val_loss"])
            elif scheduler is not None:
                scheduler.step()
        self.trainer.should_stop |= len(diverged) == len(self.history)
        self.on_epoch(self)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the epochs, the best weights and the state of every trial's dropout, for the checkpoint."""
        drawn = [generator.get_state() for generator in self.stack.generators]
        return {"history": self.history, "best": self.best, "generators": drawn}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `get_extra_state` gave."""
        self.history, self.best = state["history"], state["best"]
        for generator, drawn in zip(self.stack.generators, state["generators"], strict=True):
            generator.set_state(drawn.cpu())

    @property
    def _precise(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack


class StackedDataModule(LightningDataModule):
    """Copies of a data module with the seeds of several trials as one; they share what is read.

    Trials of one seed share every batch; for several a batch has a leading dimension of one entry a trial. A
    CannotStackError is raised where they have different numbers of batches.
    """

    def __init__(self, data: Any, seeds: Sequence[Any]) -> None:
        super().__init__()
        self.seeds, self.datamodules = seeds, {seed: copy.copy(data) for seed in seeds}
        for seed, datamodule in self.datamodules.items() if len(self.datamodules) > 1 else ():
            datamodule.seed = seed

    def prepare_data(self) -> None:
        """Download what is missing."""
        next(iter(self.datamodules.values())).prepare_data()

    def setup(self, stage: str) -> None:
        """Read the data."""
        for datamodule in self.datamodules.values():
            datamodule.trainer = self.trainer
            datamodule.setup(stage)

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return self._joined("train_dataloader")

    def val_dataloader(self) -> Any:
        """Return the validation batches."""
        return self._joined("val_dataloader")

    def _joined(self, name: str) -> Any:
        loaders = [getattr(datamodule, name)() for datamodule in self.datamodules.values()]
        lengths = sorted({len(loader) for loader in loaders})
        if len(lengths) > 1:
            raise CannotStackError(f"the trials' data have {lengths} batches an epoch; a stack needs one number")
        return loaders[0] if len(loaders) == 1 else CombinedLoader(loaders, mode="min_size")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment and cast every data module's part of a batch on the model's device."""
        parts = [batch] if len(self.datamodules) == 1 else batch
        pairs = zip(self.datamodules.items(), parts, strict=True)
        own = {seed: datamodule.on_after_batch_transfer(part, dataloader_idx) for (seed, datamodule), part in pairs}
        if len(own) == 1:
            return own[self.seeds[0]]
        return tuple(torch.stack(tensors) for tensors in zip(*(own[seed] for seed in self.seeds), strict=True))
