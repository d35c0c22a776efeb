"""The law of latency: half the neurons, at most 0.35 of the time.

The inputs and the classes stay, so half the neurons leave 0.344 of the FLOPs: the limit allows 2 % on top, and a busy
machine breaks it. Both networks share one thread and take turns.

Run: pytest tests/benchmarks/test_pruned_latency.py -m "" -n 0 -s
"""

from __future__ import annotations

import pytest
import torch

import mlprank
from mlprank.costs.metrics import measure_latency
from mlprank.models import TwelveLayerMLP

LIMIT = 0.35


@pytest.mark.slow
def test_half_the_neurons_of_the_twelve_layer_network_take_a_third_of_the_time(one_thread: None) -> None:
    torch.manual_seed(0)
    dense = TwelveLayerMLP()
    images = torch.randn(64, 3, 32, 32)
    pruned = mlprank.prune(dense, images, amount=0.5, measure="norm", compensation="constant").model
    widths = [module.out_features for module in pruned.modules() if isinstance(module, torch.nn.Linear)]
    assert widths == [1024] * 2 + [512] * 4 + [256] * 2 + [128] * 3 + [100]
    latency = measure_latency({"dense": dense, "pruned": pruned}, images, repeats=500, warmup=5)
    ratio = latency["pruned"].median_s / latency["dense"].median_s
    milliseconds = {
        name: f"{each.median_s * 1e3:.1f} ± {each.iqr_s / 2 * 1e3:.1f} ms" for name, each in latency.items()
    }
    print(f"\nbatch 64, eager, 1 thread: {milliseconds}, ratio {ratio:.3f}")
    assert ratio <= LIMIT
