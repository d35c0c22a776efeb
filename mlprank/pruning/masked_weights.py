"""The masked network's weights: scores, masks and compensation, worked out from the input to the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mlprank.calibration.statistics import Norms, PooledMoments
from mlprank.compensation import Regression, get_compensation, regress, zero_rows
from mlprank.graph.records import Graph, Group, Layer, State
from mlprank.measures import get_measure
from mlprank.pruning.importance import readers_of, score_group
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.selection import Selection


class MeasuresMoments(Protocol):
    """Measures moments of what layers read, with the given weights."""

    def __call__(self, state: State, readers: tuple[Layer, ...]) -> PooledMoments:
        """Return the moments by `Layer.sources`."""
        ...


@dataclass(frozen=True)
class Masked:
    """A masked network.

    Attributes:
        scores: For every linear layer, shape (n_out,).
        masks: For every layer that may be pruned, shape (n_out,), True for kept neurons.
        held_back: For layers with neurons that were chosen but kept, because nothing can take what they would leave behind: how many.
        state: The weights: rows of pruned neurons are zero, their readers are compensated.
    """

    scores: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    held_back: Mapping[str, int]
    state: State


class MaskedWeights:
    """Masks a network group by group and compensates it reader by reader; lives for one pruning.

    A reader is regressed on what arrives when everything before it has been pruned and compensated. Rows of pruned neurons are zeroed at
    the end then: nobody listens to them any more, and a later reader must still see what it is to predict.

    Args:
        graph: The network's graph.
        state: Its weights.
        recipe: How to prune it.
        selection: What of it.
        removable: For every layer that is not whole, which neurons can go; see `mlprank.surgery.narrow.removable_neurons`.
        norms: Its norms on the calibration data.
        moments: Measures moments on it.
    """

    def __init__(
        self,
        graph: Graph,
        state: State,
        *,
        recipe: Recipe,
        selection: Selection,
        removable: Mapping[str, Tensor],
        norms: Norms,
        moments: MeasuresMoments,
    ) -> None:
        self.graph, self.state, self.recipe, self.selection = graph, state, recipe, selection
        self.compensation = get_compensation(recipe.compensation)
        self.removable, self.norms, self.moments = removable, norms, moments
        self.masks: dict[str, Tensor] = {}
        self.held_back: dict[str, int] = {}

    def from_scores(self, scores: Mapping[str, Tensor]) -> Masked:
        """Mask by scores of the dense network."""
        self._mask(scores)
        for group, readers in self._steps():
            self._compensate(group, readers)
        return self._finished(scores)

    def from_pruned(self) -> Masked:
        """Score every group when everything below it has been pruned, for measures that ask for that (`reads_pruned`)."""
        scores: dict[str, Tensor] = {}
        for group, readers in self._steps():
            if group.name not in scores:
                scores.update(self._score(group))
            self._compensate(group, readers)
        for group in self.graph.groups:
            if group.name not in scores:
                scores.update(self._score(group))
        return self._finished({layer.name: scores[layer.name] for layer in self.graph.layers})

    def _steps(self) -> Iterator[tuple[Group, tuple[Layer, ...]]]:
        """Runs of layers that read the same values of a group, in forward order."""
        readers: list[Layer] = []
        for layer in self.graph.layers:
            if readers and readers[-1].sources != layer.sources:
                yield self._read_by(readers[-1]), tuple(readers)
                readers = []
            if layer.source_group is not None:
                readers.append(layer)
        if readers:
            yield self._read_by(readers[-1]), tuple(readers)

    def _read_by(self, reader: Layer) -> Group:
        assert reader.source_group is not None
        return self.graph.groups[reader.source_group]

    def _score(self, group: Group) -> dict[str, Tensor]:
        moments = self.moments(self.state, self.graph.readers_of(group))
        readers = readers_of(self.graph, self.state, group, moments)
        scores = score_group(
            self.graph, self.state, self.norms, group, measure=get_measure(self.recipe.measure), readers=readers
        )
        masks = self._mask({name: scores[name] for name in group.layers})
        if not isinstance(self.compensation, Regression):
            self.state = zero_rows(self.graph, self.state, masks, keeps_bias=self.compensation.keeps_bias)
        return scores

    def _mask(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        for name, chosen in self.recipe.masks(self.selection, scores).items():
            kept = chosen | ~self.removable[name].to(chosen.device) if name in self.removable else chosen
            masks[name] = kept
            if count := int((kept & ~chosen).sum()):
                self.held_back[name] = count
        self.masks.update(masks)
        return masks

    def _compensate(self, group: Group, readers: tuple[Layer, ...]) -> None:
        by = self.compensation
        mask = self.masks.get(group.name)
        if mask is None or group.whole is not None or not isinstance(by, Regression) or bool(mask.all()):
            return
        moments = self.moments(self.state, readers)
        self.state = regress(self.state, readers, mask, moments, by=by)

    def _finished(self, scores: Mapping[str, Tensor]) -> Masked:
        state = zero_rows(self.graph, self.state, self.masks, keeps_bias=self.compensation.keeps_bias)
        return Masked(scores, self.masks, self.held_back, state)
