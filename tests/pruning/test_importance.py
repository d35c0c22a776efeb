"""Scores along the graph, against slow loops on what plain forward hooks see."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlprank.measures import LayerRecord, ModifiedPageRank, Norm, WeightedPageRank
from mlprank.models import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP
from mlprank.pruning.pipeline import Pruning, score
from tests import reference
from tests.networks import randomise
from tests.reference_graph import double, hooked, l2, pagerank, six_layer_scores

THESIS = {"TwoLayerMLP": TwoLayerMLP, "ThreeLayerMLP": ThreeLayerMLP, "SixLayerMLP": SixLayerMLP}
MEASURES = {
    "weighted_pagerank": WeightedPageRank(gamma=0.8, theta=0.3),
    "modified_pagerank": ModifiedPageRank(),
    "norm": Norm(p=2),
    "activation": "activation",
    "wanda": "wanda",
}
PARAMETERS = {"weighted_pagerank": {"gamma": 0.8, "theta": 0.3}, "norm": {"p": 2}}


def check_chain_scores(network: nn.Module, x: Tensor) -> None:
    calls = hooked(network, x)
    layers = [(double(network.get_submodule(name).get_parameter("weight")), seen, z) for name, seen, z in calls]
    assert all((weight == 0).any() for weight, _, _ in layers)
    pruning = Pruning(network, list(x.split(24)), graph="chain")
    for name, measure in MEASURES.items():
        expected = reference.chain(name, layers, **PARAMETERS.get(name, {}))
        got = pruning.scores(measure=measure, amounts={})
        assert list(got) == [call for call, _, _ in calls]
        for values, slow in zip(got.values(), expected, strict=True):
            np.testing.assert_allclose(double(values), slow, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", THESIS)
def test_chain_scores_equal_the_published_ones_on_the_thesis_networks(name: str) -> None:
    network = randomise(THESIS[name](in_features=40), seed=3, zeros=0.2)
    check_chain_scores(network, torch.randn(64, 40, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
def test_chain_scores_equal_the_published_ones_on_the_twelve_layer_network() -> None:
    network = randomise(TwelveLayerMLP(in_features=40, num_classes=7), seed=3, zeros=0.2)
    check_chain_scores(network, torch.randn(64, 40, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("measure", ["weighted_pagerank", "modified_pagerank", "activation", "wanda", "norm", "random"])
def test_dag_scores_equal_chain_scores_on_a_plain_relu_chain(measure: str) -> None:
    network = randomise(MLP(12, [9, 8, 7], 5), seed=4)
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(0))
    chain, dag = (score(network, x, measure=measure, graph=graph) for graph in ("chain", "dag"))
    for name in ("fc1", "fc2", "fc3"):
        torch.testing.assert_close(dag[name], chain[name], rtol=1e-6, atol=1e-8)


def test_dag_scores_of_residual_additions_and_shared_norms_equal_the_definition_written_out() -> None:
    network = randomise(SixLayerMLP(in_features=30), seed=5)
    x = torch.randn(48, 30, generator=torch.Generator().manual_seed(2))
    expected = six_layer_scores(network, x)
    got = score(network, list(x.split(20)), graph="dag")
    assert list(got) == list(expected)
    for name, values in got.items():
        np.testing.assert_allclose(double(values), expected[name], rtol=1e-4, atol=1e-8, err_msg=name)
    torch.testing.assert_close(got["fc1"], got["fc2"])


class NormFirst(nn.Module):
    """fc, batch norm, tanh, then a learned gain, then the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.bn(self.fc(x))) * self.gain)
        return out


def test_a_norm_scales_the_rows_before_it_and_a_gain_the_importance_behind_it() -> None:
    network = randomise(NormFirst(), seed=6).eval()
    assert isinstance(network, NormFirst)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        emitted = double(torch.tanh(network.bn(network.fc(x))))
        logits = double(network(x))
    assert network.bn.running_var is not None
    factor = double(network.bn.weight.abs() / (network.bn.running_var + network.bn.eps).sqrt())
    fc = pagerank(network.fc, reference.normalise(l2(double(x))), emitted, factor=factor)
    head = pagerank(network.head, reference.normalise(np.abs(double(network.gain)) * fc), logits)
    got = score(network, x)
    np.testing.assert_allclose(double(got["fc"]), fc, rtol=1e-5)
    np.testing.assert_allclose(double(got["head"]), head, rtol=1e-5)


