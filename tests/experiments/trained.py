"""Networks and data for the tests of the runner: random weights in published files, a small MNIST of random images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlprank.measures import LayerRecord
from mlprank.models import MLP, TwoLayerMLP
from tests.datamodules.writers import write_mnist

DIGITS = {"in_features": 64, "widths": [24, 16], "num_classes": 10}


def save_published(network: nn.Module, path: Path) -> Path:
    """Write a network's weights as the thesis published them."""
    torch.save({"model": network.state_dict()}, path)
    return path


def digits_network(*, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(**DIGITS)


def write_digits_experiment(directory: Path, *, seeds: tuple[int, ...] = (0,), **changes: object) -> Path:
    """Write checkpoints of an MLP for digits and the YAML of an experiment over them; returns the YAML."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [str(save_published(digits_network(seed=seed), directory / f"mlp-{seed}.pth")) for seed in seeds]
    content = {
        "networks": ["MLP@Digits"],
        "checkpoints": {"MLP@Digits": files},
        "model_args": {"MLP@Digits": DIGITS},
        "measures": ["WeightedPageRank", "ChannelNorm"],
        "amounts": [0.25, 0.5],
        "latency": False,
        "out": str(directory / "results"),
        **changes,
    }
    path = directory / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_two_layer_mnist(directory: Path, *, num_test: int = 1000) -> Path:
    """Write MNIST's files with random images and a random TwoLayerMLP beside them; returns the checkpoint."""
    write_mnist(directory / "MNIST" / "raw", num_train=400, num_test=num_test)
    torch.manual_seed(3)
    return save_published(TwoLayerMLP(), directory / "TwoLayerMLP_MNIST.pth")


class Foreign(nn.Module):
    """Somebody's network with a convolution."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(channels * 16, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.out(torch.relu(self.fc(x.flatten(1))))


class ForeignData(LightningDataModule):
    """Somebody's data: no calibration_dataloader, no data_dir."""

    def __init__(self, count: int = 96) -> None:
        super().__init__()
        self.count = count

    def _loader(self, seed: int) -> DataLoader[Any]:
        draw = torch.Generator().manual_seed(seed)
        images = torch.rand(self.count, 1, 8, 8, generator=draw)
        return DataLoader(TensorDataset(images, torch.randint(3, (self.count,), generator=draw)), batch_size=32)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(0)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(1)


@dataclass(frozen=True)
class ByIndex:
    """Somebody's measure: the first neurons matter least."""

    power: float = 1.0

    def __call__(self, layer: LayerRecord) -> Tensor:
        return torch.arange(1, len(layer.weight) + 1).double() ** self.power
