"""Variants tested together give the counts that each gives alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlprank.costs.metrics import top_k_accuracy
from mlprank.experiments import testing
from mlprank.experiments.sharing import Variant
from mlprank.experiments.stand_ins import Columns, Difference, RowMajor, Unread
from mlprank.experiments.testing import MemoryTest
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


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two": (lambda: TwoLayerMLP(30, 6), (1, 5, 6)),
    "three": (lambda: MLP(30, [24, 24], 6), (1, 5, 6)),
    "six": (lambda: SixLayerMLP(30, 6), (1, 5, 6)),
    "four": (lambda: MLP(30, [24, 24, 16], 6), (1, 5, 6)),
    "repeated": (Repeated, (1, 5, 6)),
    "shared": (Shared, (1, 5, 6)),
}


def alone(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    shares = top_k_accuracy(model, zip(images.split(64), labels.split(64), strict=True), (1, 5))
    return round(shares[1] * len(images)), round(shares[5] * len(images))


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
@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_every_variant_alone(
    name: str, compensation: str, protect_output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "_CHUNK", 128)
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
    test = MemoryTest(network, pruning.graph, images, labels)
    got = test.accuracies([Variant(result.model, result.slices) for result in results])
    assert (test.dense.top1, test.dense.top5) == alone(network, images, labels)
    assert [(each.top1, each.top5) for each in got] == [alone(result.model, images, labels) for result in results]


def test_variants_of_a_chain_share_their_first_two_layers() -> None:
    network, images, labels = build("three")
    pruning = Pruning(network, images[:64], graph="chain")
    results = [pruning.run(amount=amount, compensation="constant") for amount in (0.5, 0.2)]
    test = MemoryTest(network, pruning.graph, images, labels)
    variants = [Variant(result.model, result.slices) for result in results]
    with test._sharing.swapped(variants) as order:
        kinds = [[type(module) for module in variant.model.modules()] for variant in variants]
        small = next(module for module in variants[0].model.modules() if isinstance(module, Difference))
        assert small.base
    assert order == [1, 0]
    for found in kinds:
        assert found.count(Unread) == 1
        assert found.count(Difference) == 1
        assert found.count(RowMajor) == 1
    assert not any(isinstance(m, Columns | Difference | Unread) for v in variants for m in v.model.modules())


def test_ties_are_decided_as_they_are_one_by_one() -> None:
    network, images, labels = build("two")
    pruning = Pruning(network, images[:64], graph="chain")
    result = pruning.run(amount=0.6, compensation="zero", protect_output=False)
    with torch.inference_mode():
        logits = result.model(images)
    assert int((logits == 0).all(0).sum()) >= 3
    (got,) = MemoryTest(network, pruning.graph, images, labels).accuracies([Variant(result.model, result.slices)])
    assert (got.top1, got.top5) == alone(result.model, images, labels)


def test_a_variant_that_stand_ins_do_not_fit_is_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, labels = build("three")
    pruning = Pruning(network, images[:64], graph="chain")
    result = pruning.run(amount=0.4, compensation="constant")
    expected = alone(result.model, images, labels)
    test = MemoryTest(network, pruning.graph, images, labels)
    monkeypatch.setattr(Difference, "forward", lambda self, x: torch.zeros(len(images), len(self.cut.rows)))
    (got,) = test.accuracies([Variant(result.model, result.slices)])
    assert (got.top1, got.top5) == expected


def test_logits_that_are_not_finite_are_an_error_of_that_variant_alone() -> None:
    network, images, labels = build("two")
    pruning = Pruning(network, images[:64], graph="chain")
    results = [pruning.run(amount=amount, compensation="constant") for amount in (0.2, 0.5)]
    with torch.no_grad():
        results[0].model.linear_relu_stack[2].bias[0] = float("nan")
    bad, good = MemoryTest(network, pruning.graph, images, labels).accuracies(
        [Variant(result.model, result.slices) for result in results]
    )
    assert isinstance(bad, ValueError)
    assert "logits that are not finite" in str(bad)
    assert (good.top1, good.top5) == alone(results[1].model, images, labels)


def test_a_network_of_another_data_set_is_refused() -> None:
    network, images, labels = build("two")
    graph = Pruning(network, images[:64], graph="chain").graph
    with pytest.raises(ValueError, match=r"label 11 names no class of a network with 6 outputs"):
        MemoryTest(network, graph, images, torch.full_like(labels, 11))
    with pytest.raises(ValueError, match=r"TwoLayerMLP cannot take inputs of shape \(2, 1, 8, 8\)"):
        MemoryTest(network, graph, torch.rand(8, 1, 8, 8), labels[:8])


def test_only_batches_in_doubt_are_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, labels = build("three")
    pruning = Pruning(network, images[:64], graph="chain")
    results = [pruning.run(amount=amount, compensation="constant") for amount in (0.1, 0.3, 0.5)]
    test = MemoryTest(network, pruning.graph, images, labels)
    again: list[int] = []

    def counted(model: nn.Module, batches: object, k: object) -> dict[int, float]:
        again.append(len(list(batches)))  # type: ignore[call-overload]
        return {1: 0.0, 5: 0.0}

    monkeypatch.setattr(testing, "top_k_accuracy", counted)
    test.accuracies([Variant(result.model, result.slices) for result in results])
    assert sum(again) < len(results) * NUM_IMAGES / 64
