"""The pipeline: a network and calibration data in, a narrower network and the proof that it computes the same function out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from mlprank.compensation import Compensation, Regression, get_compensation, zero_rows, zeroed_parameters
from mlprank.graph.records import Graph, Group, Layer, State
from mlprank.graph.trace import trace
from mlprank.measures import Measure, Reader, get_measure
from mlprank.methods import Method, get_method
from mlprank.pruning.importance import readers_of, score_layers
from mlprank.pruning.masked_weights import MaskedWeights
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.result import PruningResult
from mlprank.pruning.selection import Selection, amounts_by_name, check_amount, select
from mlprank.pruning.self_check import check_agreement
from mlprank.surgery.copies import is_plain, plain_copy
from mlprank.surgery.masks import masked_rows
from mlprank.surgery.narrow import network_state, plan_removal, removable_neurons, with_state
from mlprank.utils.modules import device_of


def prune(
    model: nn.Module,
    calibration: Any,
    *,
    amount: float | Mapping[str, float] = 0.5,
    measure: str | Measure = "weighted_pagerank",
    method: str | Method = "local",
    compensation: str | Compensation = "least_squares",
    graph: str = "dag",
    protect_output: bool = True,
    protect: Sequence[str] = (),
    min_neurons: int = 1,
    round_to: int = 1,
) -> PruningResult:
    """Take the least central neurons out of a network.

    Args:
        model: A network of one input, or a LightningModule; left untouched. Neurons that torch's pruning masks (`torch.nn.utils.prune`)
            keep at zero count as pruned, and stay so.
        calibration: A batch of inputs, shape (N, ...), an iterable of batches, a DataLoader or a LightningDataModule.
        amount: The share of neurons to remove, in [0, 1), for all layers or by layer name (`*` and `[2-5]` match as in file names; layers
            that no name matches stay whole).
        measure: What scores neurons: a name of `mlprank.measures.MEASURES` or an instance.
        method: What turns scores into masks: "local", "global", or an instance.
        compensation: What a pruned neuron leaves behind: "constant", "zero", "mean", "least_squares", or an instance.
        graph: "dag", the true graph of neurons, or "chain", the published reading.
        protect_output: Keep every output neuron. Otherwise rows of the output layer are zeroed, not removed, as published.
        protect: Names of layers to keep whole, matched like those of `amount`.
        min_neurons: At least so many neurons stay in every layer.
        round_to: The number of kept neurons becomes a multiple of this, where the layer is wide enough.

    Returns:
        The narrow network, the masked one, scores, masks and the report. Both networks agree on the calibration batch.

    Raises:
        TypeError: If the network or the data are of a kind that cannot be pruned.
        ValueError: If an argument is out of range, nothing can be pruned, or the narrow network does not compute what the masked one does.
    """
    return Pruning(model, calibration, graph=graph).run(
        amount=amount,
        measure=measure,
        method=method,
        compensation=compensation,
        protect_output=protect_output,
        protect=protect,
        min_neurons=min_neurons,
        round_to=round_to,
    )


def score(
    model: nn.Module,
    calibration: Any,
    *,
    measure: str | Measure = "weighted_pagerank",
    graph: str = "dag",
    amount: float | Mapping[str, float] = 0.0,
) -> dict[str, Tensor]:
    """Score every neuron of a network.

    Args:
        model: As for `prune`; left untouched.
        calibration: As for `prune`.
        measure: As for `prune`.
        graph: As for `prune`.
        amount: For measures that look at it (`modified_pagerank` with `z_importance`).

    Returns:
        For every linear layer in forward order, shape (n_out,), non-negative with sum 1; larger means keep.

    Raises:
        TypeError: As `prune`.
        ValueError: As `prune`.
    """
    pruning = Pruning(model, calibration, graph=graph)
    check_amount(amount)
    names = [layer.name for layer in pruning.graph.layers]
    return pruning.scores(get_measure(measure), amounts_by_name(amount, names))


class Pruning:
    """A network that has been read once, to be scored and pruned in any number of ways; the network is never changed.

    Args:
        model: As for `prune`.
        calibration: As for `prune`.
        graph: As for `prune`.
        num_samples: Read at most this many calibration samples.
        reduce: Sums a tensor over processes, where several of them calibrate together.
        traced: The `Pruning.graph` of a network of the same class and sizes, which saves reading this one again.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Any,
        *,
        graph: str = "dag",
        num_samples: int | None = None,
        reduce: Callable[[Tensor], Tensor] = own,
        traced: Graph | None = None,
    ) -> None:
        if graph not in ("dag", "chain"):
            raise ValueError(f'graph="{graph}" is unknown; choose "dag" or "chain"')
        inner = unwrap(model)
        self.model = inner if is_plain(inner) else plain_copy(inner)
        self.chain = graph == "chain"
        self.calibration = Calibration(
            calibration, device=device_of(self.model), num_samples=num_samples, reduce=reduce
        )
        self.graph = trace(self.model, self.calibration.example) if traced is None else traced
        self.state: State = network_state(self.model)
        rows = masked_rows(inner)
        self.already = {layer.name: rows[layer.weight] for layer in self.graph.layers if layer.weight in rows}

    @cached_property
    def norms(self) -> Norms:
        """Norms of the dense network on the calibration data; measured once."""
        return measure_norms(self.graph, self.state, self.calibration, chain=self.chain)

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

    def scores(self, measure: Measure, amounts: Mapping[str, float]) -> dict[str, Tensor]:
        """Score every layer of the dense network, as `mlprank.score` does."""

        def readers(group: Group) -> tuple[Reader, ...]:
            moments = self.moments(self.state, self.graph.readers_of(group))
            return readers_of(self.graph, self.state, group, moments)

        return score_layers(
            self.graph, self.state, self.norms, measure=measure, amounts=amounts, readers=readers, chain=self.chain
        )

    def run(
        self,
        *,
        amount: float | Mapping[str, float] = 0.5,
        measure: str | Measure = "weighted_pagerank",
        method: str | Method = "local",
        compensation: str | Compensation = "least_squares",
        protect_output: bool = True,
        protect: Sequence[str] = (),
        min_neurons: int = 1,
        round_to: int = 1,
        scores: Mapping[str, Tensor] | None = None,
    ) -> PruningResult:
        """Prune in one way; the arguments are those of `prune`.

        `scores` are what `Pruning.scores` gave for the same measure, where they are at hand; a measure that must see the pruned network
        below a layer scores anew.
        """
        recipe = Recipe(
            amount=amount,
            measure=get_measure(measure),
            method=get_method(method),
            compensation=get_compensation(compensation),
            chain=self.chain,
            protect_output=protect_output,
            protect=tuple(protect),
            min_neurons=min_neurons,
            round_to=round_to,
        )
        selection = select(
            self.graph,
            amount=amount,
            protect=protect,
            protect_output=protect_output,
            chain=self.chain,
            already=self.already,
        )
        constants = self._constants(recipe, selection)
        folds = not isinstance(recipe.compensation, Regression)
        weights = MaskedWeights(
            self.graph,
            self.state,
            recipe=recipe,
            selection=selection,
            removable=removable_neurons(self.graph, constants, folds=folds),
            norms=self.norms,
            moments=self.moments,
        )
        amounts = {name: selection.amounts[unit] for unit, layers in selection.units.items() for name in layers}
        if recipe.scores_on_pruned:
            made = weights.from_pruned()
        else:
            made = weights.from_scores(self.scores(recipe.measure, amounts) if scores is None else scores)
        masked = with_state(self.model, made.state)
        removal = plan_removal(self.graph, made.state, made.masks, constants if folds else None)
        narrow = with_state(self.model, removal.state)
        keeps_bias = recipe.compensation.keeps_bias
        return PruningResult(
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

    def _constants(self, recipe: Recipe, selection: Selection) -> State:
        """What zeroed neurons send on."""
        tied = [
            group for group in self.graph.groups if len(group.layers) > 1 and set(group.layers) & set(selection.units)
        ]
        if isinstance(recipe.compensation, Regression) and self.chain and tied:
            raise ValueError(
                f'graph="chain" prunes {", ".join(tied[0].layers)} independently although they share their neurons; there'
                ' compensation="constant" and "zero" are defined, or use graph="dag"'
            )
        layers = tuple(name for unit in selection.units.values() for name in unit)
        kind = (layers, recipe.compensation.keeps_bias)
        if kind not in self._known_constants:
            none = {
                name: torch.zeros_like(self.state[self.graph.by_name[name].weight][:, 0], dtype=torch.bool)
                for name in layers
            }
            emptied = zero_rows(self.graph, self.state, none, keeps_bias=recipe.compensation.keeps_bias)
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
