"""Channels are pruned like neurons: what is removed computes what is masked, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.compensation import LeastSquares
from mlprank.pruning.pipeline import Pruning, prune, score
from mlprank.pruning.result import PruningResult
from tests import reference
from tests.networks import difference, outputs, randomise
from tests.reference_graph import refit

COMPENSATIONS = ("constant", "zero", "mean", "least_squares")


def images(count: int = 6, channels: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)


def settled(network: nn.Module, seed: int = 1) -> nn.Module:
    randomise(network, seed=seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 2:
                parameter.mul_((2 / parameter[0].numel()) ** 0.5)
    return network.double().eval()


def agreeing(network: nn.Module, x: Tensor, **choices: object) -> PruningResult:
    """Prune, and see that masked and narrow network agree on other data, too."""
    result = prune(network, x, **choices)  # type: ignore[arg-type]
    for other in (x, x[:1] * 3 - 1):
        assert difference(outputs(result.masked, other), outputs(result.model, other)) < 1e-11
    assert all(torch.isfinite(value).all() for value in outputs(result.model, x).values())
    return result


def conv(width_in: int, width_out: int, size: int = 3, **options: int) -> nn.Sequential:
    padding = options.pop("padding", size // 2)
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, size, padding=padding, **options), nn.BatchNorm2d(width_out), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(self.one(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, 4), conv(width + 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.one(x)], 1)
        return torch.cat([x, self.two(x)], 1)


class UNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up, self.out = conv(width, 6, stride=2), nn.ConvTranspose2d(6, 4, 2, 2), conv(width + 4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.up(self.down(x)), F.interpolate(F.max_pool2d(x, 2), scale_factor=2)], 1))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]


NETWORKS: dict[str, Callable[[], list[nn.Module]]] = {
    "plain": lambda: [conv(3, 8), nn.MaxPool2d(2), conv(8, 6, stride=2), *head(6)],
    "without padding": lambda: [conv(3, 8, padding=0), conv(8, 6, padding=0), *head(6)],
    "flatten to blocks": lambda: [
        conv(3, 8),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    ],
    "residual": lambda: [conv(3, 8), Residual(8), Residual(8), *head(8)],
    "depthwise": lambda: [conv(3, 8, 1), conv(8, 8, groups=8), conv(8, 6, 1), *head(6)],
    "depthwise, two a channel": lambda: [conv(3, 4, 1), conv(4, 8, groups=4), conv(8, 6, 1), *head(6)],
    "grouped": lambda: [conv(3, 8), conv(8, 12, groups=2), conv(12, 6), *head(6)],
    "squeeze and excite": lambda: [conv(3, 8), SqueezeExcite(8), conv(8, 6), *head(6)],
    "densely connected": lambda: [conv(3, 6), Dense(6), conv(16, 6), *head(6)],
    "u-net": lambda: [conv(3, 6), UNet(6), *head(6)],
    "group norm": lambda: [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8, eps=0.1), nn.SiLU(), conv(8, 6), *head(6)],
    "group norm, one group": lambda: [nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8, eps=0.1), nn.GELU(), conv(8, 6), *head(6)],
    "instance norm": lambda: [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ELU(), conv(8, 6), *head(6)],
    "pixel shuffle": lambda: [conv(3, 16), nn.PixelShuffle(2), conv(4, 6), *head(6)],
    "transposed, grouped": lambda: [
        conv(3, 8),
        nn.ConvTranspose2d(8, 6, 2, 2, groups=2),
        nn.ReLU(),
        conv(6, 6),
        *head(6),
    ],
    "prelu and dropout": lambda: [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Dropout2d(), conv(8, 6), *head(6)],
    "gated": lambda: [conv(3, 8), nn.GLU(1), conv(4, 6), *head(6)],
    "reflected": lambda: [conv(3, 8), nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), *head(6)],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_are_removed_exactly(name: str) -> None:
    pruning = Pruning(settled(nn.Sequential(*NETWORKS[name]())), images())
    for compensation in COMPENSATIONS:
        result = pruning.run(amount=0.5, compensation=compensation)
        for x in (images(), images(1) * 3 - 1):
            assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-11
        if compensation in ("mean", "least_squares"):
            assert not result.held_back
            assert result.achieved >= 0.4
            assert [name for name, reason in result.whole.items() if "outputs" not in reason] == []


@pytest.mark.parametrize(
    "measure", ["weighted_pagerank", "modified_pagerank", "norm", "activation", "wanda", "reconstruction"]
)
def test_every_measure_prunes_channels(measure: str) -> None:
    network = settled(nn.Sequential(*NETWORKS["flatten to blocks"](), nn.Identity()))
    result = agreeing(network, images(), measure=measure, amount=0.5)
    assert result.widths["0.0"] == (8, 4)
    assert result.units["0.0"] == "channels"


def test_a_constant_has_no_place_in_a_bias_of_a_convolution_that_pads() -> None:
    network = settled(nn.Sequential(conv(3, 8), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), *head(6)))
    held = agreeing(network, images(), compensation="constant")
    assert held.held_back.get("0.0", 0) > 0
    unpadded = settled(nn.Sequential(conv(3, 8), nn.Conv2d(8, 6, 3), nn.ReLU(), *head(6)))
    assert "0.0" not in agreeing(unpadded, images(), compensation="constant").held_back


def test_scores_of_a_convolution_are_those_of_its_summed_kernels() -> None:
    network = settled(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), *head(4)))
    x = images()
    got = score(network, x, measure="weighted_pagerank")
    seen: dict[str, np.ndarray] = {}
    value = x
    for name, module in network.named_children():
        value = module(value)
        seen[name] = value.detach().numpy()
    first, second = (
        network.get_submodule(name).get_parameter("weight").detach().abs().sum((2, 3)).numpy() for name in "02"
    )
    norms = {name: np.sqrt((values**2).sum((0, 2, 3))) for name, values in seen.items() if values.ndim == 4}
    own = np.sqrt((x.numpy() ** 2).sum((0, 2, 3)))
    one = reference.weighted_pagerank(first, own / own.sum(), norms["1"], gamma=0.9, theta=0.5)
    two = reference.weighted_pagerank(second, one, norms["3"], gamma=0.9, theta=0.5)
    np.testing.assert_allclose(got["0"].numpy(), one, rtol=1e-7)
    np.testing.assert_allclose(got["2"].numpy(), two, rtol=1e-7)


def test_a_block_behind_a_flatten_counts_as_one_input() -> None:
    network = settled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)
        )
    )
    got = score(network, images(), measure="norm")
    weight = network.get_submodule("4").get_parameter("weight").detach()
    torch.testing.assert_close(got["4"], weight.abs().sum(1) / weight.abs().sum())
    ranked = score(network, images(), measure="modified_pagerank")
    emitted = network[:6](images()).detach().norm(dim=0)  # type: ignore[index]
    linked = weight.abs().view(5, 4, 4).sum(2) @ ranked["0"]
    expected = emitted * linked
    torch.testing.assert_close(ranked["4"], expected / expected.sum())


def test_least_squares_fits_whole_kernels_to_what_the_dense_network_computed() -> None:
    network = settled(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Tanh(), *head(4))
    )
    x = images(10)
    result = prune(network, x, amount=0.5, compensation=LeastSquares(ridge=1e-2))
    mask = result.masks["0"]
    first, second = network.get_submodule("0"), network.get_submodule("2")
    weight = second.get_parameter("weight").detach()
    patches = F.unfold(first(x).tanh().detach(), 3, stride=2, padding=1).transpose(1, 2).reshape(-1, 54).numpy()
    kept = mask.repeat_interleave(9).numpy()
    flat = weight.flatten(1).numpy()
    new, shift = refit(patches, patches @ flat.T, flat, kept, ridge=1e-2)
    got = result.masked.get_submodule("2")
    rows = result.masks["2"]
    torch.testing.assert_close(
        got.get_parameter("weight").flatten(1)[:, kept][rows].detach(), torch.from_numpy(new)[rows]
    )
    assert not got.get_parameter("weight")[:, ~mask].any()
    bias = second.get_parameter("bias").detach() + torch.from_numpy(shift)
    torch.testing.assert_close(got.get_parameter("bias").detach()[rows], bias[rows])


def test_least_squares_misses_less_than_mean_and_mean_less_than_constant() -> None:
    network = settled(nn.Sequential(conv(3, 16), conv(16, 8, padding=0), *head(8)))
    x = images(64)
    dense = outputs(network, x)["logits"]
    pruning = Pruning(network, x)
    errors = [
        float((outputs(pruning.run(amount={"0.0": 0.5}, compensation=name).model, x)["logits"] - dense).square().mean())
        for name in ("least_squares", "mean", "constant")
    ]
    assert errors[0] < errors[1] < errors[2]


def test_positions_are_sampled_and_one_coefficient_a_channel_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    network = settled(nn.Sequential(conv(3, 8), conv(8, 6), *head(6)))
    whole = agreeing(network, images(), amount=0.5)
    assert whole.notes == ()
    monkeypatch.setattr("mlprank.compensation._MANY_ROWS", 12)
    sampled = agreeing(network, images(), amount=0.5)
    assert not torch.equal(
        sampled.model.get_submodule("1.0").get_parameter("weight"),
        whole.model.get_submodule("1.0").get_parameter("weight"),
    )
    monkeypatch.setattr("mlprank.pruning.masked_weights._MAX_SEEN", 20)
    by_channel = agreeing(network, images(), amount=0.5)
    assert by_channel.notes[0].startswith("Mended by one coefficient a neuron")
    assert '"1.0"' in str(by_channel)


def test_channels_with_masks_of_torch_count_as_pruned() -> None:
    from torch.nn.utils import prune as torch_prune

    network = settled(nn.Sequential(conv(3, 8), conv(8, 6), *head(6)))
    before = torch.ones(8, dtype=torch.bool)
    before[:3] = False
    mask = before.view(-1, 1, 1, 1).expand(8, 3, 3, 3)
    torch_prune.custom_from_mask(network[0][0], "weight", mask)  # type: ignore[index, no-untyped-call]
    result = agreeing(network, images(), amount=0.5)
    assert not result.masks["0.0"][:3].any()
    assert result.widths["0.0"] == (8, 4)


def test_masks_go_onto_a_convolutional_network_and_come_back() -> None:
    import copy

    from mlprank.surgery.masks import apply_masks

    network = settled(nn.Sequential(*NETWORKS["group norm"]()))
    result = prune(network, images(), amount=0.5)
    live = copy.deepcopy(network)
    apply_masks(live, result.masked, result.parameter_masks)
    assert difference(outputs(live, images()), outputs(result.model, images())) < 1e-11
    again = prune(live, images(), amount=0.5)
    assert difference(outputs(again.masked, images()), outputs(again.model, images())) < 1e-11
