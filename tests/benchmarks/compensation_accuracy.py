"""Accuracy kept without retraining: all measures, compensations and amounts, on ThreeLayerMLP and FashionMNIST.

Run: uv run python tests/benchmarks/compensation_accuracy.py --seeds 3

Trains one network a seed (8 epochs, Adam, learning rate 0.001) and keeps it under `runs/compensation_accuracy`,
calibrates on 1,024 images, prunes locally with the output protected, and prints Markdown: top-1 on the 10,000 test
images, mean over the seeds. With `--checkpoints "runs/four_layer/seed{seed}.ckpt"` it takes networks that `mlprank fit`
trained on FashionMNIST instead.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.costs.metrics import top_k_accuracy
from mlprank.datamodules import FashionMNISTDataModule
from mlprank.measures import MEASURES
from mlprank.models import ThreeLayerMLP, load_network
from mlprank.pruning.pipeline import Pruning

AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
COMPENSATIONS = ("constant", "zero", "mean", "least_squares")
HOME = Path("runs/compensation_accuracy")


def trained(seed: int, data: FashionMNISTDataModule, *, epochs: int = 8) -> nn.Module:
    """Return the network of a seed, trained now or earlier."""
    torch.manual_seed(seed)
    network, path = ThreeLayerMLP(), HOME / f"three_layer_fashion_mnist_{seed}.pth"
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True)["model"])
        return network.eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loader = data.train_dataloader()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        schedule.step()
    HOME.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, path)
    return network.eval()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checkpoints", help="a path with {seed} in it")
    parser.add_argument("--num_samples", type=int, default=1024)
    parser.add_argument("--measures", nargs="+", default=list(MEASURES))
    parser.add_argument("--compensations", nargs="+", default=list(COMPENSATIONS))
    parser.add_argument("--amounts", nargs="+", type=float, default=list(AMOUNTS))
    options = parser.parse_args()
    found: dict[tuple[str, str, float], list[float]] = {}
    dense: list[float] = []
    for seed in range(options.seeds):
        data = FashionMNISTDataModule(seed=seed)
        path = options.checkpoints and options.checkpoints.format(seed=seed)
        network = load_network(path, input_shape=(1, 28, 28)).model if path else trained(seed, data)
        test = list(itertools.islice(data.test_dataloader(), None))
        batch: list[tuple[Tensor, Tensor]] = [(torch.cat([x for x, _ in test]), torch.cat([y for _, y in test]))]
        dense.append(top_k_accuracy(network, batch, (1,))[1])
        pruning = Pruning(network, data.calibration_dataloader(num_samples=options.num_samples, seed=seed))
        for measure, compensation, amount in itertools.product(
            options.measures, options.compensations, options.amounts
        ):
            result = pruning.run(amount=amount, measure=measure, compensation=compensation)
            found.setdefault((measure, compensation, amount), []).append(top_k_accuracy(result.model, batch, (1,))[1])
    mean_dense = sum(dense) / len(dense)
    print(
        f"Dense top-1 {mean_dense:.2%} ({', '.join(f'{value:.2%}' for value in dense)}); torch {torch.__version__}.\n"
    )
    for compensation in options.compensations:
        print(f"**{compensation}**, top-1 in %, share of the dense accuracy in brackets\n")
        print("| measure | " + " | ".join(f"{amount:g}" for amount in options.amounts) + " |")
        print("|---" * (len(options.amounts) + 1) + "|")
        for measure in options.measures:
            means = [sum(found[measure, compensation, a]) / options.seeds for a in options.amounts]
            print(f"| {measure} | " + " | ".join(f"{100 * m:.1f} ({100 * m / mean_dense:.1f})" for m in means) + " |")
        print()


if __name__ == "__main__":
    main()
