"""What is read of a network is remembered, and read again where the network is another one by now."""

import gc
import types
import weakref

import pytest
import torch
from torch import Tensor, nn

import mlprank
from mlprank.graph.layers import KINDS, Linear
from mlprank.pruning import reading


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that were traced, by class."""
    names: list[str] = []
    original = reading.trace
    monkeypatch.setattr(
        reading,
        "trace",
        lambda model, *args, **kwargs: names.append(type(model).__name__) or original(model, *args, **kwargs),
    )
    return names


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() * self.scale)


x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def test_a_network_is_read_once_and_its_weights_are_read_each_time(traced: list[str]) -> None:
    network = Scaled().eval()
    first = mlprank.score(network, x)
    with torch.no_grad():
        network.first.weight[2] = 0
        network.first.bias[2] = 0
    second = mlprank.score(network, x[:17])
    result = mlprank.prune(network, x, amount=0.5)
    assert traced == ["Scaled"]
    assert float(first["first"][2]) > 0 == float(second["first"][2])
    assert not bool(result.masks["first"][2])


@pytest.mark.parametrize("change", ["attribute", "forward", "layer", "tied", "dtype"])
def test_a_network_that_changed_is_read_again(traced: list[str], change: str) -> None:
    network, example = Scaled().eval(), x
    mlprank.score(network, x)
    if change == "attribute":
        network.scale = 1.00001  # which is less than the comparison of outputs tells
    elif change == "forward":
        network.forward = types.MethodType(lambda self, x: self.second(self.first(x).tanh()), network)  # type: ignore[method-assign]
    elif change == "layer":
        network.first, network.second = nn.Linear(6, 10), nn.Linear(10, 3)
    elif change == "tied":
        network.second.bias = nn.Parameter(network.second.bias.detach().clone())
        network.alias = network.second
    else:
        network, example = network.double(), x.double()
    scores = mlprank.score(network, example)
    assert len(traced) == 2
    fresh = mlprank.Pruning(network, example, traced=reading.trace(network, example))
    assert all(torch.equal(scores[name], other) for name, other in fresh.scores().items())


def test_a_kind_that_is_added_later_is_asked(traced: list[str]) -> None:
    class Other(Linear):
        unit = "other neurons"  # type: ignore[misc]

    network = Scaled().eval()
    assert mlprank.prune(network, x).units["first"] == "neurons"
    KINDS.insert(0, Other)
    try:
        assert mlprank.prune(network, x).units["first"] == "other neurons"
    finally:
        KINDS.remove(Other)
    assert mlprank.prune(network, x).units["first"] == "neurons"


def test_what_is_remembered_goes_with_the_network() -> None:
    network = Scaled().eval()
    mlprank.score(network, x)
    assert network in reading._read
    kept = weakref.ref(network), weakref.ref(network.first.weight)
    del network
    gc.collect()
    assert [each() for each in kept] == [None, None]


def test_a_network_whose_weights_are_computed_is_read_each_time(traced: list[str]) -> None:
    network = Scaled().eval()
    nn.utils.parametrizations.weight_norm(network.first)
    for _ in range(2):
        mlprank.score(network, x)
    assert len(traced) == 2
    assert network not in reading._read
