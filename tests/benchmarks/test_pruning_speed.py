"""What the whole of a pruning costs beside its parts; a ratio within one run, one thread, processor time.

Run: pytest tests/benchmarks/test_pruning_speed.py --benchmark-only -m "" -s
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from mlprank.measures import WeightedPageRank
from mlprank.models import TwelveLayerMLP
from mlprank.pruning.pipeline import Pruning


def processor_s(work: Callable[[], object], *, repeats: int = 7) -> float:
    """Median processor time of a piece of work, seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


@pytest.mark.benchmark
def test_pruning_costs_less_than_twice_a_copy_a_calibration_pass_and_the_scoring(benchmark):
    """TwelveLayerMLP, 1,024 images, `constant`, tracing aside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = TwelveLayerMLP().eval()
        batches = torch.rand(1024, 3, 32, 32).split(64)
        pruning = Pruning(network, batches)

        def prune() -> None:
            pruning._known.clear()  # calibrate anew
            pruning.run(amount=0.5, compensation="constant")

        def calibrate() -> None:
            with torch.no_grad():
                for batch in batches:
                    network(batch)

        prune()
        copying, calibrating = processor_s(lambda: copy.deepcopy(network)), processor_s(calibrate)
        scoring = processor_s(lambda: pruning.scores(measure=WeightedPageRank()))
        whole = processor_s(prune)
        benchmark.pedantic(prune, rounds=3)
    finally:
        torch.set_num_threads(threads)
    ratio = whole / (copying + calibrating + scoring)
    print(
        f"\nprune {whole * 1e3:.0f} ms; copy {copying * 1e3:.0f} + calibration {calibrating * 1e3:.0f} + "
        f"scoring {scoring * 1e3:.0f} ms;"
        f" ratio {ratio:.2f} (limit 2)"
    )
    assert ratio < 2
