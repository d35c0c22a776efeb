"""Where neurons go, operation by operation: what is followed, what stays whole, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.graph.trace import trace
from mlprank.pruning.pipeline import prune
from mlprank.pruning.result import PruningResult
from tests.networks import difference, outputs, randomise


class Network(nn.Module):
    """Two linear layers, `make` (6 to 8) and `read` (8 to 3), and something between them."""

    def __init__(self, between: Callable[[Network, Tensor], Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.make, self.read, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.between(self, self.make(x).relu()))
        return out


def pruned(between: Callable[..., Tensor], *shape: int, **modules: nn.Module | nn.Parameter) -> PruningResult:
    network = randomise(Network(between, **modules), seed=1).eval()
    x = torch.randn(shape or (9, 6), generator=torch.Generator().manual_seed(0))
    result = prune(network, x, amount=0.5, compensation="constant")
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5
    return result


FOLLOWED: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "flatten of ones": (lambda m, h: h[:, :, None, None].flatten(1), (9, 6)),
    "reshape of tokens": (lambda m, h: h.reshape(-1, h.shape[-1]).view(-1, 4, h.shape[-1]), (9, 4, 6)),
    "transpose and back": (lambda m, h: h.transpose(1, 2).transpose(-2, -1), (9, 4, 6)),
    "permute": (lambda m, h: h.permute(2, 0, 1).permute(1, 2, 0), (9, 4, 6)),
    "mean over tokens": (lambda m, h: h.mean(1), (9, 4, 6)),
    "sum, keeping the dimension": (lambda m, h: h.sum(dim=1, keepdim=True), (9, 4, 6)),
    "the largest token": (lambda m, h: h.amax(1), (9, 4, 6)),
    "the first token": (lambda m, h: h[:, 0], (9, 4, 6)),
    "some tokens": (lambda m, h: h[:, 1:3], (9, 4, 6)),
    "expand to new leading dimensions": (lambda m, h: h.expand(2, *h.shape).sum(0), (9, 6)),
    "in place": (lambda m, h: h.mul_(2).add_(1).tanh_(), (9, 6)),
    "scalars": (lambda m, h: 1 - h / 2 + 0.5, (9, 6)),
    "where and clamp": (lambda m, h: torch.where(h > 0.1, h, 0.2 * h).clamp(max=3), (9, 6)),
    "powers": (lambda m, h: h**2 + h.abs().sqrt(), (9, 6)),
    "dropout": (lambda m, h: F.dropout(h, 0.3, m.training), (9, 6)),
    "dtype and back": (lambda m, h: h.double().float(), (9, 6)),
    "its own gate": (lambda m, h: h * torch.sigmoid(h), (9, 6)),
    "concatenation": (lambda m, h: sum(torch.cat([h, 2 * h], 1).chunk(2, 1)), (9, 6)),
    "halves": (lambda m, h: torch.cat([h[:, : h.shape[1] // 2], 2 * h[:, h.shape[1] // 2 :]], 1), (9, 6)),
    "equal parts, weighed against each other": (
        lambda m, h: (h * h.unflatten(1, (2, -1)).softmax(1).flatten(1)).exp(),
        (9, 6),
    ),
    "stacked": (lambda m, h: torch.stack([h, h.tanh()], 1).mean(1), (9, 6)),
    "the larger one": (lambda m, h: torch.max(h, 1 - h), (9, 6)),
    "the larger one of itself": (lambda m, h: torch.max(h, h), (9, 6)),
    "repeated tokens": (lambda m, h: h.repeat(1, 2, 1).sum(1), (9, 4, 6)),
    "some tokens of a list": (lambda m, h: h[:, [2, 0]].mean(1), (9, 4, 6)),
    "softmax over tokens": (lambda m, h: h.softmax(1), (9, 4, 6)),
    "tokens as positions of channels": (
        lambda m, h: F.avg_pool1d(h.transpose(1, 2), 2).transpose(1, 2),
        (9, 4, 6),
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_neurons_are_followed_through(name: str) -> None:
    between, shape = FOLLOWED[name]
    result = pruned(between, *shape)
    assert result.widths["make"] == (8, 4)
    assert result.whole == {"read": "its neurons are outputs of the network"}


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


WITH_TENSORS: dict[str, tuple[Callable[..., Tensor], dict[str, nn.Module | nn.Parameter]]] = {
    "gain and shift": (lambda m, h: h * m.g + m.b, {"g": parameter(8), "b": parameter(1, 8)}),
    "a learned scalar": (lambda m, h: h * m.g, {"g": parameter(1)}),
    "batch norm": (lambda m, h: m.n(h), {"n": nn.BatchNorm1d(8)}),
    "batch norm without gain": (lambda m, h: m.n(h), {"n": nn.BatchNorm1d(8, affine=False)}),
    "prelu": (lambda m, h: m.n(h - 1), {"n": nn.PReLU(8)}),
    "prelu of one slope": (lambda m, h: m.n(h - 1), {"n": nn.PReLU()}),
    "layer norm": (lambda m, h: m.n(h), {"n": nn.LayerNorm(8, eps=0.1)}),
    "rms norm": (lambda m, h: m.n(h), {"n": nn.RMSNorm(8, eps=0.1)}),
    "rms norm of the usual eps": (lambda m, h: m.n(h), {"n": nn.RMSNorm(8)}),
}


@pytest.mark.parametrize("name", WITH_TENSORS)
def test_tensors_along_the_neurons_are_cut_with_them(name: str) -> None:
    between, modules = WITH_TENSORS[name]
    result = pruned(between, **modules)
    assert result.widths["make"] == (8, 4)
    for tensor, dims in result.slices.items():
        for dim, index in dims.items():
            assert len(index) == 4, (tensor, dim)


REFUSED: dict[str, tuple[Callable[..., Tensor], str, dict[str, nn.Module | nn.Parameter]]] = {
    "layer norm without a gain": (
        lambda m, h: m.n(h),
        'they feed `layer_norm` in "n"',
        {"n": nn.LayerNorm(8, elementwise_affine=False)},
    ),
    "layer norm of a stream": (
        lambda m, h: m.n(h + m.make2(h)),
        "they are a residual stream that a layer norm reads, which stays whole",
        {"n": nn.LayerNorm(8), "make2": nn.Linear(8, 8)},
    ),
    "softmax": (lambda m, h: h.softmax(-1), "they feed `softmax`", {}),
    "attention": (
        lambda m, h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
        "they are attention heads, which stay whole",
        {},
    ),
    "every other": (lambda m, h: torch.cat([h[:, ::2], h[:, 1::2]], 1), "they feed `slice`", {}),
    "a product with themselves": (lambda m, h: h @ h.t() @ h, "they feed `matmul`", {}),
    "a recurrent layer": (
        lambda m, h: m.r(h[None])[0][0],
        "a recurrent layer reads them, which stays whole",
        {"r": nn.LSTM(8, 8, batch_first=True)},
    ),
    "mixing reshape": (lambda m, h: h.view(-1, 4, 2).flatten(1), "`view` mixes them with another dimension", {}),
    "own statistics": (
        lambda m, h: m.n(h),
        "a batch norm normalises them",
        {"n": nn.BatchNorm1d(8, track_running_stats=False)},
    ),
    "a share of their sum": (lambda m, h: h / (1 + h.sum(1, keepdim=True)), "they feed `sum`", {}),
    "a scalar of the batch": (lambda m, h: h * (1 + h.detach().mean()), "they feed `mean`", {}),
    "dropout that stays on": (lambda m, h: F.dropout(h, 0.5), "`dropout` drops them in evaluation mode, too", {}),
    "expand along them": (lambda m, h: h[:, :1].expand(-1, 8) + h, "`expand` repeats them", {}),
    "sorting": (lambda m, h: h.sort(1).values, "they feed `sort`", {}),
    "entries by their number": (lambda m, h: h + h.take(torch.tensor([0])), "they feed `take`", {}),
    "a weight that is read elsewhere": (lambda m, h: h + m.make.weight.sum(), "they feed `sum`", {}),
    "a computed weight": (
        lambda m, h: F.linear(h, m.w * 2),
        "they feed a layer whose weight is computed",
        {"w": parameter(8, 8)},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_neurons_that_cannot_be_followed_stay_whole_for_a_reason(name: str) -> None:
    between, reason, modules = REFUSED[name]
    network = randomise(Network(between, **modules), seed=1).eval()
    graph = trace(network, torch.randn(9, 6))
    assert reason in (graph.group_of("make").whole or "")
    with pytest.raises(ValueError, match=r'there is nothing to prune: .*"make"'):
        prune(network, torch.randn(9, 6))


CUT_BY_THE_BATCH: dict[str, Callable[[Tensor, int], Tensor]] = {
    "narrow": lambda h, size: torch.cat([h.narrow(1, 0, size), h.narrow(1, size, 8 - size)], 1),
    "split_with_sizes": lambda h, size: torch.cat(h.split([size, 8 - size], 1), 1),
    "slice": lambda h, size: torch.cat([h[:, :size], h[:, size:]], 1),
    "repeat": lambda h, size: h.repeat(1, size)[:, :8],
}


@pytest.mark.parametrize("name", CUT_BY_THE_BATCH)
def test_neurons_that_are_cut_by_the_size_of_the_batch_stay_whole(name: str) -> None:
    network = Network(lambda m, h: CUT_BY_THE_BATCH[name](h, h.shape[0]))
    whole = trace(randomise(network, seed=1).eval(), torch.randn(7, 6)).group_of("make").whole
    assert (whole or "").startswith(f"they feed `{name}`")


def test_a_constant_that_depends_on_the_input_keeps_its_neurons() -> None:
    def scaled(module: Network, h: Tensor) -> Tensor:
        return h * module.get_buffer("seen").mean()

    network = Network(scaled)
    network.register_buffer("seen", torch.ones(3))
    assert trace(randomise(network, seed=1).eval(), torch.randn(9, 6)).group_of("make").whole is None

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.make(x).relu() * x.mean())
            return out

    whole = trace(Scaled(), torch.randn(9, 6)).group_of("make").whole
    assert whole == "`mul` combines them with a value that is no neuron's own"


def test_what_is_no_linear_layer_is_named_with_its_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table, self.unused = nn.Conv1d(2, 4, 3), nn.Embedding(5, 4), nn.Linear(2, 2)
            self.masked, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x).mean(-1) + self.table(x[:, 0, 0].long().clamp(0, 4))
            out: Tensor = self.head(self.masked(h))
            return out

    graph = trace(Mixed().eval(), torch.rand(3, 2, 6))
    for name in ("conv", "table"):
        assert graph.group_of(name).whole == "they feed a layer whose weight is computed in the forward pass"
    assert graph.others["unused"] == "the forward pass does not use it"
    assert "computed in the forward pass: remove masks and parametrisations first" in graph.others["masked"]


def test_layers_with_one_weight_are_one_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.one, self.two, self.head = (nn.Linear(i, o) for i, o in ((5, 7), (7, 7), (7, 7), (7, 3)))
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.two(self.one(self.enter(x).tanh()).tanh()).tanh())
            return out

    network, x = randomise(Tied(), seed=2).eval(), torch.randn(40, 5)
    for compensation in ("least_squares", "mean", "zero"):
        result = prune(network, x, amount=0.4, compensation=compensation)
        assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5
        one, two = result.model.get_submodule("one"), result.model.get_submodule("two")
        assert one.get_parameter("weight") is two.get_parameter("weight")
        assert one.get_parameter("bias") is not two.get_parameter("bias")


@pytest.mark.parametrize("compensation", ["constant", "zero", "least_squares"])
def test_layers_with_one_bias_are_removed_exactly(compensation: str) -> None:
    class OneBias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.c.bias = self.a.bias
            self.b.bias = self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.d(self.c(self.a(x).relu() + self.b(x).tanh()).relu())
            return out

    network, x = randomise(OneBias(), seed=2).eval(), torch.randn(40, 5)
    result = prune(network, x, amount=0.5, compensation=compensation)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5
    assert set(result.masks) == {"a", "b", "c"}


def test_a_reason_to_stay_whole_holds_for_all_that_are_tied_later() -> None:
    class LateTie(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.read = nn.Linear(6, 8), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x).relu(), self.b(x).relu()
            normed = self.norm(b).mean(1, keepdim=True)
            out: Tensor = self.read(a + b) + normed
            return out

    graph = trace(LateTie(), torch.randn(9, 6))
    assert graph.group_of("a") is graph.group_of("b")
    assert (graph.group_of("a").whole or "").startswith(
        "they feed `mean` at `normed = self.norm(b).mean(1, keepdim=True)` ("
    )
