"""The self-check finds every narrow network that is not the masked one, and no other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.models import MLP
from mlprank.pruning.pipeline import prune
from mlprank.pruning.reading import check_agreement
from tests.networks import randomise

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, nn.Module, Graph]:
    network = randomise(MLP(6, [8, 7], 3), seed=1).eval()
    result = prune(network, X)
    return result.masked, result.model, trace(network, X)


def test_networks_that_agree_give_their_largest_difference(pruned: tuple[nn.Module, nn.Module, Graph]) -> None:
    masked, narrow, graph = pruned
    with torch.no_grad():
        expected = float((masked(X).double() - narrow(X).double()).abs().max())
    assert check_agreement(masked, narrow, X, graph) == expected < 1e-5


def test_a_difference_above_the_tolerance_is_refused_with_its_size(pruned: tuple[nn.Module, nn.Module, Graph]) -> None:
    masked, narrow, graph = pruned
    wrong = copy.deepcopy(narrow)
    with torch.no_grad():
        wrong.get_parameter("fc_last.bias")[0] += 1e-2
    with pytest.raises(ValueError, match=r"differs from the masked one by 0\.01 on outputs up to .*depends on a width"):
        check_agreement(masked, wrong, X, graph)
    for dtype, shift in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        one, other = copy.deepcopy(narrow).to(dtype), copy.deepcopy(narrow).to(dtype)
        with torch.no_grad():
            other.get_parameter("fc_last.bias")[0] += shift
        with pytest.raises(ValueError, match="differs from the masked one"):
            check_agreement(one, other, X.to(dtype), graph)


def test_nan_is_a_difference(pruned: tuple[nn.Module, nn.Module, Graph]) -> None:
    masked, narrow, graph = pruned
    wrong = copy.deepcopy(narrow)
    with torch.no_grad():
        wrong.get_parameter("fc_last.bias")[0] = float("nan")
    with pytest.raises(ValueError, match="differs from the masked one by nan"):
        check_agreement(masked, wrong, X, graph)


def test_another_shape_and_a_network_that_cannot_run_are_refused(pruned: tuple[nn.Module, nn.Module, Graph]) -> None:
    masked, _, graph = pruned
    with pytest.raises(ValueError, match=r"gives shape \(20, 2\) instead of \(20, 3\)"):
        check_agreement(masked, MLP(6, [4], 2), X, graph)
    with pytest.raises(ValueError, match=r"the narrow network cannot run \(.*protect the layers concerned"):
        check_agreement(masked, MLP(5, [4], 3), X, graph)


class Cancelling(nn.Module):
    """Small outputs as differences of large values: in float32, their last digits are rounding."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for index in self.order:
            total = total + (x[:, 0], x[:, 1] * 1e7, -x[:, 1] * 1e7)[index]
        return total


def test_rounding_on_the_way_is_told_from_a_difference_in_float64(pruned: tuple[nn.Module, nn.Module, Graph]) -> None:
    one, other = Cancelling([0, 1, 2]), Cancelling([1, 2, 0])
    assert float((one(X) - other(X)).abs().max()) > 0.01
    assert check_agreement(one, other, X, pruned[2]) > 0.01
    with pytest.raises(ValueError, match="differs from the masked one"):
        check_agreement(one, Cancelling([1, 2]), X, pruned[2])


def test_networks_that_draw_in_evaluation_mode_are_compared_on_the_same_draws(
    pruned: tuple[nn.Module, nn.Module, Graph],
) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    state = torch.get_rng_state()
    assert check_agreement(Noisy(), Noisy(), X, pruned[2]) == 0
    assert torch.equal(state, torch.get_rng_state())
