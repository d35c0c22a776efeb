"""The pipeline as users call it: every choice together, bigger networks, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

import mlprank
from mlprank.measures import Norm
from mlprank.methods import Local
from mlprank.models import MLP, SixLayerMLP
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.pipeline import Pruning, prune, score
from mlprank.pruning.result import PruningResult
from tests.networks import difference, outputs, randomise, state_of

OUTPUT = "its neurons are outputs of the network"


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape or (20, 6), generator=torch.Generator().manual_seed(1))


def agreeing(network: nn.Module, x: Tensor, **arguments: Any) -> PruningResult:
    result = prune(network, x, **arguments)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) <= 1e-5
    return result


@pytest.fixture(scope="module")
def pruning() -> Pruning:
    return Pruning(randomise(MLP(6, [16, 12, 10], 4), seed=1).eval(), inputs())


# -- the choices --------------------------------------------------------------------------------------------------


def test_prune_and_score_are_what_pruning_does(pruning: Pruning) -> None:
    result, again = prune(pruning.model, inputs(), amount=0.3), pruning.run(amount=0.3)
    assert difference(outputs(result.model, inputs()), outputs(again.model, inputs())) == 0
    for name, scores in score(pruning.model, inputs()).items():
        assert torch.equal(scores, result.scores[name])
    assert mlprank.prune is prune
    assert mlprank.score is score


def test_amount_nought_gives_the_dense_network(pruning: Pruning) -> None:
    for compensation in ("constant", "zero", "mean", "least_squares"):
        result = pruning.run(amount=0.0, compensation=compensation)
        assert result.achieved == 0
        for name, tensor in pruning.model.state_dict().items():
            assert torch.equal(tensor, result.model.state_dict()[name])


def test_guards_keep_neurons_and_round_widths_up(pruning: Pruning) -> None:
    assert pruning.run(amount=0.95).widths == {"fc1": (16, 1), "fc2": (12, 1), "fc3": (10, 1), "fc_last": (4, 4)}
    few = pruning.run(amount=0.95, min_neurons=3)
    assert [narrow for _, narrow in few.widths.values()] == [3, 3, 3, 4]
    rounded = pruning.run(amount=0.6, round_to=8)
    assert rounded.widths == {"fc1": (16, 8), "fc2": (12, 8), "fc3": (10, 8), "fc_last": (4, 4)}
    assert rounded.recipe.amount == 0.6
    assert rounded.achieved == pytest.approx(14 / 38)
    huge = pruning.run(amount=0.5, min_neurons=100)
    assert huge.achieved == 0


def test_the_same_pruning_twice_is_the_same_to_the_last_bit(pruning: Pruning) -> None:
    for measure in ("random", "weighted_pagerank", "reconstruction"):
        for method in ("local", "global"):
            one, two = (prune(pruning.model, inputs(), measure=measure, method=method) for _ in range(2))
            assert difference(outputs(one.model, inputs()), outputs(two.model, inputs())) == 0
            assert all(torch.equal(mask, two.masks[name]) for name, mask in one.masks.items())


def test_one_reading_serves_many_prunings_without_a_trace_of_the_earlier_ones(pruning: Pruning) -> None:
    before = state_of(pruning.model)
    first = pruning.run(amount=0.5, measure="reconstruction")
    pruning.run(amount=0.9, compensation="zero", protect_output=False)
    again = pruning.run(amount=0.5, measure="reconstruction")
    assert difference(outputs(first.model, inputs()), outputs(again.model, inputs())) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(pruning.model).items())


def test_global_compares_layers_and_local_does_not(pruning: Pruning) -> None:
    local, widthwise = pruning.run(amount=0.5), pruning.run(amount=0.5, method="global")
    assert local.achieved == widthwise.achieved == 0.5
    assert [narrow for _, narrow in local.widths.values()] == [8, 6, 5, 4]
    removed = sum(wide - narrow for wide, narrow in widthwise.widths.values())
    assert removed == 19
    with pytest.raises(
        ValueError,
        match=r'method="global" takes one amount for all layers, but was given .*; use method="local" for several',
    ):
        pruning.run(amount={"fc1": 0.3, "fc2": 0.5}, method="global")


def test_reconstruction_scores_a_layer_on_the_network_that_is_pruned_below_it() -> None:
    network = randomise(MLP(6, [16, 12], 4), seed=1).eval()
    dense = prune(network, inputs(), measure="reconstruction", amount={"fc2": 0.5})
    below = prune(network, inputs(), measure="reconstruction", amount={"fc1": 0.8, "fc2": 0.5}, compensation="zero")
    assert not torch.equal(dense.scores["fc2"], below.scores["fc2"])
    by_hand = prune(network, inputs(), measure="reconstruction", amount={"fc1": 0.8}, compensation="zero").masked
    torch.testing.assert_close(below.scores["fc2"], score(by_hand, inputs(), measure="reconstruction")["fc2"])


def test_loaders_tuples_and_lightning_modules_are_taken() -> None:
    network = randomise(MLP(6, [16, 12], 4), seed=1).eval()
    expected = outputs(prune(network, inputs()).model, inputs())
    loader = DataLoader(TensorDataset(inputs(), torch.zeros(20)), batch_size=20)
    assert difference(outputs(prune(network, loader).model, inputs()), expected) == 0
    module = ImageClassifier(copy.deepcopy(network))
    result = prune(module, loader)
    assert type(result.model) is ImageClassifier
    assert difference(outputs(result.model, inputs()), expected) == 0
    assert list(result.masks) == ["model.fc1", "model.fc2"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_pruned_in_their_precision(dtype: torch.dtype) -> None:
    network = randomise(MLP(6, [16, 12], 4), seed=1).to(dtype).eval()
    result = prune(network, inputs().to(dtype))
    assert result.widths["fc1"] == (16, 8)
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert torch.isfinite(outputs(result.model, inputs().to(dtype))["logits"]).all()


def test_a_single_sample_is_enough() -> None:
    network = randomise(MLP(6, [16, 12], 4), seed=1).eval()
    for compensation in ("constant", "mean", "least_squares"):
        agreeing(network, inputs(1, 6), compensation=compensation)


def test_frozen_parameters_stay_frozen_and_created_biases_follow_their_weight() -> None:
    network = randomise(MLP(6, [16, 12], 4, bias=False, activation="sigmoid"), seed=1).eval()
    network.get_parameter("fc2.weight").requires_grad_(False)
    result = prune(network, inputs())
    assert not result.model.get_parameter("fc2.weight").requires_grad
    assert not result.model.get_parameter("fc2.bias").requires_grad
    assert result.model.get_parameter("fc_last.bias").requires_grad


def test_arguments_are_named_when_they_are_wrong(pruning: Pruning) -> None:
    with pytest.raises(ValueError, match="graph='tree' is unknown; choose one of dag, chain"):
        prune(pruning.model, inputs(), graph="tree")
    with pytest.raises(TypeError, match=r"model is a str; give an nn\.Module"):
        prune("model.pt", inputs())  # type: ignore[arg-type]
    for name in ("min_neurons", "round_to"):
        for value in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match=f"{name}={value} must be a whole number of at least 1"):
                pruning.run(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='unknown measure "page_rank"; did you mean'):
        pruning.run(measure="page_rank")
    with pytest.raises(ValueError, match=r"amount=1\.5 is not in \[0, 1\)"):
        score(pruning.model, inputs(), amount=1.5)


# -- bigger networks ----------------------------------------------------------------------------------------------


def test_every_block_of_a_vision_transformer_loses_hidden_neurons_and_keeps_its_embedding() -> None:
    network = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )
    randomise(network, seed=1).eval()
    result = agreeing(network, inputs(6, 3, 16, 16), amount=0.5)
    blocks = [f"encoder.layers.encoder_layer_{index}" for index in range(2)]
    assert list(result.masks) == [f"{block}.mlp.0" for block in blocks]
    for block in blocks:
        assert result.widths[f"{block}.mlp.0"] == (32, 16)
        assert result.whole[f"{block}.mlp.3"] == "they are a residual stream that a layer norm reads, which stays whole"
        assert "`view` mixes them" in result.whole[f"{block}.self_attention.in_proj_weight"]
    assert result.whole["conv_proj"] == "they are a residual stream that a layer norm reads, which stays whole"
    assert result.whole["heads.head"] == OUTPUT


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_feed_forward_part_of_torchs_encoder_layer_is_pruned(norm_first: bool) -> None:
    network = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first, activation="gelu")
    result = agreeing(randomise(network, seed=1).eval(), inputs(6, 4, 16), amount=0.5)
    assert list(result.masks) == ["linear1"]
    assert result.widths["linear1"] == (32, 16)


class SwiGLU(nn.Module):
    def __init__(self, width: int = 12, hidden: int = 20) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out


@pytest.mark.parametrize("compensation", ["constant", "least_squares"])
def test_gate_and_up_of_a_gated_block_are_one_group(compensation: str) -> None:
    network = randomise(nn.Sequential(SwiGLU(), SwiGLU(), nn.Linear(12, 3)), seed=1).eval()
    result = agreeing(network, inputs(8, 4, 12), amount=0.5, compensation=compensation)
    for block in ("0", "1"):
        assert torch.equal(result.masks[f"{block}.gate"], result.masks[f"{block}.up"])
        assert torch.equal(result.scores[f"{block}.gate"], result.scores[f"{block}.up"])
        assert result.widths[f"{block}.gate"] == (20, 10)
        assert f"{block}.down" in result.whole
    assert result.biases == (() if compensation == "constant" else ("0.down.bias", "1.down.bias"))


def test_channels_and_the_head_of_a_convolutional_network_are_pruned() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4),
    )  # fmt: skip
    result = agreeing(randomise(network, seed=1).eval(), inputs(8, 3, 9, 9), amount=0.5)
    assert result.widths == {"0": (8, 4), "5": (16, 8), "8": (4, 4)}
    assert result.whole == {"8": OUTPUT}
    assert result.model.get_submodule("5").get_parameter("weight").shape == (8, 16)
    assert result.units["0"] == "channels"
    assert 'Whole: "8": its neurons are outputs of the network.' in " ".join(str(result).split())


def test_two_heads_read_one_trunk() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 2, bias=False)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = F.gelu(self.trunk(x))
            return {"one": self.one(h), "two": self.two(h)}

    network = randomise(TwoHeads(), seed=1).eval()
    for compensation in ("constant", "mean", "least_squares"):
        result = agreeing(network, inputs(), compensation=compensation)
        assert result.widths["trunk"] == (12, 6)
        assert result.biases == ("two.bias",)
        assert result.whole == {"one": OUTPUT, "two": OUTPUT}


def test_the_thesis_network_of_residuals_is_pruned_by_every_measure() -> None:
    network = randomise(SixLayerMLP(in_features=24), seed=1).eval()
    pruning = Pruning(network, inputs(40, 24))
    for measure in ("weighted_pagerank", "modified_pagerank", "activation", "wanda", Norm(p=2), "reconstruction"):
        result = pruning.run(amount=0.5, measure=measure, method=Local())
        assert difference(outputs(result.masked, inputs(9, 24)), outputs(result.model, inputs(9, 24))) <= 1e-5
        assert [narrow for _, narrow in result.widths.values()] == [256, 256, 128, 128, 64, 10]
