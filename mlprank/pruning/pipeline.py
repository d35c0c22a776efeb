"""The pipeline: a network and calibration data in, a narrower one and the proof that it does the same out."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

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
from mlprank.compensation import (
    Compensation,
    LeastSquares,
    Mean,
    Regression,
    get_compensation,
    predict,
    zero_rows,
    zeroed_parameters,
)
from mlprank.costs.metrics import count_flops, count_parameters, measure_latency, size_bytes
from mlprank.graph.layers import Embedding
from mlprank.graph.program import Inputs
from mlprank.graph.records import Graph, Place, State, quoted
from mlprank.graph.trace import check_parameters, quiet_hooks
from mlprank.measures import Reader, get_measure
from mlprank.measures.reconstruction import reconstruction_gains
from mlprank.methods import get_method
from mlprank.methods.adaptive import Adaptive, Costs, Term, error_curve, spend
from mlprank.methods.ranked import sole_amount
from mlprank.pruning.masked_weights import MaskedWeights
from mlprank.pruning.reading import check_agreement, read_network
from mlprank.pruning.recipe import Recipe, make_recipe, takes_recipe
from mlprank.pruning.refine import OnStep, Refinement, refine
from mlprank.pruning.result import PruningResult
from mlprank.pruning.selection import Scorer, Selection, amounts_by_name, readers_of, select
from mlprank.surgery.masks import fill_norms, is_plain, masked_rows, parametrised, plain_copy
from mlprank.surgery.narrow import follow_config, network_state, plan_removal, removable_neurons, with_state
from mlprank.utils.modules import LOCK, device_of, shell

_NUM_SAMPLES = 128
_UNEXPLAINED = 0.05
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _once(method: _Method) -> _Method:
    """Let a method of `Pruning` measure once what its arguments ask for."""

    @wraps(method)
    def remembering(self: "Pruning", *args: Any, **kwargs: Any) -> Any:
        what = (method.__name__, args, *kwargs.items())
        if what not in self._known:
            self._known[what] = method(self, *args, **kwargs)
        return self._known[what]

    return cast(_Method, remembering)


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
    """Score every neuron of a network; arguments and errors are those of `prune`.

    Scores depend on `measure`, `graph`, the calibration data and, for measures that look at it (`modified_pagerank`
    with `z_importance`), on `amount`.

    Args:
        model: Left untouched.
        calibration: A batch, an iterable of batches, a DataLoader or a LightningDataModule.
        recipe: All choices in one record; those below that are given change it.
        inputs: Makes a call of a batch where the batch does not say it.
        **fields: The fields of `Recipe`, by name.

    Returns:
        For every layer in forward order, shape (n_out,), non-negative with sum 1; larger means keep.

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
        self._known: dict[Hashable, Any] = {}
        self._known_moments: dict[View, Moments] = {}

    @_once
    def norms(self, *, chain: bool) -> Norms:
        """Norms of the dense network on the calibration data, in each reading."""
        return measure_norms(self.graph, self.state, self.calibration, chain=chain)

    def _moments(self, *groups: int) -> PooledMoments:
        """Moments of groups in the dense network, as their readers see them; each is measured once."""
        pairs = [(layer, index) for index in groups for layer in self.graph.readers_of(self.graph.groups[index])]
        views = dict.fromkeys(view for layer, index in pairs for view in views_of(layer, index))
        if missing := [view for view in views if view not in self._known_moments]:
            self._known_moments.update(measure_moments(self.graph, self.state, self.calibration, missing))
        return {view: self._known_moments[view] for view in views if view in self._known_moments}

    @takes_recipe
    def scores(
        self, recipe: Recipe | None = None, *, amounts: Mapping[str, float] | None = None, **fields: Any
    ) -> dict[str, Tensor]:
        """Score every layer of the dense network, as `mlprank.score` does.

        Args:
            recipe: All choices in one record, by default the one this was made with; fields that are given change it.
            amounts: The amount of every layer, where it has been worked out already.
            **fields: The fields of `Recipe`, by name.
        """
        recipe = make_recipe(recipe or self.recipe, fields)
        if amounts is None:
            amounts = amounts_by_name(recipe.amount, [layer.name for layer in self.graph.layers])
        measure, norms = get_measure(recipe.measure), self.norms(chain=recipe.chain)

        def readers(index: int) -> tuple[Reader, ...]:
            return readers_of(self.graph, self.state, index, self._moments(index))

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
        graph, selection = self.graph, self.selection(recipe)
        compensation = get_compensation(recipe.compensation)
        weights = self._masked(recipe, selection, compensation, scores)
        filled = weights.fills()
        fills = {norm.module: filled[norm.node] for norm in graph.norms if norm.node in filled}
        arriving: Mapping[Place, Arriving] = {}
        if not isinstance(compensation, Regression):
            # What a neuron sends through layers along other axes depends on what these have lost.
            arriving = measure_constants(graph, weights.state, self.calibration, fills=filled)
        state, slices = plan_removal(graph, weights.state, weights.groups(), arriving)
        masked, narrow = with_state(self.model, weights.state), with_state(self.model, state)
        fill_norms(masked, fills)
        widths = {}
        for layer in (graph.by_name[name] for name in weights.scores):
            before, after = (each[layer.weight].shape[layer.kind.weight_out] for each in (self.state, state))
            # Of a grouped transposed convolution the weight has the outputs of one group.
            widths[layer.name] = (layer.out_features, layer.out_features * after // before)
        told = {
            "Mended by one coefficient a neuron, as whole weights see too much to be fitted": weights.by_channel,
            "Computed before every forward pass, now plain parameters": self.baked,
        }
        notes = [f"{what}: {', '.join(quoted(names))}." for what, names in told.items() if names]
        if not follow_config(narrow, {name: tuple(tensor.shape) for name, tensor in self.state.items()}):
            notes.append(
                "The network's config cannot state its widths, so that from_pretrained builds another one: keep the "
                "file that save() writes, or protect the layers that end with a width of their own."
            )
        result = PruningResult(
            model=narrow,
            masked=masked,
            scores=weights.scores,
            masks=weights.masks,
            recipe=recipe,
            whole=selection.whole,
            held_back=weights.held_back,
            slices={name: dims for name, dims in slices.items() if name in self.state},
            biases=tuple(name for name in state if name not in self.state),
            parameter_masks={
                **zeroed_parameters(graph, weights.state, weights.masks, keeps_bias=compensation.keeps_bias),
                **{norm.weight: fills[norm.module].kept for norm in graph.norms if norm.module in fills},
            },
            max_difference=check_agreement(masked, narrow, self.calibration.example, graph),
            dense=self.model,
            example=self.calibration.example[:1].sole,
            widths=widths,
            fills=fills,
            units={layer.name: layer.kind.unit for layer in graph.layers},
            notes=tuple(notes),
        )
        return self.refined(result, recipe.refine, on_step) if isinstance(recipe.refine, Refinement) else result

    def _masked(
        self, recipe: Recipe, selection: Selection, compensation: Compensation, scores: Mapping[str, Tensor] | None
    ) -> MaskedWeights:
        """The network with rows of zeros, its readers mended."""
        folds, units = not isinstance(compensation, Regression), tuple(selection.units)
        tied = [group for group in self.graph.groups if len(group.layers) > 1 and set(group.layers) & set(units)]
        if recipe.chain and tied and not folds:
            raise ValueError(
                f'graph="chain" prunes {", ".join(tied[0].layers)} independently although they share their neurons; '
                'there compensation="constant" and "zero" are defined, or use graph="dag"'
            )
        arriving = self._arriving(units, chain=recipe.chain, keeps_bias=compensation.keeps_bias)
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
        if scores is None and not recipe.scores_on_pruned:
            amounts = {name: selection.amounts[unit] for unit, layers in selection.units.items() for name in layers}
            scores = self.scores(recipe, amounts=amounts)
        weights.prune(None if recipe.scores_on_pruned else scores)
        return weights

    @_once
    def _arriving(self, units: tuple[str, ...], *, chain: bool, keeps_bias: bool) -> Mapping[Place, Arriving]:
        """What neurons would send on if all that may be pruned were zeroed."""
        graph, asked = self.graph, set(units)
        pruned = (group for group in graph.groups if group.name in asked or (chain and asked & set(group.layers)))
        groups = {group.name: torch.zeros(group.width, dtype=torch.bool) for group in pruned}
        masks = {layer.name: graph.kept_entries(groups, layer.made) for layer in graph.layers}
        if chain:
            masks = {name: torch.zeros_like(masks[name]) for name in units}
        masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        state = zero_rows(graph, self.state, masks, keeps_bias=keeps_bias)
        return measure_constants(graph, state, self.calibration, fills=fills_of(graph, groups))

    def selection(self, recipe: Recipe) -> Selection:
        """What a recipe may prune, and how much of it; an adaptive method has spent its budget there."""
        selection = select(self.graph, recipe, already=self.already)
        method = get_method(recipe.method)
        if not isinstance(method, Adaptive):
            return selection
        if recipe.chain:
            raise ValueError('method="adaptive" goes by the true graph of neurons; use graph="dag"')
        amount = sole_amount(selection.amounts, method="adaptive")
        curves, costs = self.curves(tuple(selection.units)), self.costs(method, tuple(selection.units))
        widths = {unit: len(curve) - 1 for unit, curve in curves.items()}
        left = widths | {unit: int(kept.sum()) for unit, kept in selection.already.items()}
        guards = {"min_neurons": recipe.min_neurons, "round_to": recipe.round_to}
        budget = costs.total(widths) * (1 - amount)
        if method.count == "neurons":
            fewest, total = -(-recipe.min_neurons // recipe.round_to) * recipe.round_to, sum(widths.values())
            budget = max(sum(min(width, fewest) for width in left.values()), total - round(amount * total))
        try:
            kept = spend(curves, costs, budget, widths=left, **guards)
        except ValueError as error:
            raise ValueError(
                f'method="adaptive", amount={amount:g} of the {method.count}: {error}; lower the amount'
            ) from error
        return replace(selection, amounts={unit: 1 - kept[unit] / widths[unit] for unit in widths})

    @_once
    def curves(self, units: tuple[str, ...]) -> dict[str, Tensor]:
        """Return what k kept neurons of every unit cost of the outputs, for k from 0 to n: shape (n + 1,), float64.

        How the cost falls with k follows from what the readers can rebuild; how large it is, from the squared change of
        the outputs, summed over at most 128 samples, when the other neurons are predicted by so few that at least 5 %
        of what the readers compute is unexplained.
        """
        graph, curves, left = self.graph, {}, _NUM_SAMPLES
        dense: list[tuple[Inputs, list[Tensor]]] = []
        for batch in self.calibration:
            batch = batch[:left]
            dense.append((batch, self._outputs(self.state, batch)))
            left -= len(batch)
            if left <= 0:
                break
        moments = self._moments(*map(graph.group_by_name.__getitem__, units))
        for unit in units:
            index = graph.group_by_name[unit]
            group = graph.groups[index]
            readers = readers_of(graph, self.state, index, moments)
            total = sum(float(((w @ reader.gram) * w).sum()) for reader in readers for w in [reader.weight.double()])
            # Neurons that nothing reads can all go.
            gains = reconstruction_gains(readers) if readers else torch.zeros(group.width, dtype=torch.float64)
            curve = error_curve(gains, total)
            fewest = max(0, int((curve >= _UNEXPLAINED).sum()) - 1)
            kept = torch.zeros(group.width, dtype=torch.bool, device=gains.device)
            kept[gains.argsort(descending=True, stable=True)[:fewest]] = True
            changed = self.state
            for layer in graph.readers_of(group):
                # What is tied can only be dropped; elsewhere it makes the very neurons that are gone.
                by = Mean() if layer.tied else LeastSquares()
                changed = predict(graph, changed, replace(layer, tied=False), {group.name: kept}, moments, by=by)
            change = sum(
                float((one - other).double().square().sum())
                for batch, expected in dense
                for one, other in zip(self._outputs(changed, batch), expected, strict=True)
            )
            # All processes refuse together.
            change = float(self.calibration.reduce(torch.tensor(change, dtype=torch.float64)))
            if not math.isfinite(change):
                raise ValueError('method="adaptive": outputs of the network are not finite; check the calibration data')
            curves[unit] = curve * (change / max(float(curve[fewest]), _UNEXPLAINED))
        return curves

    def _outputs(self, state: State, batch: Inputs) -> list[Tensor]:
        found = [each for each in self.graph.program.outputs(state, batch) if each.is_floating_point()]
        if not found:
            raise ValueError('method="adaptive": the network returns no floating-point numbers; use method="local"')
        return found

    @_once
    def costs(self, method: Adaptive, units: tuple[str, ...]) -> Costs:
        """Return what the network costs as a function of its units' widths, in what the method counts.

        That is neurons, parameters, FLOPs of one sample, bytes as `torch.save` writes them, or seconds of a batch.
        """
        graph, model, example = self.graph, self.model, self.calibration.example[:1]
        groups = {unit: graph.groups[graph.group_by_name[unit]] for unit in units}
        if method.count == "neurons":
            return Costs([Term(1.0, ((0.0, {unit: 1.0}),)) for unit in units])
        if method.count == "latency":  # by the network with one unit after the other at half its width
            networks = {"": model}
            for unit, group in groups.items():
                half = {group.name: torch.arange(group.width) % 2 == 0}
                networks[unit] = with_state(model, plan_removal(graph, self.state, half, {})[0])
            timed = measure_latency(networks, example[[0] * method.batch_size])
            dense = timed[""].median_s
            terms = []
            for unit, group in groups.items():
                saved = max(dense - timed[unit].median_s, 1e-3 * dense / len(units))
                terms.append(Term(saved / (group.width // 2 or 1), ((0.0, {unit: 1.0}),)))
        else:
            sizes = self._sizes(units)
            if method.count == "flops":
                factors, dense, program = [], float(count_flops(model, example)), graph.program
                for layer in graph.layers:
                    for call in layer.calls:  # how many FLOPs of a sample each entry of its weight makes
                        shape = program.nodes[program.order[call.node]].meta["val"].shape
                        positions = [int(size) for dim, size in enumerate(shape) if dim not in (0, call.out_dim)]
                        products = 0.0 if isinstance(call.kind, Embedding) else 2.0 * math.prod(positions)
                        factors.append((layer.weight, products))
            elif method.count == "bytes":
                held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                factors = [(name, float(tensor.element_size())) for name, tensor in held.items()]
                dense = float(size_bytes(model))
            else:
                factors, dense = [(name, 1.0) for name, _ in model.named_parameters()], float(count_parameters(model))
            terms = [Term(factor, tuple(sizes[name])) for name, factor in factors if name in sizes]
        return Costs(terms, fixed=dense - Costs(terms).total({unit: group.width for unit, group in groups.items()}))

    def _sizes(self, units: tuple[str, ...]) -> dict[str, list[tuple[float, Mapping[str, float]]]]:
        """For every tensor its dimensions as `Term.dims` has them."""
        sizes: dict[str, list[tuple[float, Mapping[str, float]]]] = {
            name: [(float(size), {}) for size in tensor.shape] for name, tensor in self.state.items()
        }
        named = {self.graph.group_by_name[unit]: unit for unit in units}
        for (name, dim), axis in self.graph.slots.items():
            if name in sizes:
                per_neuron = defaultdict[str, float](float)
                for segment in axis:
                    if segment.space in named:
                        per_neuron[named[segment.space]] += segment.block
                sizes[name][dim] = (sum(each.size for each in axis if each.space not in named), per_neuron)
        return sizes

    def refined(self, result: PruningResult, by: Refinement, on_step: OnStep | None = None) -> PruningResult:
        """Refine a pruning of this network: train the narrow network, and give the masked one the same changes."""
        refined, losses = refine(result.model, self.model, self.calibration, by=by, on_step=on_step)
        before, after, masked = (network_state(each) for each in (result.model, refined, result.masked))
        for norm in {norm.weight: norm for norm in self.graph.norms}.values():
            # The gain of a narrower normalisation is larger than the masked one's by this factor.
            factor = math.sqrt(len(after[norm.weight]) / len(masked[norm.weight]))
            before[norm.weight], after[norm.weight] = before[norm.weight] * factor, after[norm.weight] * factor
        for name, new in after.items():
            if new.is_floating_point():
                weight = f"{name.removesuffix('.bias')}.weight"
                # A bias that only the narrow network has holds what pruned neurons send; the masked network has them.
                full = masked[name].clone() if name in masked else new.new_zeros(len(masked[weight]))
                rows = {dim: index for dim, index in result.slices.get(weight, {}).items() if dim == 0}
                kept = result.slices.get(name, rows)
                places = [kept.get(dim, torch.arange(size)).to(full.device) for dim, size in enumerate(full.shape)]
                full[torch.meshgrid(*places, indexing="ij")] += (new - before[name]).to(full.dtype)
                masked[name] = full
        return replace(
            result,
            recipe=replace(result.recipe, refine=by),
            model=refined,
            masked=with_state(result.masked, masked),
            losses=losses,
        )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile` and data-parallel wrappers."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give an nn.Module")
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return model if inner is None else unwrap(inner)