def test_a_layer_that_is_used_twice_adds_up_its_scores() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.again, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x).relu()
            out: Tensor = self.head(self.again(self.again(h).relu()).relu())
            return out

    network = randomise(Twice(), seed=1).eval()
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(3))
    (_, flat, z0), (_, _, z1), (_, _, z2), _ = hooked(network, x)
    enter, again = network.get_submodule("enter"), network.get_submodule("again")
    assert isinstance(enter, nn.Linear)
    assert isinstance(again, nn.Linear)
    first = pagerank(enter, reference.normalise(l2(flat)), np.maximum(z0, 0))
    second = pagerank(again, first, np.maximum(z1, 0))
    third = pagerank(again, second, np.maximum(z2, 0))
    shared = reference.normalise(first + reference.normalise(second + third))
    got = score(network, x)
    np.testing.assert_allclose(double(got["enter"]), shared, rtol=1e-5)
    np.testing.assert_allclose(double(got["again"]), shared, rtol=1e-5)


def test_batches_of_any_size_give_the_same_scores() -> None:
    network = randomise(MLP(10, [7, 6], 4, batch_norm=True), seed=2)
    x = torch.randn(50, 10, generator=torch.Generator().manual_seed(5))
    for graph in ("dag", "chain"):
        one, many = (score(network, data, graph=graph) for data in (x, x.split(7)))
        for name, values in one.items():
            torch.testing.assert_close(values, many[name], rtol=1e-6, atol=1e-8)


def test_a_dead_layer_is_warned_of_once_and_gives_no_nan() -> None:
    network = randomise(MLP(6, [5, 4], 3), seed=2)
    with torch.no_grad():
        network.get_parameter("fc1.bias").fill_(-1e3)
    x = torch.randn(20, 6)
    for graph in ("dag", "chain"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = score(network, [x, x], graph=graph)
        dead = [str(w.message) for w in caught if "is dead" in str(w.message)]
        assert len(dead) == 1
        assert 'layer "fc1"' in dead[0]
        assert all(torch.isfinite(values).all() for values in got.values())
        torch.testing.assert_close(sum(got["fc1"]), torch.tensor(1.0))


def test_scores_of_a_float64_network_are_float64_and_others_float32() -> None:
    network = randomise(MLP(6, [5], 3), seed=2)
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        got = score(network.to(dtype), torch.randn(9, 6).to(dtype))
        assert {values.dtype for values in got.values()} == {expected}


def test_chain_mode_says_when_the_network_is_no_chain() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down(self.gate(x).sigmoid() * self.up(x))
            return out

    with pytest.raises(ValueError, match=r'layer "up" reads 4 values.* makes 6.*use graph="dag"'):
        score(Gated(), torch.randn(5, 4), graph="chain")


@dataclass(frozen=True)
class Faulty:
    kind: str

    def __call__(self, layer: LayerRecord) -> Tensor:
        scores = torch.ones(layer.weight.shape[0])
        if layer.name != "fc2":
            return scores
        if self.kind == "nan":
            scores[1] = float("nan")
        if self.kind == "negative":
            scores[0] = -2.0
        return scores[:-1] if self.kind == "shape" else scores


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r'layer "fc2": measure Faulty gave scores\[1\]=nan, but it must be finite and at least 0'),
        ("negative", r'layer "fc2": measure Faulty gave scores\[0\]=-2\.0, but it must be finite and at least 0'),
        ("shape", r'layer "fc2": measure Faulty gave \(4,\) instead of scores of shape \(5,\)'),
    ],
)
def test_a_measure_that_gives_no_scores_is_named_with_the_layer(kind: str, message: str) -> None:
    for graph in ("dag", "chain"):
        with pytest.raises(ValueError, match=message):
            score(MLP(4, [6, 5], 3), torch.randn(8, 4), measure=Faulty(kind), graph=graph)
