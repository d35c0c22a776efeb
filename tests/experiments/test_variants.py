"""Variants tested together give the counts that each gives alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlprank.costs.metrics import top_k_accuracy
from mlprank.experiments import variants
from mlprank.experiments.variants import MemoryTest, Variant
from mlprank.models import MLP, SixLayerMLP, TwoLayerMLP
from mlprank.pruning.pipeline import Pruning

NUM_IMAGES = 300


class Repeated(nn.Module):
    """Reads its input twice by one layer, and adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(30, 20), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.last(torch.relu(self.first(x)) + torch.relu(self.first(x.flip(1))))


class Shared(nn.Module):
    """The first layer's neurons go to two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.skip = nn.Linear(30, 20), nn.Linear(20, 12), nn.Linear(20, 6)
        self.last = nn.Linear(12, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu_(self.first(x.flatten(1)))
        return self.last(torch.tanh(self.second(hidden))) + self.skip(hidden)


class Convolution(nn.Module):
    """A convolution, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 3 * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.conv(x)).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two": (lambda: TwoLayerMLP(30, 6), (1, 5, 6)),
    "three": (lambda: MLP(30, [24, 24], 6), (1, 5, 6)),
    "six": (lambda: SixLayerMLP(30, 6), (1, 5, 6)),
    "four": (lambda: MLP(30, [24, 24, 16], 6), (1, 5, 6)),
    "repeated": (Repeated, (1, 5, 6)),
    "shared": (Shared, (1, 5, 6)),
    "convolution": (Convolution, (1, 5, 6)),
}


def alone(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    shares = top_k_accuracy(model, zip(images.split(64), labels.split(64), strict=True), (1, 5))
    return round(shares[1] * len(images)), round(shares[5] * len(images))


def near(
    found: tuple[int, int], expected: tuple[int, int], *, model: nn.Module | None = None, images: Tensor | None = None
) -> bool:
    """Whether counts are equal, but for images whose logits are so close that rounding or a tie decides."""
    if model is None or images is None:
        return found == expected
    with torch.inference_mode():
        logits = model(images).sort(1).values
    close = int(((logits[:, 1:] - logits[:, :-1]).abs().min(1).values < 1e-5).sum())
    return all(abs(one - other) <= close for one, other in zip(found, expected, strict=True))


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    images = torch.rand(NUM_IMAGES, *shape)
    with torch.inference_mode():
        guessed = network(images).topk(4).indices[torch.arange(NUM_IMAGES), torch.arange(NUM_IMAGES) % 4]
    return network, images, guessed.clone()


@pytest.mark.parametrize("protect_output", [True, False])
@pytest.mark.parametrize("compensation", ["constant", "zero", "least_squares"])
@pytest.mark.parametrize("name", ["two", "three", "six", "four", "repeated", "shared"])
def test_counts_are_those_of_every_variant_alone(
    name: str, compensation: str, protect_output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "_CHUNK", 128)
    network, images, labels = build(name)
    graph = "chain" if name == "six" and compensation != "least_squares" else "dag"
    pruning = Pruning(network, images[:64], graph=graph)
    results = [
        pruning.run(
            amount=amount, measure=measure, method=method, compensation=compensation, protect_output=protect_output
        )
        for measure in ("weighted_pagerank", "norm")
        for method in ("local", "global")
        for amount in (0.0, 0.3, 0.8)
    ]
    test = MemoryTest(network, images, labels)
    got = test.accuracies([Variant(result.model, result.slices) for result in results])
    assert near((test.dense.top1, test.dense.top5), alone(network, images, labels))
    for found, result in zip(got, results, strict=True):
        assert near((found.top1, found.top5), alone(result.model, images, labels), model=result.model, images=images)


def test_the_first_layer_is_shared_where_variants_have_rows_of_it_and_put_back() -> None:
    network, images, labels = build("three")
    pruning = Pruning(network, images[:64], graph="chain")
    results = [pruning.run(amount=amount, compensation="constant") for amount in (0.5, 0.2)]
    with torch.no_grad():
        next(results[1].model.parameters()).mul_(2)
    test = MemoryTest(network, images, labels)
    found = [Variant(result.model, result.slices) for result in results]
    with test._shared(found):
        kinds = [[type(module) for module in variant.model.modules()].count(variants._Rows) for variant in found]
    assert kinds == [1, 0], "weights that are not the dense ones are run as they are"
    assert not any(isinstance(module, variants._Rows) for variant in found for module in variant.model.modules())


@pytest.mark.parametrize("name", ["repeated", "convolution"])
def test_a_network_that_does_not_read_the_images_by_one_linear_layer_shares_nothing(name: str) -> None:
    network, images, _ = build(name)
    assert variants._first_linear(network, images[:2]) is None


def test_ties_are_decided_as_they_are_one_by_one() -> None:
    network, images, labels = build("two")
    pruning = Pruning(network, images[:64], graph="chain")
    result = pruning.run(amount=0.6, compensation="zero", protect_output=False)
    with torch.inference_mode():
        logits = result.model(images)
    assert int((logits == 0).all(0).sum()) >= 3
    (got,) = MemoryTest(network, images, labels).accuracies([Variant(result.model, result.slices)])
    with torch.inference_mode():
        order = torch.sort(
            logits, dim=1, descending=True, stable=True
        ).indices  # of equal logits the lower class comes first
    assert got.top1 == int((order[:, 0] == labels).sum())


def test_logits_that_are_not_finite_are_an_error_of_that_variant_alone() -> None:
    network, images, labels = build("two")
    pruning = Pruning(network, images[:64], graph="chain")
    results = [pruning.run(amount=amount, compensation="constant") for amount in (0.2, 0.5)]
    with torch.no_grad():
        results[0].model.linear_relu_stack[2].bias[0] = float("nan")
    bad, good = MemoryTest(network, images, labels).accuracies(
        [Variant(result.model, result.slices) for result in results]
    )
    assert isinstance(bad, ValueError)
    assert "logits that are not finite" in str(bad)
    assert near((good.top1, good.top5), alone(results[1].model, images, labels), model=results[1].model, images=images)


def test_a_network_of_another_data_set_is_refused() -> None:
    network, images, labels = build("two")
    with pytest.raises(ValueError, match=r"label 11 names no class of a network with 6 outputs"):
        MemoryTest(network, images, torch.full_like(labels, 11))
    with pytest.raises(ValueError, match=r"TwoLayerMLP cannot take inputs of shape \(2, 1, 8, 8\)"):
        MemoryTest(network, torch.rand(8, 1, 8, 8), labels[:8])
