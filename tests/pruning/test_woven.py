"""The law of the engine on randomly drawn networks of vectors, tokens and images whose values are joined and split."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.pruning.pipeline import prune
from tests.networks import difference, outputs, randomise, settled

NUM_LAYERS = {"joined": 2, "maximum": 2, "where": 2, "stacked": 2, "low_rank": 3, "experts": 3, "shifted": 3}
DOUBLE = ("glu", "chunked", "split", "halves")
ANYWHERE = ("plain", "residual", "grown", "twice", *NUM_LAYERS, *DOUBLE)
PIECES = {
    "vectors": (*ANYWHERE, "layer_norm", "rms_norm", "batch_norm"),
    "tokens": (*ANYWHERE, "layer_norm", "rms_norm"),
    "images": (*ANYWHERE, "batch_norm", "group_norm", "instance_norm", "depthwise", "pooled", "scaled"),
}


class Woven(nn.Module):
    """Pieces over vectors (B, 4), tokens (B, 5, 4) or images (B, 4, 6, 6), then a head."""

    def __init__(self, space: str, pieces: list[str], width: int) -> None:
        super().__init__()
        self.space, self.pieces = space, pieces
        self.dim = -1 if space == "tokens" else 1
        self.enter, self.layers, self.norms = self.layer(4, width), nn.ModuleDict(), nn.ModuleDict()
        for index, piece in enumerate(pieces):
            sizes = [(width, 2 * width if piece in DOUBLE else width)] * NUM_LAYERS.get(piece, 1)
            if piece == "joined":
                sizes = [(width, 3), (width + 3, width)]
            elif piece == "low_rank":
                sizes = [(width, width), (width, 3), (3, width)]
            elif piece in ("experts", "shifted"):
                sizes[2] = (width, 1)
            self.layers[str(index)] = nn.ModuleList(self.layer(*size) for size in sizes)
            if piece == "depthwise":
                self.layers[str(index)].append(nn.Conv2d(width, width, 3, padding=1, groups=width))
            if "norm" in piece:
                self.norms[str(index)] = self.norm(piece, width)
            width += width if piece == "grown" else 0
        self.head = nn.Linear(width * 9 if space == "images" else width, 3)

    def layer(self, num_in: int, num_out: int) -> nn.Module:
        return nn.Conv2d(num_in, num_out, 3, padding=1) if self.space == "images" else nn.Linear(num_in, num_out)

    def norm(self, piece: str, width: int) -> nn.Module:
        if piece == "batch_norm":
            return nn.BatchNorm2d(width) if self.space == "images" else nn.BatchNorm1d(width)
        made: dict[str, Callable[[], nn.Module]] = {
            "layer_norm": lambda: nn.LayerNorm(width),
            "rms_norm": lambda: nn.RMSNorm(width),
            "group_norm": lambda: nn.GroupNorm(2, width),
            "instance_norm": lambda: nn.InstanceNorm2d(width, affine=True),
        }
        return made[piece]()

    def forward(self, x: Tensor) -> Tensor:
        h, dim = self.enter(x).relu(), self.dim
        for index, piece in enumerate(self.pieces):
            layers, z = self.layers[str(index)], None
            if piece != "joined":
                z = layers[0](h)
            if piece == "residual":
                h = h + z.tanh()
            elif piece == "grown":
                h = torch.cat([h, z.relu()], dim)
            elif piece == "twice":
                h = layers[0](z.relu()).relu()
            elif piece == "joined":
                h = layers[1](torch.cat([F.gelu(layers[0](h)), h], dim)).relu()
            elif piece == "maximum":
                h = torch.maximum(z, layers[1](h))
            elif piece == "where":
                h = torch.where(z > 0, z, layers[1](h).sigmoid())
            elif piece == "stacked":
                h = torch.stack([z.relu(), layers[1](h)], 0).mean(0)
            elif piece == "low_rank":
                h = (z + 0.5 * layers[2](layers[1](h))).relu()
            elif piece == "experts":
                share = layers[2](h).sigmoid()
                h = share * z.relu() + (1 - share) * layers[1](h).relu()
            elif piece == "shifted":
                h = torch.maximum(z.relu() + layers[1](h).relu().mean(dim, keepdim=True), layers[2](h))
            elif piece == "glu":
                h = F.glu(z, dim)
            elif piece == "chunked":
                gate, up = z.chunk(2, dim)
                h = F.silu(gate) * up
            elif piece == "split":
                one, other = z.split(z.shape[dim] // 2, dim)
                h = one.relu() + other
            elif piece == "halves":
                middle = z.shape[dim] // 2
                h = z.narrow(dim, 0, middle) * torch.sigmoid(z.narrow(dim, middle, middle))
            elif "norm" in piece:
                h = self.norms[str(index)](z).relu()
            elif piece == "depthwise":
                h = layers[1](z.relu()).relu()
            elif piece == "pooled":
                h = F.max_pool2d(z.relu(), 3, 1, 1) + F.avg_pool2d(z, 3, 1, 1)
            elif piece == "scaled":
                h = F.interpolate(F.max_pool2d(z, 2), scale_factor=2, mode="nearest").relu()
            else:
                h = z.relu()
        if self.space == "images":
            return self.head(F.adaptive_avg_pool2d(h, 3).flatten(1))
        return self.head(h.mean(1) if self.space == "tokens" else h)


SHAPES = {"vectors": (4,), "tokens": (5, 4), "images": (4, 6, 6)}
woven = st.sampled_from(sorted(PIECES)).flatmap(
    lambda space: st.tuples(st.just(space), st.lists(st.sampled_from(PIECES[space]), min_size=1, max_size=5))
)
drawn_networks = given(
    drawn=woven,
    width=st.sampled_from((4, 6, 8)),
    compensation=st.sampled_from(("constant", "mean", "least_squares")),
    amount=st.sampled_from((0.3, 0.5, 0.8)),
    seed=st.integers(0, 100),
)


def property_of_woven(drawn: tuple[str, list[str]], width: int, compensation: str, amount: float, seed: int) -> None:
    space, pieces = drawn
    network = randomise(Woven(space, pieces, width), seed=seed).double().eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    draw = torch.Generator().manual_seed(seed)
    x, other = (torch.randn(size, *SHAPES[space], generator=draw, dtype=torch.float64) for size in (24, 7))
    refused = ""
    try:
        result = prune(network, x, compensation=compensation, amount=amount)
    except ValueError as error:
        refused = str(error)
    if refused:  # a residual stream that a layer norm reads is all there is
        assert re.search("nothing to prune: .*residual stream", refused)
        assert "residual" in pieces
        assert {"layer_norm", "rms_norm"} & set(pieces)
        return
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert difference(outputs(result.masked, other), outputs(result.model, other)) <= 1e-9
    assert result.achieved > 0 or result.held_back  # by what they send that has no place
    narrow = copy.deepcopy(result.model).train()
    narrow(other).square().mean().backward()
    assert all(torch.isfinite(each.grad).all() for each in narrow.parameters() if each.grad is not None)


@settings(settled, max_examples=40)
@example(  # a layer of one output whose weights were written over themselves
    drawn=("tokens", ["where", "rms_norm", "chunked", "grown", "experts"]),
    width=6,
    compensation="mean",
    amount=0.8,
    seed=99,
)
@drawn_networks
def test_networks_that_join_and_split_are_exact(
    drawn: tuple[str, list[str]], width: int, compensation: str, amount: float, seed: int
) -> None:
    property_of_woven(drawn, width, compensation, amount, seed)


@pytest.mark.slow
@settings(settled, max_examples=300)
@drawn_networks
def test_300_networks_that_join_and_split_are_exact(
    drawn: tuple[str, list[str]], width: int, compensation: str, amount: float, seed: int
) -> None:
    property_of_woven(drawn, width, compensation, amount, seed)


@pytest.mark.parametrize("space", PIECES)
def test_every_piece_loses_half_of_its_neurons(space: str) -> None:
    left: dict[str, dict[str, tuple[int, int]]] = {}
    x = torch.randn(24, *SHAPES[space], generator=torch.Generator().manual_seed(0))
    for piece in PIECES[space]:
        network = randomise(Woven(space, [piece, "plain"], 8), seed=3).eval()
        widths = dict(prune(network, x, amount=0.5).widths)
        assert widths.pop("head") == (3, 3)
        left[piece] = {name: kept for name, kept in widths.items() if kept[1] > (kept[0] + 1) // 2}
    # The mean of neurons needs them all.
    assert {piece: list(layers) for piece, layers in left.items() if layers} == {"shifted": ["layers.0.1"]}
