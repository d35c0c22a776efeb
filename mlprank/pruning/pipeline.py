"""The pipeline: a network and calibration data in, a narrower network and the proof that it computes the same function out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.calibration.data import Calibration, own
from mlprank.calibration.statistics import (
    Moments,
    Norms,
    PooledMoments,
    measure_constants,
    measure_moments,
    measure_norms,
)
from mlprank.compensation import Regression, get_compensation, zero_rows, zeroed_parameters
from mlprank.graph.records import Graph, Group, Layer, State
from mlprank.graph.trace import trace
from mlprank.measures import Reader, get_measure
from mlprank.methods import get_method
from mlprank.methods.adaptive import Adaptive, Costs
from mlprank.pruning.importance import readers_of, score_layers
from mlprank.pruning.masked_weights import MaskedWeights
from mlprank.pruning.recipe import Recipe, make_recipe, takes_recipe
from mlprank.pruning.refine import OnStep, Refinement, lifted, refine
from mlprank.pruning.result import PruningResult
from mlprank.pruning.selection import Selection, amounts_by_name, select
from mlprank.pruning.self_check import check_agreement
from mlprank.pruning.spending import Sensitivity, error_curves, measure_costs, measure_sensitivities, spent_amounts
from mlprank.surgery.copies import is_plain, plain_copy
from mlprank.surgery.masks import masked_rows
from mlprank.surgery.narrow import network_state, plan_removal, removable_neurons, with_state
from mlprank.utils.modules import device_of


@takes_recipe
def prune(model: nn.Module, calibration: Any, recipe: Recipe | None = None, **fields: Any) -> PruningResult:
    """Take the least central neurons out of a network.

    Args:
        model: A network of one input, or a LightningModule; left untouched. Neurons that torch's pruning masks
            (`torch.nn.utils.prune`) keep at zero count as pruned, and stay so.
        calibration: A batch of inputs, shape (N, ...), an iterable of batches, a DataLoader or a LightningDataModule.
        recipe: All choices in one record; those below that are given change it.
        **fields: The fields of `Recipe`, by name.

    Returns:
        The narrow network, the masked one, scores, masks and the report. Both networks agree on the calibration batch.

    Raises:
        TypeError: If the network or the data are of a kind that cannot be pruned.
        ValueError: If an argument is out of range, nothing can be pruned, or the narrow network does not compute what
            the masked one does.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> mlprank.prune(network, torch.randn(64, 8), amount=0.25).model[0].out_features
        12
    """
    return Pruning(model, calibration, recipe, **fields).run()


@takes_recipe
def score(model: nn.Module, calibration: Any, recipe: Recipe | None = None, **fields: Any) -> dict[str, Tensor]:
    """Score every neuron of a network.

    Args:
        model: As for `prune`; left untouched.
        calibration: As for `prune`.
        recipe: All choices in one record; those below that are given change it. Scores depend on `measure`, `graph`, the
            calibration data and, for measures that look at it (`modified_pagerank` with `z_importance`), on `amount`.
        **fields: The fields of `Recipe`, by name.

    Returns:
        For every linear layer in forward order, shape (n_out,), non-negative with sum 1; larger means keep.

    Raises:
        TypeError: As `prune`.
        ValueError: As `prune`.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> [tuple(scores.shape) for scores in mlprank.score(network, torch.randn(64, 8)).values()]
        [(16,), (2,)]
    """
    return Pruning(model, calibration, recipe, **({"amount": 0.0, **fields} if recipe is None else fields)).scores()


class Pruning:
    """A network that has been read once, to be scored and pruned in any number of ways; the network is never changed.

    Args:
        model: As for `prune`.
        calibration: As for `prune`.
        recipe: As for `prune`; what `run` and `scores` go by unless they are told otherwise.
        reduce: Sums a tensor over processes, where several of them calibrate together.
        traced: The `Pruning.graph` of a network of the same class and sizes, which saves reading this one again.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> pruning = mlprank.Pruning(network, torch.randn(64, 8), round_to=4)
        >>> [pruning.run(amount=amount).model[0].out_features for amount in (0.25, 0.7)]
        [12, 8]
    """

    @takes_recipe
    def __init__(
        self,
        model: nn.Module,
        calibration: Any,
        recipe: Recipe | None = None,
        *,
        reduce: Callable[[Tensor], Tensor] = own,
        traced: Graph | None = None,
        **fields: Any,
    ) -> None:
        self.recipe = make_recipe(recipe, fields)
        inner = unwrap(model)
        self.model = inner if is_plain(inner) else plain_copy(inner)
        self.calibration = Calibration(
            calibration,
            device=device_of(self.model),
            num_samples=self.recipe.num_samples,
            seed=self.recipe.seed,
            reduce=reduce,
        )
        self.graph = trace(self.model, self.calibration.example) if traced is None else traced
        self.state: State = network_state(self.model)
        rows = masked_rows(inner)
        self.already = {layer.name: rows[layer.weight] for layer in self.graph.layers if layer.weight in rows}

    def norms(self, *, chain: bool) -> Norms:
        """Norms of the dense network on the calibration data; each reading's are measured once."""
        if chain not in self._known_norms:
            self._known_norms[chain] = measure_norms(self.graph, self.state, self.calibration, chain=chain)
        return self._known_norms[chain]

    @cached_property
    def _known_norms(self) -> dict[bool, Norms]:
        return {}

    def moments(self, state: State, readers: Iterable[Layer]) -> PooledMoments:
        """Measure moments of what layers read, with the given weights; those of the dense network only once."""
        values = dict.fromkeys(layer.sources for layer in readers)
        known = self._dense_moments if state is self.state else {}
        missing = [value for value in values if value not in known]
        known.update(measure_moments(self.graph, state, self.calibration, missing) if missing else {})
        return {value: known[value] for value in values}

    @cached_property
    def _dense_moments(self) -> dict[tuple[str, ...], Moments]:
        return {}

    @takes_recipe
    def scores(
        self, recipe: Recipe | None = None, *, amounts: Mapping[str, float] | None = None, **fields: Any
    ) -> dict[str, Tensor]:
        """Score every layer of the dense network, as `mlprank.score` does.

        Args:
            recipe: All choices in one record, the one this was made with by default; those below that are given change it.
            amounts: The amount of every layer, where it has been worked out already.
            **fields: The fields of `Recipe`, by name.
        """
        recipe = make_recipe(recipe or self.recipe, fields)
        if amounts is None:
            amounts = amounts_by_name(recipe.amount, [layer.name for layer in self.graph.layers])

        def readers(group: Group) -> tuple[Reader, ...]:
            moments = self.moments(self.state, self.graph.readers_of(group))
            return readers_of(self.graph, self.state, group, moments)

        return score_layers(
            self.graph,
            self.state,
            self.norms(chain=recipe.chain),
            measure=get_measure(recipe.measure),
            amounts=amounts,
            readers=readers,
            chain=recipe.chain,
        )

    @takes_recipe
    def run(
        self,
        recipe: Recipe | None = None,
        *,
        scores: Mapping[str, Tensor] | None = None,
        on_step: OnStep | None = None,
        **fields: Any,
    ) -> PruningResult:
        """Prune in one way.

        Args:
            recipe: All choices in one record, the one this was made with by default; those below that are given change
                it. Calibration samples have been chosen already.
            scores: What `Pruning.scores` gave for the same measure, where they are at hand; a measure that must see the
                pruned network below a layer scores anew.
            on_step: Told after every step of `refine` how many of how many are done.
            **fields: The fields of `Recipe`, by name.
        """
        recipe = make_recipe(recipe or self.recipe, fields)
        compensation = get_compensation(recipe.compensation)
        selection = self.selection(recipe)
        constants = self._constants(recipe, selection)
        folds = not isinstance(compensation, Regression)
        weights = MaskedWeights(
            self.graph,
            self.state,
            recipe=recipe,
            selection=selection,
            removable=removable_neurons(self.graph, constants, folds=folds),
            norms=self.norms(chain=recipe.chain),
            moments=self.moments,
        )
        amounts = {name: selection.amounts[unit] for unit, layers in selection.units.items() for name in layers}
        if recipe.scores_on_pruned:
            made = weights.from_pruned()
        else:
            made = weights.from_scores(self.scores(recipe, amounts=amounts) if scores is None else scores)
        masked = with_state(self.model, made.state)
        removal = plan_removal(self.graph, made.state, made.masks, constants if folds else None)
        narrow = with_state(self.model, removal.state)
        keeps_bias = compensation.keeps_bias
        result = PruningResult(
            model=narrow,
            masked=masked,
            scores=made.scores,
            masks=made.masks,
            recipe=recipe,
            whole=selection.whole,
            held_back=made.held_back,
            slices={name: dims for name, dims in removal.slices.items() if name in self.state},
            biases=tuple(name for name in removal.state if name not in self.state),
            parameter_masks=zeroed_parameters(self.graph, made.state, made.masks, keeps_bias=keeps_bias),
            max_difference=check_agreement(masked, narrow, self.calibration.example, self.graph),
            dense=self.model,
            example=self.calibration.example[:1],
        )
        return self._refined(result, recipe.refine, on_step) if isinstance(recipe.refine, Refinement) else result

    def selection(self, recipe: Recipe) -> Selection:
        """What a recipe may prune, and how much of it; an adaptive method has spent its budget there."""
        selection = select(
            self.graph,
            amount=recipe.amount,
            protect=recipe.protect,
            protect_output=recipe.protect_output,
            chain=recipe.chain,
            already=self.already,
        )
        method = get_method(recipe.method)
        if not isinstance(method, Adaptive):
            return selection
        if recipe.chain:
            raise ValueError('method="adaptive" goes by the true graph of neurons; use graph="dag"')
        units = {unit: self.graph.group_of(unit) for unit in selection.units}
        amounts = spent_amounts(
            selection,
            self._error_curves(units),
            self.costs(method, units),
            method=method,
            min_neurons=recipe.min_neurons,
            round_to=recipe.round_to,
        )
        return replace(selection, amounts=amounts)

    def _error_curves(self, units: Mapping[str, Group]) -> Mapping[str, Tensor]:
        """The units' error curves on the dense network; each is worked out once."""
        missing = {unit: group for unit, group in units.items() if unit not in self._known_curves}
        if missing:
            if not self._known_sensitivities:
                self._known_sensitivities.update(measure_sensitivities(self.graph, self.state, self.calibration))
            readers = [layer for group in missing.values() for layer in self.graph.readers_of(group)]
            self._known_curves.update(
                error_curves(
                    self.graph,
                    self.state,
                    missing,
                    moments=self.moments(self.state, readers),
                    sensitivities=self._known_sensitivities,
                )
            )
        return {unit: self._known_curves[unit] for unit in units}

    def costs(self, method: Adaptive, units: Mapping[str, Group]) -> Costs:
        """What the network costs as a function of its units' widths, in what the method counts; measured once."""
        kind = (method, tuple(units))
        if kind not in self._known_costs:
            example = self.calibration.example
            if method.count == "latency":
                example = example.repeat(-(-method.batch_size // len(example)), *[1] * (example.dim() - 1))
            self._known_costs[kind] = measure_costs(
                self.graph, self.model, self.state, units, count=method.count, example=example[: method.batch_size]
            )
        return self._known_costs[kind]

    @cached_property
    def _known_curves(self) -> dict[str, Tensor]:
        return {}

    @cached_property
    def _known_sensitivities(self) -> dict[str, Sensitivity]:
        return {}

    @cached_property
    def _known_costs(self) -> dict[tuple[Adaptive, tuple[str, ...]], Costs]:
        return {}

    def _refined(self, result: PruningResult, by: Refinement, on_step: OnStep | None) -> PruningResult:
        """Refine the narrow network, and give the masked one the same changes."""
        found = refine(result.model, self.model, self.calibration, by=by, on_step=on_step)
        before, after, masked = (network_state(each) for each in (result.model, found.model, result.masked))
        return replace(
            result,
            model=found.model,
            masked=with_state(result.masked, lifted(masked, before, after, result.slices)),
            losses=(found.loss_before, found.loss_after),
        )

    def _constants(self, recipe: Recipe, selection: Selection) -> State:
        """What zeroed neurons send on."""
        compensation = get_compensation(recipe.compensation)
        tied = [
            group for group in self.graph.groups if len(group.layers) > 1 and set(group.layers) & set(selection.units)
        ]
        if isinstance(compensation, Regression) and recipe.chain and tied:
            raise ValueError(
                f'graph="chain" prunes {", ".join(tied[0].layers)} independently although they share their neurons; there'
                ' compensation="constant" and "zero" are defined, or use graph="dag"'
            )
        layers = tuple(name for unit in selection.units.values() for name in unit)
        kind = (layers, compensation.keeps_bias)
        if kind not in self._known_constants:
            none = {
                name: torch.zeros_like(self.state[self.graph.by_name[name].weight][:, 0], dtype=torch.bool)
                for name in layers
            }
            emptied = zero_rows(self.graph, self.state, none, keeps_bias=compensation.keeps_bias)
            self._known_constants[kind] = measure_constants(self.graph, emptied, self.calibration)
        return self._known_constants[kind]

    @cached_property
    def _known_constants(self) -> dict[tuple[tuple[str, ...], bool], State]:
        return {}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile` and data-parallel wrappers.

    Raises:
        TypeError: If it is no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner
