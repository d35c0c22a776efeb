"""The pipeline: a network and calibration data in, a narrower one and the proof that it does the same out."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.calibration.data import Calibration, ToInputs, own
from mlprank.calibration.statistics import (
    Arriving,
    Moments,
    Norms,
    PooledMoments,
    View,
    fills_of,
    measure_constants,
    measure_moments,
    measure_norms,
    views_of,
)
from mlprank.compensation import Regression, get_compensation
from mlprank.compensation.readers import zero_rows, zeroed_parameters
from mlprank.graph.records import Graph, Group, Place, State, quoted
from mlprank.graph.trace import check_parameters, quiet_hooks
from mlprank.measures import Reader, get_measure
from mlprank.methods import get_method
from mlprank.methods.adaptive import Adaptive, Costs
from mlprank.pruning.masked_weights import MaskedWeights
from mlprank.pruning.reading import read_network
from mlprank.pruning.recipe import Recipe, make_recipe, takes_recipe
from mlprank.pruning.refine import OnStep, Refinement, lifted, refine
from mlprank.pruning.result import PruningResult
from mlprank.pruning.selection import Scorer, Selection, amounts_by_name, readers_of, select
from mlprank.pruning.self_check import check_agreement
from mlprank.pruning.spending import error_curves, measure_costs, spent_amounts
from mlprank.surgery.copies import is_plain, parametrised, plain_copy
from mlprank.surgery.masks import fill_norms, masked_rows
from mlprank.surgery.narrow import Removal, follow_config, network_state, plan_removal, removable_neurons, with_state
from mlprank.utils.modules import LOCK, device_of, shell


@takes_recipe
def prune(
    model: nn.Module, calibration: Any, recipe: Recipe | None = None, *, inputs: ToInputs | None = None, **fields: Any
) -> PruningResult:
    """Take the least central neurons out of a network.

    Args:
        model: A network, or a LightningModule; left untouched. Neurons that torch's pruning masks
            (`torch.nn.utils.prune`) keep at zero count as pruned, and stay so.
        calibration: A batch, an iterable of batches, a DataLoader or a LightningDataModule. A batch is a tensor of
            shape (N, ...), a tuple of inputs and labels, or a dict of keyword arguments.
        recipe: All choices in one record; those below that are given change it.
        inputs: Makes a call of a batch where the batch does not say it:
            `inputs=lambda batch: ((batch["ids"],), {"mask": batch["mask"]})`.
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
    return Pruning(model, calibration, recipe, inputs=inputs, **fields).run()


@takes_recipe
def score(
    model: nn.Module, calibration: Any, recipe: Recipe | None = None, *, inputs: ToInputs | None = None, **fields: Any
) -> dict[str, Tensor]:
    """Score every neuron of a network.

    Args:
        model: As for `prune`; left untouched.
        calibration: As for `prune`.
        recipe: All choices in one record; those below that are given change it. Scores depend on `measure`, `graph`,
            the calibration data and, for measures that look at it (`modified_pagerank` with `z_importance`), on
            `amount`.
        inputs: As for `prune`.
        **fields: The fields of `Recipe`, by name.

    Returns:
        For every layer in forward order, shape (n_out,), non-negative with sum 1; larger means keep.

    Raises:
        TypeError: As `prune`.
        ValueError: As `prune`.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> [tuple(scores.shape) for scores in mlprank.score(network, torch.randn(64, 8)).values()]
        [(16,), (2,)]
    """
    given = {"amount": 0.0, **fields} if recipe is None else fields
    return Pruning(model, calibration, recipe, inputs=inputs, **given).scores()


