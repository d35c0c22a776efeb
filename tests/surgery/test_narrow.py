"""Neurons come out for real: slices, folded constants, created biases, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlprank.models import MLP, SixLayerMLP
from mlprank.pruning.pipeline import prune
from mlprank.surgery.narrow import narrow, network_state, with_state
from tests.networks import difference, outputs, randomise


def inputs(size: int = 6) -> Tensor:
    return torch.randn(30, size, generator=torch.Generator().manual_seed(1))


def test_every_tensor_along_the_neurons_is_cut_to_what_is_kept() -> None:
    network = randomise(SixLayerMLP(in_features=20), seed=1).eval()
    result = prune(network, inputs(20), amount=0.25, compensation="constant")
    kept = result.masks["fc1"]
    assert torch.equal(result.masks["fc2"], kept)
    narrowed, masked = result.model, result.masked
    for name, dims in (
        ("fc1.weight", (0,)),
        ("fc2.weight", (0, 1)),
        ("batchnorm.running_var", (0,)),
        ("fc3.weight", (1,)),
    ):
        expected = network_state(masked)[name]
        for dim in dims:
            expected = expected.index_select(dim, kept.nonzero().flatten())
        if name == "fc3.weight":
            expected = expected.index_select(0, result.masks["fc3"].nonzero().flatten())
        assert torch.equal(network_state(narrowed)[name], expected)
    first = narrowed.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert (first.out_features, first.in_features) == (384, 384)
    assert str(first) == "Linear(in_features=384, out_features=384, bias=True)"
    norm = narrowed.get_submodule("batchnorm")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_features == 384


def test_a_bias_is_created_only_where_a_constant_needs_one() -> None:
    network = randomise(MLP(6, [8, 8], 3, bias=False, activation="sigmoid"), seed=1).eval()
    result = prune(network, inputs(), compensation="zero")
    assert result.biases == ("fc2.bias", "fc_last.bias")
    bias = result.model.get_submodule("fc2").bias
    assert isinstance(bias, nn.Parameter)
    assert bias.shape == (4,)
    assert bias.requires_grad
    relu = prune(randomise(MLP(6, [8, 7], 3, bias=False), seed=1).eval(), inputs(), compensation="zero")
    assert relu.biases == ()
    assert relu.model.get_submodule("fc2").bias is None


def test_neurons_whose_constant_has_no_place_are_kept_and_counted() -> None:
    class Reused(nn.Module):
        """`read` reads two layers whose neurons leave different constants, with one bias."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.read = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.a(x).sigmoid()) + self.read(self.b(x).tanh())
            return out

    network = randomise(Reused(), seed=1).eval()
    held = prune(network, inputs(), amount=0.5, compensation="constant")
    assert held.achieved == 0
    assert held.held_back == {"a": 4, "b": 4}
    assert 'Kept though chosen, as nothing can take the constants they would leave behind: "a" 4, "b" 4.' in " ".join(
        str(held).split()
    )
    solved = prune(network, inputs(), amount=0.5, compensation="least_squares")
    assert solved.widths["a"] == (8, 4)
    assert difference(outputs(solved.masked, inputs()), outputs(solved.model, inputs())) < 1e-5


@pytest.mark.parametrize("compensation", ["constant", "least_squares"])
def test_neurons_that_would_leave_infinity_behind_are_kept(compensation: str) -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.make(x).square().log())
            return out

    network = randomise(Log(), seed=1).eval()
    with torch.no_grad():
        network.get_parameter("make.bias")[:4] = 0
    result = prune(network, inputs(), amount=0.5, compensation=compensation, measure="norm")
    gone = (~result.masks["make"]).sum()
    assert int(gone) == (0 if compensation == "least_squares" else 4 - result.held_back.get("make", 0))
    assert torch.isfinite(outputs(result.model, inputs())["logits"]).all()
    assert difference(outputs(result.masked, inputs()), outputs(result.model, inputs())) < 1e-5


