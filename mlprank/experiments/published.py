"""Cells under the published conditions: the `graph` of their records is "published"."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mlprank.costs.metrics import count_nonzero, count_parameters, size_bytes
from mlprank.experiments.records import CellMetrics, CellParameters, LayerWidth
from mlprank.measures import get_measure
from mlprank.methods import get_method
from mlprank.thesis import PublishedConditions

GRAPH = "published"
AXES = {"graphs": [GRAPH], "compensations": ["constant"], "protect_output": [False], "calibration_seeds": [0]}
"""What the published conditions leave no choice in; `--published` sets it."""


@dataclass(frozen=True)
class PublishedCell:
    """What came out of a cell. Times are seconds; masks are True for kept neurons."""

    metrics: CellMetrics
    scores: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    timings: Mapping[str, float]


class PublishedBench:
    """Prunes and tests a trained network as `prune_mlp(..., published=True)` does.

    Nothing is removed, as published: parameters and FLOPs after pruning are those that are not zero. The dense accuracy beside a cell is
    that of the network under the same conditions, with batch norms in training mode.

    Args:
        network: The trained network; left untouched.
        data: The data module of its images.
        num_samples: Number of calibration images, and of images in a test batch.
        flops: FLOPs of the dense network for one image.
    """

    def __init__(self, network: nn.Module, data: Any, *, num_samples: int, flops: int) -> None:
        self.conditions = PublishedConditions(network, data, batch_size=num_samples)
        self.dense = self.conditions.accuracies(self.conditions.network)
        self.size, self.flops, self.bytes = count_parameters(network), flops, size_bytes(network)

    def run(self, cell: CellParameters) -> PublishedCell:
        """Prune and test in the way of a cell.

        Raises:
            ValueError: If the measure needs more than was published, or an argument does not fit.
        """
        started = time.perf_counter()
        measure = get_measure(cell.measure, **dict(cell.measure_args))
        method = get_method(cell.method, **dict(cell.method_args))
        pruned = self.conditions.prune(amount=cell.amount, measure=measure, method=method)
        ended = time.perf_counter()
        accuracies = self.conditions.accuracies(pruned.network)
        masks = pruned.masks
        total = sum(map(len, masks.values()))
        weights = {name: pruned.network.get_parameter(f"{name}.weight") for name in masks}
        zeros = sum(int((weight == 0).sum()) for weight in weights.values())
        metrics = CellMetrics(
            top1=accuracies[1],
            top5=accuracies[5],
            dense_top1=self.dense[1],
            dense_top5=self.dense[5],
            achieved_amount=sum(int((~mask).sum()) for mask in masks.values()) / total if total else 0.0,
            num_parameters_before=self.size,
            num_parameters_after=count_nonzero(pruned.network),
            flops_before=self.flops,
            flops_after=self.flops - 2 * zeros,
            size_bytes_before=self.bytes,
            size_bytes_after=self.bytes,
            latency_s_before=None,
            latency_s_after=None,
            layers=tuple(LayerWidth(name=name, width=len(mask), kept=int(mask.sum())) for name, mask in masks.items()),
        )
        timings = {"prune_s": ended - started, "evaluate_s": time.perf_counter() - ended}
        return PublishedCell(metrics, pruned.scores, masks, timings)