class Pruning:
    """A network that has been read once, to be scored and pruned in any number of ways; the network is never changed.

    Args:
        model: As for `prune`.
        calibration: As for `prune`.
        recipe: As for `prune`; what `run` and `scores` go by unless they are told otherwise.
        reduce: Sums a tensor over processes, where several of them calibrate together.
        traced: The `Pruning.graph` of a network of the same class and sizes, which saves reading this one again.
        inputs: As for `prune`.

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
        inputs: ToInputs | None = None,
        **fields: Any,
    ) -> None:
        self.recipe = make_recipe(recipe, fields)
        inner = unwrap(model)
        with LOCK:
            check_parameters(inner)
            self.model = shell(inner) if is_plain(inner) else plain_copy(inner)
        self.state: State = network_state(self.model)
        self.baked = parametrised(inner)
        self.calibration = Calibration(
            calibration,
            device=device_of(self.model),
            num_samples=self.recipe.num_samples,
            seed=self.recipe.seed,
            reduce=reduce,
            inputs=inputs,
            model=self.model,
        )
        example = self.calibration.example
        quiet_hooks(self.model, example)
        self.graph = traced or read_network(inner, self.model, self.state, example, self.calibration.varying)
        rows = masked_rows(inner, {layer.weight: layer.kind.weight_out for layer in self.graph.layers})
        self.already = {layer.name: rows[layer.weight] for layer in self.graph.layers if layer.weight in rows}
        # What has been measured of the dense network, each once.
        self._known_norms: dict[bool, Norms] = {}
        self._known_moments: dict[View, Moments] = {}
        self._known_curves: dict[str, Tensor] = {}
        self._known_costs: dict[tuple[Adaptive, tuple[str, ...]], Costs] = {}
        self._known_arriving: dict[tuple[tuple[str, ...], bool], Mapping[Place, Arriving]] = {}

    def norms(self, *, chain: bool) -> Norms:
        """Norms of the dense network on the calibration data; each reading's are measured once."""
        if chain not in self._known_norms:
            self._known_norms[chain] = measure_norms(self.graph, self.state, self.calibration, chain=chain)
        return self._known_norms[chain]

    def moments(self, views: Iterable[View]) -> PooledMoments:
        """Measure moments of what layers read in the dense network, each once."""
        wanted = list(dict.fromkeys(views))
        missing = [view for view in wanted if view not in self._known_moments]
        self._known_moments.update(
            measure_moments(self.graph, self.state, self.calibration, missing) if missing else {}
        )
        return {view: self._known_moments[view] for view in wanted if view in self._known_moments}

    @takes_recipe
    def scores(
        self, recipe: Recipe | None = None, *, amounts: Mapping[str, float] | None = None, **fields: Any
    ) -> dict[str, Tensor]:
        """Score every layer of the dense network, as `mlprank.score` does.

        Args:
            recipe: All choices in one record, the one this was made with by default; those below that are given change
                it.
            amounts: The amount of every layer, where it has been worked out already.
            **fields: The fields of `Recipe`, by name.
        """
        recipe = make_recipe(recipe or self.recipe, fields)
        if amounts is None:
            amounts = amounts_by_name(recipe.amount, [layer.name for layer in self.graph.layers])

        def readers(group: Group) -> tuple[Reader, ...]:
            index = self.graph.group_by_name[group.name]
            views = [view for layer in self.graph.readers_of(group) for view in views_of(layer, index)]
            return readers_of(self.graph, self.state, index, self.moments(views))

        measure, norms = get_measure(recipe.measure), self.norms(chain=recipe.chain)
        return Scorer(self.graph, self.state, norms, measure, readers, recipe.chain, amounts).layers()

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
        arriving = self._arriving(recipe, selection)
        folds = not isinstance(compensation, Regression)
        weights = MaskedWeights(
            self.graph,
            self.state,
            recipe=recipe,
            selection=selection,
            removable=removable_neurons(self.graph, arriving, folds=folds),
            norms=self.norms(chain=recipe.chain),
            calibration=self.calibration,
            known=self._known_moments,
        )
        amounts = {name: selection.amounts[unit] for unit, layers in selection.units.items() for name in layers}
        if recipe.scores_on_pruned:
            weights.from_pruned()
        else:
            weights.from_scores(self.scores(recipe, amounts=amounts) if scores is None else scores)
        filled = weights.fills()
        fills = {norm.module: filled[norm.node] for norm in self.graph.norms if norm.node in filled}
        if folds:  # what a neuron sends through layers along other axes depends on what these have lost
            arriving = measure_constants(self.graph, weights.state, self.calibration, fills=filled)
        removal = plan_removal(self.graph, weights.state, weights.groups(), arriving if folds else None)
        masked, narrow = with_state(self.model, weights.state), with_state(self.model, removal.state)
        fill_norms(masked, fills)
        follows = follow_config(narrow, {name: tuple(tensor.shape) for name, tensor in self.state.items()})
        keeps_bias = compensation.keeps_bias
        result = PruningResult(
            model=narrow,
            masked=masked,
            scores=weights.scores,
            masks=weights.masks,
            recipe=recipe,
            whole=selection.whole,
            held_back=weights.held_back,
            slices={name: dims for name, dims in removal.slices.items() if name in self.state},
            biases=tuple(name for name in removal.state if name not in self.state),
            parameter_masks={
                **zeroed_parameters(self.graph, weights.state, weights.masks, keeps_bias=keeps_bias),
                **{norm.weight: fills[norm.module].kept for norm in self.graph.norms if norm.module in fills},
            },
            max_difference=check_agreement(masked, narrow, self.calibration.example, self.graph),
            dense=self.model,
            example=self.calibration.example.first(1).sole,
            widths=self._widths(weights.scores, removal),
            fills=fills,
            units={layer.name: layer.kind.unit for layer in self.graph.layers},
            notes=self._notes(weights.by_channel, follows=follows),
        )
        return self.refined(result, recipe.refine, on_step) if isinstance(recipe.refine, Refinement) else result

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
        units = {unit: self.graph.groups[self.graph.group_by_name[unit]] for unit in selection.units}
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
            views = [
                view
                for group in missing.values()
                for layer in self.graph.readers_of(group)
                for view in views_of(layer, self.graph.group_by_name[group.name])
            ]
            moments = self.moments(views)
            self._known_curves.update(
                error_curves(self.graph, self.state, missing, moments=moments, calibration=self.calibration)
            )
        return {unit: self._known_curves[unit] for unit in units}

    def costs(self, method: Adaptive, units: Mapping[str, Group]) -> Costs:
        """What the network costs as a function of its units' widths, in what the method counts; measured once."""
        kind = (method, tuple(units))
        if kind not in self._known_costs:
            example = self.calibration.example
            if method.count == "latency":
                example = example.first(1).repeated(method.batch_size)
            self._known_costs[kind] = measure_costs(
                self.graph, self.model, self.state, units, count=method.count, example=example
            )
        return self._known_costs[kind]

    def refined(self, result: PruningResult, by: Refinement, on_step: OnStep | None = None) -> PruningResult:
        """Refine a pruning of this network: train the narrow network, and give the masked one the same changes."""
        refined, losses = refine(result.model, self.model, self.calibration, by=by, on_step=on_step)
        before, after, masked = (network_state(each) for each in (result.model, refined, result.masked))
        for norm in {norm.weight: norm for norm in self.graph.norms}.values():
            # The gain of a narrower normalisation is larger than the masked one's by this factor.
            factor = math.sqrt(len(after[norm.weight]) / len(masked[norm.weight]))
            before[norm.weight], after[norm.weight] = before[norm.weight] * factor, after[norm.weight] * factor
        return replace(
            result,
            recipe=replace(result.recipe, refine=by),
            model=refined,
            masked=with_state(result.masked, lifted(masked, before, after, result.slices)),
            losses=losses,
        )

    def _widths(self, scores: Mapping[str, Tensor], removal: Removal) -> dict[str, tuple[int, int]]:
        """Neurons of every layer in the dense and in the narrow network."""
        widths = {}
        for name in scores:
            layer = self.graph.by_name[name]
            kept = removal.slices.get(layer.weight, {}).get(layer.kind.weight_out)
            size = self.state[layer.weight].shape[layer.kind.weight_out]
            ratio = layer.out_features // size  # of a grouped transposed convolution every group has these
            widths[name] = (layer.out_features, (size if kept is None else len(kept)) * ratio)
        return widths

    def _notes(self, by_channel: list[str], *, follows: bool) -> tuple[str, ...]:
        """What a report should say besides."""
        notes = []
        if by_channel:
            notes.append(
                "Mended by one coefficient a neuron, as whole weights see too much to be fitted: "
                f"{', '.join(quoted(by_channel))}."
            )
        if self.baked:
            notes.append(f"Computed before every forward pass, now plain parameters: {', '.join(quoted(self.baked))}.")
        if not follows:
            notes.append(
                "The network's config cannot state its widths, so that from_pretrained builds another one: keep the "
                "file that save() writes, or protect the layers that end with a width of their own."
            )
        return tuple(notes)

    def _arriving(self, recipe: Recipe, selection: Selection) -> Mapping[Place, Arriving]:
        """What zeroed neurons send on."""
        compensation = get_compensation(recipe.compensation)
        tied = [
            group for group in self.graph.groups if len(group.layers) > 1 and set(group.layers) & set(selection.units)
        ]
        if isinstance(compensation, Regression) and recipe.chain and tied:
            raise ValueError(
                f'graph="chain" prunes {", ".join(tied[0].layers)} independently although they share their neurons;'
                " there"
                ' compensation="constant" and "zero" are defined, or use graph="dag"'
            )
        keeps_bias = compensation.keeps_bias
        kind = (tuple(selection.units), keeps_bias)
        if kind not in self._known_arriving:
            groups = {
                group.name: torch.zeros(group.width, dtype=torch.bool)
                for group in self.graph.groups
                if group.name in selection.units or (recipe.chain and set(group.layers) & set(selection.units))
            }
            if recipe.chain:
                none = {
                    name: torch.zeros(self.graph.by_name[name].out_features, dtype=torch.bool)
                    for name in selection.units
                }
            else:
                none = {
                    layer.name: mask
                    for layer in self.graph.layers
                    if not bool((mask := self.graph.kept_entries(groups, layer.made)).all())
                }
            emptied = zero_rows(self.graph, self.state, none, keeps_bias=keeps_bias)
            fills = fills_of(self.graph, groups)
            self._known_arriving[kind] = measure_constants(self.graph, emptied, self.calibration, fills=fills)
        return self._known_arriving[kind]


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
