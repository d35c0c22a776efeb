"""A narrow network carries its history: it is pruned, trained, saved and loaded in any order, whatever its class."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mlprank
from mlprank.artifact.pruned import read_artifact
from mlprank.artifact.record import record_of
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier
from tests.networks import difference, outputs, randomise

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))


class Bare(nn.Module):
    """A network that records nothing of how it was built, without biases, so that folding creates some."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 24, bias=False), nn.BatchNorm1d(24)
        self.mid, self.head = nn.Linear(24, 16, bias=False), nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.sigmoid(self.mid(torch.sigmoid(self.norm(self.fc(x))))))
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(6, [24, 16], 3, batch_norm=True),
    "bare": Bare,
    "classifier": lambda: ImageClassifier(MLP(6, [24, 16], 3)),
    "sequential": lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)),
}


def trained(network: nn.Module) -> nn.Module:
    """Take two steps of gradient descent."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), torch.arange(24) % 3).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_pruning_training_saving_and_loading_go_in_any_order(name: str, seed: int, tmp_path: Path) -> None:
    draw, make = random.Random(seed), NETWORKS[name]
    network = mlprank.prune(randomise(make(), seed=1).eval(), X, amount=0.2, compensation="constant").model
    for step in [*draw.choices(("prune", "train", "save", "copy"), k=5), "prune", "train", "save"]:
        if step == "prune":
            network = mlprank.prune(network, X, amount=0.2, compensation="constant").model
        elif step == "train":
            network = trained(network)
        elif step == "copy":
            network = copy.deepcopy(network)
        else:
            path = mlprank.save_pruned(network, tmp_path / "pruned.ckpt", step="any")
            instance = make() if name in ("bare", "sequential") else None
            loaded = mlprank.load_pruned(path, instance)
            assert difference(outputs(loaded, X), outputs(network, X)) == 0
            assert read_artifact(path).provenance["step"] == "any"
            network = loaded
    record = record_of(network)
    assert record is not None
    assert record.shapes == {key: list(tensor.shape) for key, tensor in make().state_dict().items()}


def test_pruned_twice_and_saved_is_loaded_from_the_file_alone(tmp_path: Path) -> None:
    once = mlprank.prune(randomise(MLP(6, [12, 8], 3), seed=1), X)
    twice = mlprank.prune(once.model, X)
    loaded = mlprank.load_pruned(twice.save(tmp_path / "twice.ckpt"))
    assert [loaded.fc1.out_features, loaded.fc2.out_features] == [3, 2]
    assert difference(outputs(loaded, X), outputs(twice.model, X)) == 0


def test_a_narrow_network_inside_a_module_is_saved_with_the_module(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.last = net, nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.net(x))
            return out

    whole = trained(Around(mlprank.prune(randomise(Bare(), seed=1).eval(), X).model))
    path = mlprank.save_pruned(whole, tmp_path / "around.ckpt")
    loaded = mlprank.load_pruned(path, Around(Bare()))
    assert difference(outputs(loaded, X), outputs(whole, X)) == 0


def test_pruning_leaves_no_trace_on_the_dense_network() -> None:
    dense = randomise(Bare(), seed=1).eval()
    mlprank.prune(dense, X)
    assert record_of(dense) is None


def test_a_network_that_was_never_pruned_or_was_changed_since_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(
        ValueError, match=r"model: Bare was never pruned, so there is no record to save; call mlprank\.prune"
    ):
        mlprank.save_pruned(Bare(), path)
    network = mlprank.prune(randomise(Bare(), seed=1).eval(), X).model
    network.head = nn.Linear(network.mid.out_features, 5)
    with pytest.raises(ValueError, match=r"Bare does not fit the record of its pruning .*were its layers changed"):
        mlprank.save_pruned(network, path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_written_by_training_a_narrow_classifier_has_its_last_pruning(tmp_path: Path) -> None:
    narrow = mlprank.prune(ImageClassifier(MLP(6, [12, 8], 3)).eval(), X).model
    again = mlprank.prune(narrow, X).model
    checkpoint: dict[str, object] = {}
    again.on_save_checkpoint(checkpoint)
    record = record_of(again)
    assert record is not None
    own = checkpoint.get("mlprank")
    assert own is None or own["slices"].keys() == record.slices.keys()
