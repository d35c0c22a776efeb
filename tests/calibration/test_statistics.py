"""Norms, moments and constants against plain eager passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import Moments, View, measure_constants, measure_moments, measure_norms, views_of
from mlprank.compensation import zero_rows
from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.models import MLP
from mlprank.surgery.narrow import network_state
from tests.networks import Block, Drawn, Spec, randomise
from tests.reference_graph import hooked


def calibrated(network: nn.Module, batches: list[Tensor]) -> tuple[Graph, dict[str, Tensor], Calibration]:
    calibration = Calibration(batches, device=torch.device("cpu"))
    return trace(network, calibration.example), network_state(network), calibration


def mlp() -> nn.Module:
    return randomise(MLP(6, [9, 8], 4, batch_norm=True, activation="gelu"), seed=2).eval()


def test_norms_are_over_all_samples_of_all_batches() -> None:
    network = mlp()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    graph, state, calibration = calibrated(network, list(x.split(9)))
    chain, dag = (measure_norms(graph, state, calibration, chain=chain) for chain in (True, False))
    emitted = {"fc1": "act1", "fc2": "act2", "fc_last": "fc_last"}
    shown: dict[str, Tensor] = {}
    for name in emitted.values():
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: shown.__setitem__(name, o))
    network(x)
    for name, seen, z in hooked(network, x):
        call = graph.by_name[name].calls[0]
        torch.testing.assert_close(dag.read[call.place], torch.from_numpy(seen).norm(dim=0), rtol=1e-5, atol=1e-6)
        relu = torch.from_numpy(z).clamp(min=0).norm(dim=0)
        torch.testing.assert_close(chain.made[call.node], relu, rtol=1e-5, atol=1e-6)
        own = shown[emitted[name]].double().norm(dim=0)
        torch.testing.assert_close(dag.made[call.node], own, rtol=1e-5, atol=1e-6)
        assert dag.made[call.node].dtype == torch.float64


def test_tokens_count_as_samples() -> None:
    network = Drawn(Spec((Block("plain", 7, "tanh"),), num_tokens=3))
    x = network.inputs(8)
    graph, state, calibration = calibrated(network, [x[:5], x[5:]])
    (_, seen, _), *_ = hooked(network, x)
    layer = graph.by_name["b0_fc"]
    norms = measure_norms(graph, state, calibration, chain=False)
    rows = torch.from_numpy(seen).reshape(-1, 5)
    torch.testing.assert_close(norms.read[layer.sources[0]], rows.norm(dim=0), rtol=1e-5, atol=1e-6)
    view = View(layer.sources, 0, 5, 1)
    moments = measure_moments(graph, state, calibration, [view])[view]
    assert moments.count == 24
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-6, atol=1e-7)


def test_moments_are_the_mean_and_the_centred_gram_matrix_in_float64() -> None:
    network = mlp()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    graph, state, calibration = calibrated(network, list(x.split(11)))
    sources = [view for index, name in enumerate(("fc2", "fc_last")) for view in views_of(graph.by_name[name], index)]
    got = measure_moments(graph, state, calibration, sources)
    for name, value in zip(("fc2", "fc_last"), sources, strict=True):
        seen = torch.from_numpy(next(inputs for layer, inputs, _ in hooked(network, x) if layer == name))
        centred = seen - seen.mean(0)
        torch.testing.assert_close(got[value].mean, seen.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got[value].gram, centred.T @ centred, rtol=1e-4, atol=1e-4)
        assert got[value].gram.dtype == torch.float64


def test_neurons_that_do_not_vary_have_no_variance_of_rounding() -> None:
    network = mlp()
    with torch.no_grad():
        network.get_parameter("fc1.weight")[:4] = 0
    x = torch.randn(1000, 6)
    graph, state, calibration = calibrated(network, list(x.split(37)))
    (sources,) = views_of(graph.by_name["fc2"], 0)
    moments = measure_moments(graph, state, calibration, [sources])[sources]
    assert not moments.gram[:4].any()
    assert not moments.gram[:, :4].any()
    assert (moments.gram.diagonal()[4:] > 0).all()


def test_uncentred_moments_are_sums_of_products() -> None:
    rows = torch.randn(20, 3, dtype=torch.float64) + 2
    centred = rows - rows.mean(0)
    got = Moments(20, rows.mean(0), centred.T @ centred).uncentred()
    torch.testing.assert_close(got.gram, rows.T @ rows)
    assert not got.mean.any()


def test_constants_are_what_zeroed_neurons_send_on() -> None:
    network = mlp()
    graph, state, calibration = calibrated(network, [torch.randn(12, 6)])
    none = {name: torch.zeros(len(state[f"{name}.weight"]), dtype=torch.bool) for name in ("fc1", "fc2")}
    for keeps_bias in (True, False):
        emptied = zero_rows(graph, state, none, keeps_bias=keeps_bias)
        got = measure_constants(graph, emptied, calibration)
        assert all(bool(arriving.uniform.all()) and bool(arriving.finite.all()) for arriving in got.values())
        for name, reader in (("1", "fc2"), ("2", "fc_last")):
            bias = state[f"fc{name}.bias"] if keeps_bias else torch.zeros_like(state[f"fc{name}.bias"])
            norm = network.get_submodule(f"batchnorm{name}")
            assert isinstance(norm, nn.BatchNorm1d)
            expected = nn.functional.gelu(norm(bias[None]))[0]
            arrives = got[graph.by_name[reader].sources[0]].value
            torch.testing.assert_close(arrives, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chain", [True, False])
def test_activations_that_are_not_finite_are_named_with_their_layer(chain: bool) -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.third(self.second(self.first(x).relu().log()).relu())
            return out

    graph, state, calibration = calibrated(randomise(Log(), seed=1).eval(), [torch.randn(30, 4)])
    culprit = "first" if not chain else "second"
    with pytest.raises(
        ValueError, match=rf'layer "({culprit}|second)": calibration gives activations that are not finite'
    ):
        measure_norms(graph, state, calibration, chain=chain)
    bad = torch.full((3, 4), float("inf"))
    graph, state, calibration = calibrated(mlp(), [torch.zeros(3, 6)])
    with pytest.raises(ValueError, match='layer "fc1": calibration gives activations that are not finite'):
        measure_norms(graph, state, Calibration([bad[:, :1].expand(3, 6)], device=torch.device("cpu")), chain=chain)


def test_sums_over_processes_are_asked_for_before_roots_are_taken() -> None:
    network, x = mlp(), torch.randn(16, 6)
    graph, state, calibration = calibrated(network, [x])
    doubled = Calibration([x], device=torch.device("cpu"), reduce=lambda total: 2 * total)
    one, two = (measure_norms(graph, state, data, chain=False) for data in (calibration, doubled))
    for name, norm in one.made.items():
        torch.testing.assert_close(two.made[name], norm * 2**0.5)
    (sources,) = views_of(graph.by_name["fc2"], 0)
    once, twice = (measure_moments(graph, state, data, [sources])[sources] for data in (calibration, doubled))
    assert twice.count == 2 * once.count
    torch.testing.assert_close(twice.mean, once.mean)
    torch.testing.assert_close(twice.gram, 2 * once.gram)
