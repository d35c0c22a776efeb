"""Pruning in the middle of training: masks on the live module and its averages, and state dicts without them."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from mlprank.callbacks import run
from mlprank.callbacks.schedule import Amount, Linear, Steps
from mlprank.compensation import Regression
from mlprank.graph.program import as_inputs
from mlprank.graph.records import Graph
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.refine import Refinement
from mlprank.surgery.copies import without_compiled
from mlprank.surgery.masks import (
    mask_rows,
    masked_parameters,
    match_masks,
    recompute_uncalled,
    refresh_masked,
    restore_masks,
    write_weights,
)
from mlprank.utils.hooks import users_hooks

_CHECKED_BATCHES = 2


class TrainingMasks:
    """The masks of a network that is pruned while it trains.

    Its parameters stay the same objects, so that an optimizer goes on with the state that it has for them.
    """

    def __init__(self, settings: run.Settings) -> None:
        self.settings = settings
        self.rows: dict[str, Tensor] = {}  # of every masked parameter, shape (n_out,), True for the rows that stay
        self.epoch = -1  # of the last pruning
        self.history: list[dict[str, Any]] = []  # of every pruning: epoch, achieved amount, widths by layer
        self.schedule: Steps | None = None  # once the length of training is known
        self.hooks = run.FirstStep()
        self._graph: Graph | None = None

    @property
    def achieved(self) -> float:
        """Pruned neurons as a share of the neurons of the prunable layers."""
        return float(self.history[-1]["achieved"]) if self.history else 0.0

    @property
    def complete(self) -> bool:
        """Whether the schedule, if there is one, has come to its end."""
        return self.schedule is None or self.epoch >= (self.schedule.end_epoch or 0)

    def due(self, epoch: int) -> Amount | None:
        """Return the amount that an epoch is to start with, or None where it prunes nothing."""
        if self.schedule is None or self.schedule.end_epoch is None:
            return None
        scheduled = min(epoch, self.schedule.end_epoch)
        amount = self.schedule.at(scheduled, self.settings.amounts[0]) if self.epoch < scheduled else None
        return amount if (any(amount.values()) if isinstance(amount, Mapping) else amount) else None

    def prune(self, trainer: Trainer, module: LightningModule, amount: Amount) -> None:
        """Prune the run's module in place, up to an absolute amount; call it on all processes."""
        settings = self.settings
        pruning = self._read(trainer, module)
        if isinstance(settings.recipe.compensation, Regression):
            pruning.graph = without_new_biases(pruning.graph)
        result = pruning.run(amount=amount, refine=0)  # only masks are wanted
        for name, kept in result.parameter_masks.items():
            self.rows[name] = kept & self.rows[name].to(kept.device) if name in self.rows else kept
        run.check_same_masks(trainer, self.rows)
        before = dict(pruning.model.named_parameters())
        after = {name: weight.detach() for name, weight in result.masked.named_parameters()}
        changed = {name: weight for name, weight in after.items() if not torch.equal(weight, before[name])}
        run.share_weights(trainer, changed.values())
        with run.uncompiled(module):
            live = run.find_network(module, settings.network)
            mask_rows(live, self.rows)
            write_weights(live, changed)
            recompute_uncalled(live, result.example)
        for average in averaged_modules(trainer):  # which starts anew
            with without_compiled(average):
                network = run.find_network(average, settings.network)
                mask_rows(network, self.rows)
                write_weights(network, changed)
        self._graph, self.epoch = pruning.graph, trainer.current_epoch
        widths = {name: list(sizes) for name, sizes in result.widths.items()}
        self.history.append({"epoch": self.epoch, "achieved": result.achieved, "widths": widths})

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Prune a copy on two real batches, and read the data that accuracy is measured on, before hours are spent.

        What would be refused at the end of training is so refused at its beginning. Call it on all processes.
        """
        if not run.has_calibration_data(trainer):
            return
        try:
            self._check(trainer, module)
        except (TypeError, ValueError):
            self.hooks.changing = set(users_hooks(module))
            if not self.hooks.changing:
                raise
            self._check(trainer, module)  # a hook may be what makes the inputs fit

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        settings, refine = self.settings, self.settings.recipe.refine
        pruning = self._read(trainer, module, limit=_CHECKED_BATCHES)
        once = dataclasses.replace(refine, steps=1) if isinstance(refine, Refinement) else 0
        for amount in settings.amounts:
            pruning.run(amount=amount, refine=once)
        copy = run.copied(module, self.hooks.changing)
        settings.labelled(trainer, copy)
        if settings.max_drop is not None and settings.labelled(trainer, copy, choosing=True)[0] is None:
            raise ValueError(
                f"max_drop={settings.max_drop} chooses by validation data, and the run has none on every process; "
                "give it a val_dataloader, or prune by an amount"
            )
        self._graph = pruning.graph if self.schedule is not None else None

    def _read(self, trainer: Trainer, module: LightningModule, *, limit: int | None = None) -> Pruning:
        copy = run.copied(module, self.hooks.changing)
        return Pruning(
            run.find_network(copy, self.settings.network),
            self.settings.calibration(trainer, copy, limit=limit),
            self.settings.recipe_of_rank(trainer),
            reduce=partial(run.summed, trainer),
            traced=self._graph,
        )

    def hold(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the masks of a resumed run on its module and on averages of it, whose weights have been read already."""
        for each in [module, *averaged_modules(trainer)] if self.rows else []:
            with without_compiled(each):
                mask_rows(run.find_network(each, self.settings.network), self.rows)

    def keep_working(self, trainer: Trainer, module: LightningModule) -> None:
        """Let masks of a resumed run work where weights are read without calling their layer; on all processes."""
        if not self.rows:
            return
        with run.uncompiled(module):
            live = run.find_network(module, self.settings.network)
            batches = self.settings.calibration(trainer, run.copied(module, self.hooks.changing), limit=1)
            recompute_uncalled(live, as_inputs(next(iter(batches))).first(1))

    def sharpen(self, trainer: Trainer, module: LightningModule) -> None:
        """Undo what averaging did to the masks of the module and its averages, which trade places in validation.

        Masked weights leave their autograd graph on the way, so that the module can be copied between epochs.
        """
        if not self.rows:
            return
        refresh_masked(module)
        averaged = averaged_modules(trainer)
        for each in [module, *averaged] if averaged else []:
            with without_compiled(each):
                restore_masks(run.find_network(each, self.settings.network), self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return masks and position as plain types and tensors."""
        return {
            "masks": {name: kept.cpu() for name, kept in self.rows.items()},
            "epoch": self.epoch,
            "achieved": self.achieved,
            "history": list(self.history),
            "schedule": None if self.schedule is None else self.schedule.plain(),
        }

    def load_state_dict(self, state: Mapping[str, Any], schedule: Steps | None) -> None:
        """Go on where `state_dict` was called, with the callback's schedule and the state's epochs."""
        self.rows, self.epoch = dict(state["masks"]), state["epoch"]
        known = [{"epoch": self.epoch, "achieved": state["achieved"], "widths": {}}] if self.rows else []
        self.history = list(state.get("history", known))  # version 0.1.0 knew the last pruning only
        shape, reached = schedule or Linear(), state["schedule"]
        self.schedule = (
            None if reached is None else dataclasses.replace(shape, **{name: reached[name] for name in shape.epochs})
        )


def described(pruning: Mapping[str, Any]) -> str:
    """Say in words what an epoch has pruned, of an entry of `TrainingMasks.history`."""
    layers = ", ".join(f"{name} {wide} to {left}" for name, (wide, left) in pruning["widths"].items() if left < wide)
    epoch, achieved = pruning["epoch"] + 1, pruning["achieved"]  # as the lines of the training count
    said = f"Epoch {epoch}: {achieved:.1%} of the neurons of the prunable layers are pruned"
    return f"{said}: {layers}" if layers else said


def without_new_biases(graph: Graph) -> Graph:
    """Say of no layer that a bias can be created for it: an optimizer would not know that parameter."""
    layers = (
        dataclasses.replace(layer, calls=tuple(dataclasses.replace(call, owner=None) for call in layer.calls))
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=tuple(layers))


def plain_state_dicts(module: nn.Module) -> None:
    """Let the state dict of a module have the module's own keys, with pruned rows at zero, whether it has masks or not.

    Checkpoints can then be loaded by whoever knows nothing of masks. A module under masks takes such a state dict and
    keeps the masks whose rows are zero in it; the others go. It takes state dicts with torch's masks as well.
    """
    if any(hook is _without_masks for hook in module._state_dict_hooks.values()):
        return
    module.register_state_dict_post_hook(_without_masks)
    module.register_load_state_dict_pre_hook(_match)
    module.register_load_state_dict_post_hook(_refresh)


def _without_masks(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    masks = {name.removesuffix("_mask") for name in state if name.startswith(prefix) and name.endswith("_mask")}
    masked = {name for name in masks if f"{name}_orig" in state}
    if not masked:
        return
    values = dict(state)
    state.clear()  # in place, as the module around this one holds the same dict, and in the order of the entries
    for key, value in values.items():
        name = key.removesuffix("_orig")
        if key.endswith("_orig") and name in masked:
            state[name] = value.detach() * (values[f"{name}_mask"] >= 0.5)  # an average of masks may be blurred
        elif key.removesuffix("_mask") not in masked:
            state[key] = value


def _match(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give a state dict the masks of the module that fit, and the module the masks that the state dict has."""
    for name, (owner, own) in masked_parameters(module).items():
        key, mask = prefix + name, owner.get_buffer(f"{own}_mask")
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != mask.shape:
            continue
        if not bool((value.to(mask.device) != 0)[mask == 0].any()):
            state[f"{key}_orig"], state[f"{key}_mask"] = state.pop(key), mask.clone()
    match_masks(
        module, {name.removeprefix(prefix): value for name, value in state.items() if isinstance(value, Tensor)}
    )


def _refresh(module: nn.Module, incompatible: object) -> None:
    refresh_masked(module)


def averaged_modules(trainer: Trainer) -> list[LightningModule]:
    """Return the averaged copies of the module that the trainer's callbacks keep."""
    kept = [callback._average_model for callback in _averaging(trainer)]
    modules = [average.module for average in kept if average is not None]
    return [module for module in modules if run.is_lightning(module, "LightningModule")]


def _averaging(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.callbacks if run.is_lightning(callback, "WeightAveraging")]


@contextmanager
def averaging_done(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint hold the module although the trainer averages weights; the average is in it by then."""
    callbacks = _averaging(trainer)
    averages = [callback._average_model for callback in callbacks]
    for callback in callbacks:
        callback._average_model = None
    try:
        yield
    finally:
        for callback, average in zip(callbacks, averages, strict=True):
            callback._average_model = average
