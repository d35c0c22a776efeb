"""Pruning in the middle of training: masks on the live module, the compensated weights in its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from mlprank.callbacks.averaging import prune_averages
from mlprank.callbacks.batches import calibration_batches, has_calibration_data, samples_of_rank
from mlprank.callbacks.networks import copied, find_network, uncompiled
from mlprank.callbacks.ranks import check_same_masks, share_weights, summed
from mlprank.callbacks.schedule import Schedule, is_zero
from mlprank.callbacks.settings import Settings
from mlprank.compensation import Regression
from mlprank.graph.records import Graph
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.selection import select
from mlprank.surgery.masks import mask_rows, recompute_uncalled, write_weights


class TrainingMasks:
    """The masks of a network that is pruned while it trains.

    Its parameters stay the same objects, so that an optimizer goes on with the state that it has for them.

    Args:
        settings: What to do.

    Attributes:
        rows: For every masked parameter of the network, shape (n_out,), True for the rows that stay.
        epoch: The epoch of the last pruning; -1 before the first.
        achieved: Pruned neurons as a share of the neurons of the prunable layers.
        schedule: When to prune how much, once the length of training is known.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rows: dict[str, Tensor] = {}
        self.epoch, self.achieved = -1, 0.0
        self.schedule: Schedule | None = None
        self._graph: Graph | None = None

    @property
    def complete(self) -> bool:
        """Whether the schedule, if there is one, has come to its end."""
        return self.schedule is None or self.epoch >= (self.schedule.end_epoch or 0)

    def due(self, epoch: int) -> float | Mapping[str, float] | None:
        """Return the amount that an epoch is to start with, or None where it prunes nothing."""
        if self.schedule is None or self.schedule.end_epoch is None:
            return None
        scheduled = min(epoch, self.schedule.end_epoch)
        amount = self.schedule.at(scheduled, self.settings.amounts[0]) if self.epoch < scheduled else None
        return None if amount is None or is_zero(amount) else amount

    def prune(self, trainer: Trainer, module: LightningModule, amount: float | Mapping[str, float]) -> None:
        """Prune up to an absolute amount; call it on all processes.

        Args:
            trainer: The run.
            module: Its module; changed in place.
            amount: The share of neurons that are pruned afterwards.
        """
        settings = self.settings
        pruning = self._read(trainer, module)
        if isinstance(settings.recipe.compensation, Regression):
            pruning.graph = without_new_biases(pruning.graph)
        result = pruning.run(amount=amount, refine=0)  # only masks are wanted
        for name, kept in result.parameter_masks.items():
            self.rows[name] = kept & self.rows[name].to(kept.device) if name in self.rows else kept
        check_same_masks(trainer, self.rows)
        before = dict(pruning.model.named_parameters())
        after = {name: weight.detach() for name, weight in result.masked.named_parameters()}
        changed = {name: weight for name, weight in after.items() if not torch.equal(weight, before[name])}
        share_weights(trainer, changed.values())
        with uncompiled(module):
            live = find_network(module, settings.network)
            mask_rows(live, self.rows)
            write_weights(live, changed)
            recompute_uncalled(live, result.example)
        prune_averages(trainer, settings.network, rows=self.rows, weights=changed)
        self._graph, self.achieved, self.epoch = pruning.graph, result.achieved, trainer.current_epoch

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """See that there is data to calibrate on and a network to prune, before hours are spent; call it on all processes.

        Raises:
            TypeError: As `mlprank.prune`.
            ValueError: As `mlprank.prune`.
        """
        if not has_calibration_data(trainer):
            return
        settings, pruning = self.settings, self._read(trainer, module)
        for amount in settings.amounts:
            select(
                pruning.graph,
                amount=amount,
                protect=settings.recipe.protect,
                protect_output=settings.recipe.protect_output,
                chain=settings.recipe.chain,
            )
        self._graph = pruning.graph if self.schedule is not None else None

    def _read(self, trainer: Trainer, module: LightningModule) -> Pruning:
        settings = self.settings
        network = find_network(copied(module), settings.network)
        return Pruning(
            network,
            calibration_batches(trainer, network, num_samples=settings.num_samples, seed=settings.recipe.seed),
            dataclasses.replace(settings.recipe, num_samples=samples_of_rank(trainer, settings.num_samples)),
            reduce=partial(summed, trainer),
            traced=self._graph,
        )

    def hold(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep the masks of a resumed network working; call it on all processes."""
        if not self.rows:
            return
        with uncompiled(module):
            live = find_network(module, self.settings.network)
            batches = calibration_batches(
                trainer, live, num_samples=self.settings.num_samples, seed=self.settings.recipe.seed
            )
            recompute_uncalled(live, next(iter(batches))[0][:1])

    def state_dict(self) -> dict[str, Any]:
        """Return masks and position as plain types and tensors."""
        return {
            "masks": {name: kept.cpu() for name, kept in self.rows.items()},
            "epoch": self.epoch,
            "achieved": self.achieved,
            "schedule": None if self.schedule is None else self.schedule.plain(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.rows, self.epoch, self.achieved = dict(state["masks"]), state["epoch"], state["achieved"]
        self.schedule = None if state["schedule"] is None else Schedule.from_plain(state["schedule"])


def without_new_biases(graph: Graph) -> Graph:
    """Say of no layer that a bias can be created for it: an optimizer would not know a parameter that is born in training."""
    layers = (
        dataclasses.replace(layer, calls=tuple(dataclasses.replace(call, owner=None) for call in layer.calls))
        for layer in graph.layers
    )
    return dataclasses.replace(graph, layers=tuple(layers))