def test_chain_mode_takes_out_what_every_tied_layer_lost_and_leaves_the_rest_zero() -> None:
    network = randomise(SixLayerMLP(in_features=20), seed=1).eval()
    result = prune(network, inputs(20), amount=0.6, compensation="constant", graph="chain")
    one, two = result.masks["fc1"], result.masks["fc2"]
    assert not torch.equal(one, two)
    union = one | two
    wide, kept = result.widths["fc1"]
    assert (wide, kept) == (512, int(union.sum()))
    weight = result.model.get_parameter("fc1.weight")
    assert not weight[~one[union]].any()
    assert difference(outputs(result.masked, inputs(20)), outputs(result.model, inputs(20))) < 1e-5
    assert f"({kept - int(one.sum())} zeroed)" in str(result)
    assert f"({kept - int(two.sum())} zeroed)" in str(result)


def test_an_unprotected_output_layer_is_zeroed_and_not_removed() -> None:
    network = randomise(MLP(6, [8], 5), seed=1).eval()
    for graph in ("dag", "chain"):
        result = prune(network, inputs(), amount=0.4, compensation="constant", protect_output=False, graph=graph)
        gone = ~result.masks["fc_last"]
        assert int(gone.sum()) == 2
        logits = outputs(result.model, inputs())["logits"]
        assert logits.shape == (30, 5)
        bias = network.get_parameter("fc_last.bias")
        # What pruned hidden neurons send is folded into the other biases only: these outputs read nothing any more.
        torch.testing.assert_close(logits[:, gone], bias[gone].expand(30, 2))
        assert "5 neurons (2 zeroed)" in str(result)


def test_a_copy_with_other_weights_shares_nothing_and_keeps_ties_modes_and_gradients_flags() -> None:
    network = MLP(6, [6, 6], 3)
    network.get_submodule("fc2").weight = network.get_submodule("fc1").weight  # type: ignore[assignment]
    network.get_parameter("fc2.bias").requires_grad_(False)
    network.train()
    network.get_submodule("act1").eval()
    state = {name: tensor + 1 for name, tensor in network_state(network).items()}
    copied = with_state(network, state)
    assert copied.get_parameter("fc1.weight") is copied.get_submodule("fc2").weight
    assert not copied.get_parameter("fc2.bias").requires_grad
    assert copied.training
    assert not copied.get_submodule("act1").training
    assert torch.equal(copied.get_parameter("fc1.bias"), network.get_parameter("fc1.bias") + 1)
    pointers = {tensor.data_ptr() for tensor in network_state(network).values()}
    assert not pointers & {tensor.data_ptr() for tensor in network_state(copied).values()}


def test_a_trainer_does_not_come_along() -> None:
    network = MLP(6, [6], 3)
    trainer = object()
    network.__dict__["_trainer"] = trainer
    copied = with_state(network, network_state(network))
    assert copied.__dict__["_trainer"] is None
    assert network.__dict__["_trainer"] is trainer


def test_a_dense_network_is_narrowed_by_slices() -> None:
    network = randomise(MLP(6, [8], 3, bias=False, activation="sigmoid"), seed=1).eval()
    result = prune(network, inputs(), compensation="zero")
    dense = copy.deepcopy(network)
    got = narrow(dense, result.slices, biases=result.biases)
    assert got is dense
    got.load_state_dict(result.model.state_dict())
    assert difference(outputs(got, inputs()), outputs(result.model, inputs())) == 0
    slices: dict[str, Any] = {"other.weight": {0: torch.tensor([0])}}
    with pytest.raises(ValueError, match=r'MLP has no tensor "other\.weight" that the pruned network has'):
        narrow(copy.deepcopy(network), slices)
    with pytest.raises(ValueError, match=r'layer "fc1": fc1\.weight has shape \(2, 6\), too small .* keeps index 7'):
        narrow(MLP(6, [2], 3), {"fc1.weight": {0: torch.tensor([0, 7])}})
