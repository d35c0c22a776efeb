"""The law of every layer kind, and a kind that nobody but its own class and this test knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx, nn

from mlprank.graph.layers import KINDS, Convolution, Embedding, Kind, Linear, Use, matrix
from mlprank.graph.program import as_node, ndim_of
from mlprank.graph.trace import trace
from mlprank.pruning.pipeline import prune
from tests.networks import difference, outputs, randomise


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(6, 4), rand(5, 6)),
    "linear of tokens": (nn.Linear(6, 4), rand(5, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), rand(2, 4, 9)),
    "conv1d, same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2), rand(2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), rand(2, 4, 7, 6)),
    "conv2d, dilated": (nn.Conv2d(4, 6, 3, dilation=2, bias=False), rand(2, 4, 7, 6)),
    "conv2d, grouped": (nn.Conv2d(6, 4, 3, groups=2, padding=1), rand(2, 6, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2), rand(2, 2, 4, 5, 4)),
}


def use_in(layer: nn.Module, x: Tensor) -> Use:
    """How a traced program uses the layer."""
    graph = trace(nn.Sequential(layer).double().eval(), x)
    (call,) = graph.layers[0].calls
    node = graph.program.nodes[graph.program.order[call.node]]
    return Use(call.kind, as_node(node.args[0]), call.place[1], as_node(node.args[1]), None, call.out_dim)


@pytest.mark.parametrize("name", LAYERS)
def test_an_operation_is_its_patches_times_its_flat_weight(name: str) -> None:
    layer, x = LAYERS[name]
    use = use_in(layer, x)
    weight, bias = layer.double().get_parameter("weight").detach(), getattr(layer, "bias", None)
    flat = use.kind.flat(weight)
    seen = use.kind.patches(x, torch.arange(flat.shape[2]), None).double()
    got = torch.einsum("grip,goip->rgo", seen, flat).flatten(1)
    expected = layer(x).movedim(use.out_dim, -1).reshape(-1, got.shape[1])
    torch.testing.assert_close(got if bias is None else got + bias, expected)
    made = use.kind.outputs(x, weight, None).transpose(0, 1).flatten(1)
    torch.testing.assert_close(got, made)
    assert torch.equal(use.kind.unflat(flat, weight), weight)
    assert matrix(use.kind, weight).shape == (flat.shape[0] * flat.shape[1], flat.shape[0] * flat.shape[2])
    some = use.kind.patches(x, torch.tensor([1]), 2)
    assert some.shape[2] == 1
    every = use.kind.patches(x, torch.arange(flat.shape[2]), 2).double()
    torch.testing.assert_close(use.kind.outputs(x, weight, 2), torch.einsum("grip,goip->gro", every, flat))
    assert len(some[0]) <= max(len(seen[0]), 1)


@pytest.mark.parametrize(
    "layer", [nn.ConvTranspose1d(4, 6, 2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ConvTranspose3d(2, 4, 2)]
)
def test_transposed_convolutions_have_a_matrix_and_no_patches(layer: nn.Module) -> None:
    weight = layer.get_parameter("weight").detach()
    kind = Convolution(tuple(weight.shape[2:]), groups=int(layer.groups), transposed=True)  # type: ignore[arg-type]
    assert torch.equal(kind.unflat(kind.flat(weight), weight), weight)
    assert matrix(kind, weight).shape == (layer.out_channels, layer.in_channels)
    assert not kind.refits


@pytest.mark.parametrize(
    ("equation", "shape"), [("...i,io->...o", (6, 4)), ("...i,oi->...o", (4, 6)), ("bti,io->bto", (6, 4))]
)
def test_products_with_a_matrix_are_linear_layers(equation: str, shape: tuple[int, int]) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(shape)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.einsum(equation, x, self.w).relu())
            return out

    network, x = randomise(Product(), seed=1).eval(), torch.randn(5, 3, 6)
    result = prune(network, x)
    assert result.widths["w"] == (4, 2)
    assert tuple(result.model.get_parameter("w").shape) == tuple(2 if size == 4 else size for size in shape)
    assert not result.masked.get_parameter("w").movedim(0 if shape[0] == 4 else 1, 0)[~result.masks["w"]].any()
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


class Conv1D(nn.Module):
    """The linear layer of GPT-2: weights lie transposed, `addmm` multiplies."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.empty(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


@pytest.mark.parametrize("compensation", ["constant", "mean", "least_squares"])
def test_the_transposed_layers_of_gpt2_are_pruned(compensation: str) -> None:
    network = randomise(nn.Sequential(Conv1D(16, 6), nn.GELU(), Conv1D(3, 16)), seed=1).eval()
    x = torch.randn(4, 5, 6)
    result = prune(network, x, compensation=compensation)
    assert result.widths == {"0": (16, 8), "2": (3, 3)}
    assert (result.model.get_submodule("0").nf, result.model.get_submodule("2").nx) == (8, 8)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (nn.Linear(6, 4), {"in_features": 3, "out_features": 2}),
        (nn.Conv2d(6, 4, 3), {"in_channels": 3, "out_channels": 2}),
        (nn.ConvTranspose2d(6, 4, 3), {"in_channels": 2, "out_channels": 3}),
        (nn.Embedding(6, 4), {"num_embeddings": 2, "embedding_dim": 3}),
    ],
)
def test_sizes_that_modules_state_follow_their_weights(module: nn.Module, sizes: dict[str, int]) -> None:
    weight = module.get_parameter("weight").detach()
    module.register_parameter("weight", nn.Parameter(weight[:2, :3].clone()))
    for kind in KINDS:
        kind().resize(module)
    assert {name: getattr(module, name) for name in sizes} == sizes


@dataclass(frozen=True)
class Outer(Kind):
    """A made-up kind: `torch.inner(x, weight)`, a linear layer by another name."""

    unit: ClassVar[str] = "inner products"
    operations: ClassVar[frozenset[str]] = frozenset({"inner"})

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        source, weight = as_node(node.args[0]), as_node(node.args[1])
        return Use(cls(), source, ndim_of(source) - 1, weight, None, ndim_of(node) - 1)


def test_a_new_kind_is_one_class() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.inner(torch.inner(x, self.w).relu(), self.v)

    network, x = randomise(Inner(), seed=2).eval(), torch.randn(20, 6)
    with pytest.raises(ValueError, match="nothing to prune"):
        trace(network, x)
    KINDS.insert(0, Outer)
    try:
        result = prune(network, x)
    finally:
        KINDS.remove(Outer)
    assert result.widths == {"w": (8, 4), "v": (3, 3)}
    assert result.units["w"] == "inner products"
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


def test_kinds_are_asked_for_in_order_and_embeddings_count_their_rows() -> None:
    assert KINDS[-3:] == [Linear, Convolution, Embedding]
    counts = Embedding(5).input_norms(torch.tensor([[0, 1], [1, 4]]), -1)
    assert counts.tolist() == [1, 2, 0, 0, 1]
