"""The thesis's entry point: its signature, its conditions against a slow version of them, the files it finds."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import mlprank
from mlprank.datamodules import CIFAR10DataModule
from mlprank.models import SixLayerMLP, TwoLayerMLP
from mlprank.thesis import PUBLISHED, RECIPES, PublishedConditions, find_trained, prune_mlp
from tests.datamodules.writers import write_cifar10, write_mnist

BATCH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of CIFAR-10 and MNIST, and a SixLayerMLP and a TwoLayerMLP as the thesis's script leaves them."""
    root = tmp_path_factory.mktemp("thesis")
    write_cifar10(root / "cifar-10-batches-py")
    write_mnist(root / "MNIST" / "raw")
    torch.manual_seed(0)
    for network, epoch in ((SixLayerMLP(), 199), (TwoLayerMLP(), 19)):
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d):
                nn.init.uniform_(norm.running_mean, -1, 1)
        place = root / "artifacts" / "models" / type(network).__name__
        place.mkdir(parents=True)
        torch.save({"model": network.state_dict(), "epoch": epoch}, place / f"model_{epoch}.pth")
        torch.save({"model": {}}, place / "model_3.pth")
    return root


def test_positions_and_defaults_are_the_published_ones() -> None:
    parameters = list(inspect.signature(prune_mlp).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    empty = inspect.Parameter.empty
    assert positional == [
        ("model_name", empty),
        ("dataset_name", empty),
        ("measure_name", "WeightedPageRank"),
        ("method_name", "Local"),
        ("measure_args", None),
        ("amount", 0.3),
        ("top_k", (1, 5)),
        ("device", "cpu"),
        ("batch_size", 64),
        ("out_path", None),
    ]
    assert (PUBLISHED.amount, PUBLISHED.graph, PUBLISHED.num_samples, PUBLISHED.protect_output) == (
        0.3,
        "chain",
        64,
        False,
    )


def slow_weighted_pagerank(weight: Tensor, previous: Tensor, activation: Tensor) -> Tensor:
    gamma, theta = 0.9, 0.5
    size = weight.abs()
    pattern = (weight != 0).float()
    along = theta * (size / size.sum(0)) @ previous + (1 - theta) * (pattern / pattern.sum(0)) @ previous
    scores = gamma * along + (1 - gamma) * activation / activation.sum()
    return scores / scores.sum()


def published_by_hand(folder: Path, method: str, amount: float) -> tuple[nn.Module, list[Tensor], float]:
    """The published steps one by one, with torch's own pruning, in training mode throughout."""
    network = SixLayerMLP().train()
    network.load_state_dict(torch.load(folder / "artifacts/models/SixLayerMLP/model_199.pth")["model"])
    data = CIFAR10DataModule(data_dir=str(folder))
    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    linears = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in linears.items():

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            read[name], made[name] = inputs[0].norm(dim=0), output.relu().norm(dim=0)

        layer.register_forward_hook(keep)
    with torch.no_grad():
        network(data.read("train")[0][:BATCH].float() / 255)
        norms = dict(read), dict(made)
        previous = norms[0]["fc1"] / norms[0]["fc1"].sum()
        scores = []
        for name, layer in linears.items():
            previous = slow_weighted_pagerank(layer.weight, previous, norms[1][name])
            scores.append(previous)
        lowest = torch.cat(scores).argsort()[: math.ceil(amount * sum(map(len, scores)))]
        place = 0
        for layer, values in zip(linears.values(), scores, strict=True):
            gone = [int(i) - place for i in lowest if place <= i < place + len(values)]
            place += len(values)
            if method == "Local":
                count: float = amount
                ranked = values
            else:
                count = len(gone)
                ranked = torch.ones(len(values))
                ranked[gone] = 0
            rows = ranked.unsqueeze(1).repeat(1, layer.in_features)
            prune.ln_structured(layer, "weight", amount=count, n=1, dim=0, importance_scores=rows)
            prune.remove(layer, "weight")
        images, labels, _ = data.read("test")
        right = sum(
            int((network(batch.float() / 255).argmax(1) == truth).sum())
            for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        )
    return network, scores, right / len(labels)


@pytest.mark.parametrize(("method", "amount"), [("Local", 0.3), ("Global", 0.3), ("Global", 0.9)])
def test_published_conditions_are_the_published_steps(folder: Path, tmp_path: Path, method: str, amount: float) -> None:
    metrics, scores = prune_mlp(
        "SixLayerMLP",
        "CIFAR10",
        "WeightedPageRank",
        method,
        amount=amount,
        batch_size=BATCH,
        out_path=tmp_path,
        published=True,
        checkpoint=folder / "artifacts/models/SixLayerMLP/model_199.pth",
        data_dir=str(folder),
    )
    network, expected, accuracy = published_by_hand(folder, method, amount)
    for ours, theirs in zip(scores, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    written = torch.load(tmp_path / "pruned_model.pth")
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(written[name], parameter.data)
    assert metrics["top1_acc"] == pytest.approx(accuracy)
    nonzero = sum(int((parameter != 0).sum()) for parameter in network.parameters())
    total = sum(parameter.numel() for parameter in network.parameters())
    linears = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert (metrics["size"], metrics["size_nz"]) == (total, nonzero)
    assert metrics["actual_amount"] == pytest.approx(1 - nonzero / total)
    assert metrics["flops"] == sum(layer.in_features * layer.out_features for layer in linears)
    assert metrics["flops_nz"] == sum(int((layer.weight != 0).sum()) for layer in linears)
    if method == "Local":
        assert int((network.fc_last.weight == 0).all(1).sum()) == 3, "3 of 10 classes are gone"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned_model.pth"]


def test_amount_zero_as_published_gives_the_dense_network_and_no_scores(folder: Path) -> None:
    path = folder / "artifacts/models/SixLayerMLP/model_199.pth"
    options = {"checkpoint": path, "data_dir": str(folder), "batch_size": BATCH}
    metrics, scores = prune_mlp("SixLayerMLP", "CIFAR10", amount=0.0, published=True, **options)
    assert scores == []
    assert metrics["achieved_amount"] == 0
    assert metrics["size"] - metrics["size_nz"] == 2 * (512 + 256 + 128) - 512 - 256 - 128  # biases of new batch norms
    assert metrics["theoretical_speedup"] == 1


def test_the_network_that_is_given_stays_as_it_was(folder: Path) -> None:
    network = SixLayerMLP().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    conditions = PublishedConditions(network, CIFAR10DataModule(data_dir=str(folder)), batch_size=BATCH)
    pruned = conditions.prune(amount=0.5, measure=mlprank.measures.Norm(), method=mlprank.methods.Local())
    conditions.accuracies(pruned.network)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not network.training


def test_layers_that_the_published_code_does_not_know_stay_whole_and_are_named(folder: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 8), nn.ReLU(), nn.Linear(8, 10)
    )
    with pytest.warns(UserWarning, match=r'linear layers alone .*: "3", "5"; "0" stay whole'):
        conditions = PublishedConditions(network, CIFAR10DataModule(data_dir=str(folder)), batch_size=BATCH)
    pruned = conditions.prune(amount=0.5, measure=mlprank.measures.Norm(), method=mlprank.methods.Local())
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {"3": 4, "5": 5}
    assert torch.equal(pruned.network.get_parameter("0.weight"), network.get_parameter("0.weight"))


def test_two_names_are_enough_and_nothing_is_written_unasked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").symlink_to(folder / "artifacts")
    monkeypatch.setenv("MLPRANK_DATA_DIR", str(folder))
    metrics, scores = mlprank.prune_mlp("TwoLayerMLP", "MNIST")
    assert [len(values) for values in scores] == [256, 10]
    assert metrics["achieved_amount"] == pytest.approx(0.3, abs=0.01)
    assert metrics["actual_amount"] == pytest.approx(1 - metrics["size_nz"] / metrics["size"])
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_the_last_epoch_of_the_thesiss_script_is_found(folder: Path, tmp_path: Path) -> None:
    found = find_trained("SixLayerMLP", "CIFAR10", folder)
    assert found == folder / "artifacts/models/SixLayerMLP/model_199.pth"
    with pytest.raises(FileNotFoundError, match=r"(?s)no trained SixLayerMLP on CIFAR10 .*six_layer_cifar10.yaml"):
        find_trained("SixLayerMLP", "CIFAR10", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no recipe for SixLayerMLP on MNIST"):
        find_trained("SixLayerMLP", "MNIST", folder)
    (folder / "SixLayerMLP_CIFAR10.pth").write_bytes(found.read_bytes())
    assert find_trained("SixLayerMLP", "CIFAR10", folder).name == "SixLayerMLP_CIFAR10.pth"
    assert set(RECIPES.values()) == {path.stem for path in Path("configs/thesis").glob("*.yaml")}


def test_wrong_names_are_told_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown data set \"CIFAR\"; did you mean 'CIFAR10'"):
        prune_mlp("SixLayerMLP", "CIFAR", checkpoint=folder / "artifacts/models/SixLayerMLP/model_199.pth")
    with pytest.raises(ValueError, match=r"unknown measure \"Local\""):
        prune_mlp("SixLayerMLP", "CIFAR10", "Local", "WeightedPageRank")
    with pytest.raises(ValueError, match=r"unknown model \"SixLayers\"; did you mean 'SixLayerMLP'"):
        prune_mlp("SixLayers", "CIFAR10")
