"""Prune the channels of a convolutional network and bring its accuracy back without labels.

Run: python examples/convolutional.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mlprank


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train for a few epochs; changes the network in place."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in [0, 1]."""
    with torch.no_grad():
        return float((network.eval()(images).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4, 10),
    )
    train(network, images[:1200], labels[:1200])
    dense = accuracy(network, images[1200:], labels[1200:])
    for compensation in ("zero", "least_squares"):
        result = mlprank.prune(network, images[:512], amount=0.5, measure="reconstruction", compensation=compensation)
        pruned = accuracy(result.model, images[1200:], labels[1200:])
        print(f"{compensation}: {dense:.1%} dense, {pruned:.1%} with half of the channels")
