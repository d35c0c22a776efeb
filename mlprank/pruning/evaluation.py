"""Prune a network by one or several amounts, and measure what that costs and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.calibration.data import own
from mlprank.costs.metrics import Latency, ModelMetrics, measure_latency, top_k_accuracy
from mlprank.graph.program import Inputs, as_inputs
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.result import PruningResult

LATENCY_BATCH = 64
_LATENCY_BUDGET_S = 1.0


@dataclass(frozen=True)
class Evaluation:
    """A pruning and what was measured of it.

    Attributes:
        result: The pruning.
        before: The dense network's numbers.
        after: The narrow network's numbers.
        split: The data that accuracies were measured on, such as "test"; None where there were no labels.
    """

    result: PruningResult
    before: ModelMetrics
    after: ModelMetrics
    split: str | None


def evaluate(
    result: PruningResult,
    batches: Iterable[Sequence[Tensor]] | None,
    *,
    split: str | None,
    dense_top_k: Mapping[int, float] | None = None,
    reduce: Callable[[Tensor], Tensor] = own,
) -> Evaluation:
    """Measure accuracy and latency of the dense and the narrow network.

    Args:
        result: The pruning.
        batches: Pairs of inputs, shape (N, ...), and labels, shape (N,), that can be read twice; None measures no accuracy.
        split: What to call them.
        dense_top_k: The dense network's accuracies, where they have been measured already.
        reduce: Sums a tensor over processes, where each of them has its share of the batches.

    Returns:
        The numbers of both networks; latency is of a batch of 64, interleaved.
    """
    example = as_inputs(result.example).repeated(LATENCY_BATCH)
    latency = _latency(result, example)
    before: Mapping[int, float] = {}
    after: Mapping[int, float] = {}
    if batches is not None:
        before = dense_top_k or _accuracy(result.dense, batches, reduce=reduce)
        after = _accuracy(result.model, batches, reduce=reduce)
    return Evaluation(
        result=result,
        before=replace(result.metrics.before, latency_s=latency["before"].median_s, top_k=before),
        after=replace(result.metrics.after, latency_s=latency["after"].median_s, top_k=after),
        split=split if batches is not None else None,
    )


def _accuracy(
    network: nn.Module, batches: Iterable[Sequence[Tensor]], *, reduce: Callable[[Tensor], Tensor]
) -> dict[int, float]:
    """Top-k accuracy over all processes' batches."""
    counted = _Counted(batches)
    top_k = top_k_accuracy(network, counted)
    right = [share * counted.num_samples for share in top_k.values()]
    *totals, num_samples = reduce(torch.tensor([*right, counted.num_samples], dtype=torch.float64)).tolist()
    return {k: total / num_samples for k, total in zip(top_k, totals, strict=True)}


class _Counted:
    """Batches, and how many samples went by."""

    def __init__(self, batches: Iterable[Sequence[Tensor]]) -> None:
        self.batches, self.num_samples = batches, 0

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        for batch in self.batches:
            self.num_samples += len(batch[0])
            yield batch


def _latency(result: PruningResult, example: Inputs) -> dict[str, Latency]:
    """Time both networks for about a second in all, and at least once."""
    networks = {"before": result.dense, "after": result.model}
    once = sum(latency.median_s for latency in measure_latency(networks, example, repeats=1, warmup=1).values())
    return measure_latency(networks, example, repeats=max(1, min(200, int(_LATENCY_BUDGET_S / once))), warmup=0)


def prune_amounts(
    network: nn.Module,
    calibration: Any,
    *,
    amounts: Sequence[float | Mapping[str, float]],
    recipe: Recipe,
    labelled: Iterable[Sequence[Tensor]] | None,
    split: str | None,
    dense: nn.Module | None = None,
    reduce: Callable[[Tensor], Tensor] = own,
) -> list[Evaluation]:
    """Prune a network by several amounts; it is traced once, and its dense accuracy measured once.

    Args:
        network: The network; left untouched.
        calibration: As for `mlprank.prune`.
        amounts: The amounts, each as for `mlprank.prune`.
        recipe: All other choices.
        labelled: Pairs of inputs and labels to measure accuracy on, or None.
        split: What to call them.
        dense: The network before any pruning, to measure its accuracy, where `network` has been pruned and trained on already.
        reduce: Sums a tensor over processes, where each of them has its share of the data.

    Returns:
        One evaluation for each amount.
    """
    pruning = Pruning(network, calibration, recipe, reduce=reduce)
    dense_top_k = None if labelled is None else _accuracy(dense or network, labelled, reduce=reduce)
    results = [pruning.run(amount=amount) for amount in amounts]
    return [evaluate(result, labelled, split=split, dense_top_k=dense_top_k, reduce=reduce) for result in results]
