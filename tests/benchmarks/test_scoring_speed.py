"""How fast weights become scores and scores become masks; ratios within one run, one thread.

Run: pytest tests/benchmarks/test_scoring_speed.py --benchmark-only -m "" -s
"""

import ctypes
import itertools
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlprank.measures import LayerRecord, Reader, WeightedPageRank
from mlprank.measures.reconstruction import reconstruction_gains
from mlprank.methods import Global, Local

WIDTHS = (3072, 2048, 2048, 1024, 1024, 1024, 1024, 512, 512, 256, 256, 256, 100)
GAMMA, THETA = 0.9, 0.5


class TwelveLayers:
    """The weights of TwelveLayerMLP as they are after training, and norms for them."""

    def __init__(self) -> None:
        self.weights = [torch.nn.Linear(num_in, num_out).weight for num_in, num_out in itertools.pairwise(WIDTHS)]
        self.weights[0].data[0, 0] = 0.0  # one in 2^24 is drawn so; it must not cost as much as many
        self.norms = [torch.rand(width) for width in WIDTHS]

    def ours(self) -> Tensor:
        """Weighted PageRank by this package, record and checks included."""
        measure, previous = WeightedPageRank(GAMMA, THETA), self.norms[0] / self.norms[0].sum()
        for weight, a_in, a_out in zip(self.weights, self.norms, self.norms[1:], strict=False):
            previous = measure(LayerRecord("fc", weight, previous, a_in, a_out))
        return previous

    def published(self) -> Tensor:
        """The published way, from its description: both matrices normalised and stored, the graph of autograd kept."""
        previous, stored = self.norms[0] / self.norms[0].sum(), []
        for weight, a_out in zip(self.weights, self.norms[1:], strict=True):
            absolute = weight.abs()
            adjacency = torch.where(absolute != 0, 1, 0)
            by_weight = torch.nan_to_num(absolute / absolute.sum(0))
            by_degree = torch.nan_to_num(adjacency / adjacency.sum(0))
            stored.append((by_weight, by_degree))
            linked = THETA * (by_weight @ previous) + (1 - THETA) * (by_degree @ previous)
            scores = GAMMA * linked + (1 - GAMMA) * a_out / a_out.sum()
            previous = scores / scores.sum()
        return previous

    def read_twice(self) -> None:
        """The floor: every weight goes once into the sum of its column, once into the sum of its row."""
        for weight in self.weights:
            weight.detach().sum(0)
            weight.detach().sum(1)

    def sum_twice(self) -> None:
        """A lower floor still: nothing is kept of the weights but their sum."""
        for weight in self.weights:
            weight.detach().sum()
            weight.detach().sum()


def median_seconds(rounds: int, calls: dict[str, Callable[[], object]], *, cold: bool) -> dict[str, float]:
    """Time all in turn, so that what slows one round slows all of it; the median processor seconds of each.

    Processor time of the one thread leaves out what other programs take away from it. Cold, every call starts
    without freed memory to use again, as the one call of a program does; otherwise it is made once untimed before.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if cold else None
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if trim is not None:
                trim(0)
            else:
                call()
            start = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def test_weighted_pagerank_is_ten_times_faster_than_published_and_near_two_reads(benchmark, one_thread):
    network = TwelveLayers()
    torch.testing.assert_close(network.ours(), network.published().detach(), rtol=1e-5, atol=0.0)
    calls = {
        "ours": network.ours,
        "published": network.published,
        "two reads": network.read_twice,
        "two sums": network.sum_twice,
    }
    cold, warm = (median_seconds(9, calls, cold=cold) for cold in (True, False))
    benchmark.pedantic(network.ours, rounds=5, warmup_rounds=1)
    for state, seconds in (("cold", cold), ("warm", warm)):
        benchmark.extra_info.update({f"{name}, {state} (s)": value for name, value in seconds.items()})
        ours = seconds["ours"]
        print(
            f"\nweighted PageRank of TwelveLayerMLP, {state}: {ours * 1e3:.1f} ms; "
            f"the published way {seconds['published'] / ours:.1f} times that; "
            f"two reads into row and column sums, times {ours / seconds['two reads']:.2f}; "
            f"two reads into one number, times {ours / seconds['two sums']:.2f}"
        )
    assert cold["published"] >= 10 * cold["ours"]
    assert warm["ours"] <= 2.5 * warm["two reads"]


@pytest.mark.parametrize("method", [Local(), Global(), Global(normalise="none")], ids=["local", "width", "none"])
def test_scores_become_masks_in_under_a_millisecond(benchmark, one_thread, method):
    scores = {f"fc{index}": torch.rand(width) for index, width in enumerate(WIDTHS[1:-1])}
    scores = {name: values / values.sum() for name, values in scores.items()}
    amounts = dict.fromkeys(scores, 0.5)
    masks = benchmark(lambda: method(scores, amounts))
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(WIDTHS[1:-1]) // 2
    assert benchmark.stats.stats.median < 1e-3


@pytest.mark.slow
def test_reconstruction_of_2048_neurons_takes_seconds(benchmark, one_thread):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4096, 2048, generator=generator, dtype=torch.float64).relu()
    centred = data - data.mean(0)
    reader = Reader(torch.randn(2048, 2048, generator=generator), centred.t() @ centred)
    scores = benchmark.pedantic(lambda: reconstruction_gains([reader]), rounds=1)
    assert int((scores > 0).sum()) == 2048
    assert benchmark.stats.stats.median < 60
