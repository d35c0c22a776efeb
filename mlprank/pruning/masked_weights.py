"""The masked network's weights: scores, masks and compensation, worked out from the input to the output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import (
    MomentSums,
    Norms,
    PooledMoments,
    View,
    fills_of,
    measure_moments,
    reading_nodes,
    views_of,
)
from mlprank.compensation import Refit, Regression, SideBySide, get_compensation, predict, refit, zero_rows
from mlprank.graph.program import Fill
from mlprank.graph.records import Graph, Layer, State
from mlprank.measures import get_measure
from mlprank.methods import get_method
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.selection import Scorer, Selection, group_scores, layer_scores, readers_of

_LEAST = 1e-300
"""A score above 0 that changes no other score in float64."""
_MAX_SEEN = 8192
"""Readers that see more entries of what is kept are mended by one coefficient a channel."""


@dataclass(eq=False)
class MaskedWeights:
    """Masks a network group by group and compensates it reader by reader; lives for one pruning.

    A reader is fitted on what arrives when everything before it has been pruned and compensated. Rows of pruned neurons
    are zeroed at the end then: nobody listens to them any more, and a later reader must still see what it is to
    predict. In the end there are the weights (`state`), `scores` and `masks` of layers, how many chosen neurons were
    `held_back`, and the layers that were mended `by_channel`, as they see too much for whole weights to be fitted.
    """

    graph: Graph
    state: State
    recipe: Recipe
    selection: Selection
    removable: Mapping[str, Tensor]
    norms: Norms
    calibration: Calibration
    known: PooledMoments

    def __post_init__(self) -> None:
        self.compensation = get_compensation(self.recipe.compensation)
        self.units: dict[str, Tensor] = {}
        self.held_back: dict[str, int] = {}
        self.by_channel: list[str] = []
        self.passes = SideBySide(self.graph, self.state, self.calibration, num_samples=self.norms.num_samples)

    def prune(self, scores: Mapping[str, Tensor] | None) -> None:
        """Mask by scores of the dense network; where there are none, score every group when all below it is pruned."""
        found: dict[int, Tensor] = {}
        if scores is not None:
            self._mask(scores if self.recipe.chain else group_scores(self.graph, scores))
        for readers in self._steps():
            for index in readers[0].read_groups if scores is None else ():
                if index not in found:
                    found[index] = self._score(index)
            self._compensate(readers)
        if scores is None:
            found |= {index: self._score(index) for index in range(len(self.graph.groups)) if index not in found}
            scores = {layer.name: layer_scores(layer, found) for layer in self.graph.layers}
        self.scores, self.masks = scores, self._layer_masks()
        self.state = zero_rows(self.graph, self.state, self.masks, keeps_bias=self.compensation.keeps_bias)

    def _steps(self) -> Iterator[tuple[Layer, ...]]:
        """Layers that read neurons in forward order, together where they read the same values in the same way."""

        def geometry(layer: Layer) -> tuple[object, ...]:
            return layer.sources, layer.read, [call.kind for call in layer.calls]

        for _, layers in groupby(self.graph.layers, geometry):
            if readers := tuple(layer for layer in layers if layer.read_groups):
                yield readers

    def _score(self, index: int) -> Tensor:
        group = self.graph.groups[index]
        views = [view for layer in self.graph.readers_of(group) for view in views_of(layer, index)]
        readers = readers_of(self.graph, self.state, index, self._moments(views))
        measure = get_measure(self.recipe.measure)
        scores = Scorer(self.graph, self.state, self.norms, measure, lambda _: readers).group(index)
        self._mask({group.name: scores})
        if not isinstance(self.compensation, Regression) and group.name in self.units:
            self._zero(group.layers)
        return scores

    def _moments(self, views: Sequence[View]) -> PooledMoments:
        """Moments of what layers read in the pruned network as it is by now."""
        fills = self.fills()
        if not views:
            return {}
        if self.state is self.passes.dense and not fills and all(view in self.known for view in views):
            return self.known
        if not isinstance(self.compensation, Regression):
            return measure_moments(self.graph, self.state, self.calibration, views, fills=fills)
        sums = MomentSums(views)
        nodes = reading_nodes(self.graph, {place for view in views for place in view.places})
        for batch in self.passes.read(self.state, nodes, fills):
            for node, (_, value) in batch.items():
                sums.add(nodes[node], value)
        return sums.moments(self.calibration)

    def fills(self) -> dict[str, Fill]:
        """What normalisations read in place of pruned neurons, by operation."""
        return fills_of(self.graph, self.groups())

    def groups(self) -> dict[str, Tensor]:
        """Masks of the groups that lose neurons for real: those that no layer of the group keeps."""
        groups: dict[str, Tensor] = {}
        for group in self.graph.groups:
            if group.whole is not None:
                continue
            if not self.recipe.chain:
                groups.update({group.name: self.units[group.name]} if group.name in self.units else {})
            elif all(name in self.units for name in group.layers):
                groups[group.name] = torch.stack([self.units[name] for name in group.layers]).any(0)
        return groups

    def _mask(self, scores: Mapping[str, Tensor]) -> None:
        """Choose what goes of units that are scored, and hold back what nothing can take the constants of.

        Neurons that have been pruned before rank below all others and count as removed.
        """
        selection, recipe = self.selection, self.recipe
        units = {unit: scores[unit] for unit in selection.units if unit in scores}
        if not units:
            return
        already = {unit: mask.to(units[unit].device) for unit, mask in selection.already.items() if unit in units}
        for unit, left in already.items():
            units[unit] = torch.where(left, units[unit].double() + _LEAST, 0.0)
        method, amounts = get_method(recipe.method), {unit: selection.amounts[unit] for unit in units}
        masks = method(units, amounts, min_neurons=recipe.min_neurons, round_to=recipe.round_to)
        for unit, mask in masks.items():
            chosen = mask & already[unit].to(mask.device) if unit in already else mask
            group = self.graph.group_of(unit).name if self.recipe.chain else unit
            removable = self.removable.get(group)
            kept = chosen if removable is None else chosen | ~removable.to(chosen.device)
            self.units[unit] = kept
            if count := int((kept & ~chosen).sum()):
                self.held_back.update(dict.fromkeys(selection.units[unit], count))

    def _layer_masks(self) -> dict[str, Tensor]:
        """Masks of layers, shape (n_out,)."""
        if self.recipe.chain:
            return dict(self.units)
        return {
            layer.name: self.graph.kept_entries(self.units, layer.made, self.state[layer.weight].device)
            for layer in self.graph.layers
            if any(self.graph.groups[index].name in self.units for index in layer.made_groups)
        }

    def _zero(self, layers: Sequence[str]) -> None:
        masks = self._layer_masks()
        chosen = {name: masks[name] for name in layers if name in masks}
        self.state = zero_rows(self.graph, self.state, chosen, keeps_bias=self.compensation.keeps_bias)

    def _compensate(self, readers: tuple[Layer, ...]) -> None:
        by, groups = self.compensation, self.groups()
        kept = self.graph.kept_entries(groups, readers[0].read, self.state[readers[0].weight].device)
        if not isinstance(by, Regression) or bool(kept.all()):
            return
        fitted: list[Layer] = []
        for layer in readers:
            if isinstance(by, Refit) and not layer.tied:
                patch = layer.kind.flat(self.state[layer.weight]).shape[3]
                seen = patch * int(kept[: len(kept) // layer.kind.groups].sum())
                if seen <= _MAX_SEEN and all(call.kind.refits for call in layer.calls):
                    fitted.append(layer)
                    continue
                self.by_channel.append(layer.name)
            views = [view for index in layer.read_groups for view in views_of(layer, index)]
            moments = {} if layer.tied else self._moments(views)
            self.state = predict(self.graph, self.state, layer, groups, moments, by=by)
        if fitted and isinstance(by, Refit):
            targets = self.passes.targets(self.state, fitted, kept, self.fills())
            self.state = refit(self.state, fitted, kept, targets, by=by)
        for layer in readers:
            if layer.tied:  # its weights on pruned neurons are rows of theirs
                self._zero([name for index in layer.read_groups for name in self.graph.groups[index].layers])
