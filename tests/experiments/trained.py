"""Networks and data for the tests of the runner: random weights in published files, a small MNIST of random images."""

from pathlib import Path

import torch
import yaml
from torch import nn

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
