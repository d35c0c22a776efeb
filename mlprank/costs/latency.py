"""How long models take: interleaved runs, median and spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlprank.graph.program import Inputs, as_inputs
from mlprank.utils.modules import evaluating, synchronise


@dataclass(frozen=True)
class Latency:
    """The time of one call on one batch.

    Attributes:
        median_s: Median over the runs, seconds.
        iqr_s: Spread: third quartile minus first quartile, seconds.
        repeats: Number of timed runs.
    """

    median_s: float
    iqr_s: float
    repeats: int


def measure_latency(
    models: Mapping[str, Callable[[Tensor], object]],
    example: Tensor | Inputs,
    *,
    repeats: int = 30,
    warmup: int = 5,
) -> dict[str, Latency]:
    """Time several models on the same batch, taking turns (A B A B ...), so that a busy moment hits all of them.

    Runs in `torch.inference_mode`; modules are in evaluation mode meanwhile and get their own mode back.

    Args:
        models: Name to callable: modules, compiled modules, or functions of one tensor.
        example: One batch, shape (N, ...), on the device where the models are.
        repeats: Timed runs of each model, at least 1.
        warmup: Untimed runs of each model before the first timed one, at least 0.

    Returns:
        One `Latency` for each name, seconds for the whole batch.

    Raises:
        ValueError: If there is no model, or `repeats` or `warmup` is out of range.
    """
    if not models:
        raise ValueError("measure_latency: models is empty; give at least one model to time")
    if repeats < 1:
        raise ValueError(f"measure_latency: repeats={repeats} must be at least 1")
    if warmup < 0:
        raise ValueError(f"measure_latency: warmup={warmup} must be at least 0")
    times: dict[str, list[float]] = {name: [] for name in models}
    with evaluating(*models.values()), torch.inference_mode():
        for _ in range(warmup):
            for model in models.values():
                as_inputs(example).feed(model)
        for _ in range(repeats):
            for name, model in models.items():
                times[name].append(_one_run(model, example))
    return {name: _summary(seconds) for name, seconds in times.items()}


def _one_run(model: Callable[..., object], example: Tensor | Inputs) -> float:
    device = as_inputs(example).tensors[0].device
    synchronise(device)
    start = time.perf_counter()
    as_inputs(example).feed(model)
    synchronise(device)
    return time.perf_counter() - start


def _summary(seconds: list[float]) -> Latency:
    quartiles = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    first, median, third = quartiles.tolist()
    return Latency(median_s=median, iqr_s=third - first, repeats=len(seconds))
