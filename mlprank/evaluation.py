"""Prune a network by one or several amounts, and measure what that costs and gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mlprank.metrics import Latency, ModelMetrics, measure_latency, top_k_accuracy
from mlprank.pruning import Pruning
from mlprank.result import PruningResult

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
) -> Evaluation:
    """Measure accuracy and latency of the dense and the narrow network.

    Args:
        result: The pruning.
        batches: Pairs of inputs, shape (N, ...), and labels, shape (N,), that can be read twice; None measures no accuracy.
        split: What to call them.
        dense_top_k: The dense network's accuracies, where they have been measured already.

    Returns:
        The numbers of both networks; latency is of a batch of 64, interleaved.
    """
    example = result.example.expand(LATENCY_BATCH, *result.example.shape[1:]).contiguous()
    latency = _latency(result, example)
    before: Mapping[int, float] = {}
    after: Mapping[int, float] = {}
    if batches is not None:
        before = dense_top_k or top_k_accuracy(result.dense, batches)
        after = top_k_accuracy(result.model, batches)
    return Evaluation(
        result=result,
        before=replace(result.metrics.before, latency_s=latency["before"].median_s, top_k=before),
        after=replace(result.metrics.after, latency_s=latency["after"].median_s, top_k=after),
        split=split if batches is not None else None,
    )


def _latency(result: PruningResult, example: Tensor) -> dict[str, Latency]:
    """Time both networks for about a second in all, and at least once."""
    networks = {"before": result.dense, "after": result.model}
    once = sum(latency.median_s for latency in measure_latency(networks, example, repeats=1, warmup=1).values())
    return measure_latency(networks, example, repeats=max(1, min(200, int(_LATENCY_BUDGET_S / once))), warmup=0)


def prune_amounts(
    network: nn.Module,
    calibration: Any,
    *,
    amounts: Sequence[float | Mapping[str, float]],
    graph: str,
    num_samples: int | None,
    recipe: Mapping[str, Any],
    labelled: Iterable[Sequence[Tensor]] | None,
    split: str | None,
) -> list[Evaluation]:
    """Prune a network by several amounts; it is traced once, and its dense accuracy measured once.

    Args:
        network: The network; left untouched.
        calibration: As for `mlprank.prune`.
        amounts: The amounts, each as for `mlprank.prune`.
        graph: As for `mlprank.prune`.
        num_samples: Read at most this many calibration samples.
        recipe: The other arguments of `mlprank.prune`.
        labelled: Pairs of inputs and labels to measure accuracy on, or None.
        split: What to call them.

    Returns:
        One evaluation for each amount.
    """
    pruning = Pruning(network, calibration, graph=graph, num_samples=num_samples)
    dense_top_k = None if labelled is None else top_k_accuracy(network, labelled)
    results = [pruning.run(amount=amount, **recipe) for amount in amounts]
    return [evaluate(result, labelled, split=split, dense_top_k=dense_top_k) for result in results]
