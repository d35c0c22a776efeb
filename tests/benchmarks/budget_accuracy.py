"""What refinement, uneven widths and a search for a budget keep of ThreeLayerMLP's accuracy on FashionMNIST.

Run: uv run python tests/benchmarks/budget_accuracy.py --seeds 3

Networks are those of `compensation_accuracy.py` (8 epochs), calibration takes 4,096 images and no label, neurons are
chosen by reconstruction and their readers repaired by least squares. Printed as Markdown: the share of the dense top-1
that is kept on the 10,000 test images, mean over the seeds, and what `max_drop=0.5` leaves.
"""

from __future__ import annotations

import argparse
import time

import torch

import mlprank
from mlprank.costs.metrics import count_parameters, top_k_accuracy
from mlprank.datamodules import FashionMNISTDataModule
from mlprank.methods import Adaptive
from tests.benchmarks.compensation_accuracy import trained

REFINEMENTS = {"none": 0, "1,000 steps": 1000, "1,000 steps, kl": {"steps": 1000, "loss": "kl"}}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--amounts", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--max_drop", type=float, default=0.5)
    parser.add_argument("--without_search", action="store_true")
    options = parser.parse_args()
    kept: dict[tuple[float, str, str], list[float]] = {}
    found: list[str] = []
    for seed in range(options.seeds):
        data = FashionMNISTDataModule(seed=seed)
        network = trained(seed, data)
        test = list(data.test_dataloader())
        batch = [(torch.cat([x for x, _ in test]), torch.cat([y for _, y in test]))]
        dense = top_k_accuracy(network, batch, (1,))[1]
        calibration = data.calibration_dataloader(num_samples=4096, seed=seed)
        pruning = mlprank.Pruning(network, calibration, measure="reconstruction", num_samples=None)
        for amount in options.amounts:
            uniform = count_parameters(pruning.run(amount=amount).model) / count_parameters(network)
            ways = {
                "uniform": {"amount": amount, "method": "local"},
                "adaptive, as many neurons": {"amount": amount, "method": "adaptive"},
                "adaptive, as many parameters": {"amount": 1 - uniform, "method": Adaptive(count="parameters")},
            }
            for way, fields in ways.items():
                for name, refine in REFINEMENTS.items():
                    model = pruning.run(**fields, refine=refine).model
                    kept.setdefault((amount, way, name), []).append(top_k_accuracy(model, batch, (1,))[1] / dense)
        if options.without_search:
            continue
        start = time.perf_counter()
        front = mlprank.shrink(network, calibration, data.val_dataloader(), max_drop=options.max_drop)
        seconds = time.perf_counter() - start
        left = front.best_point.num_parameters / front.dense.num_parameters
        top1 = top_k_accuracy(front.best.model, batch, (1,))[1]
        found.append(
            f"| {seed} | {left:.1%} | {front.best_point.drop:.2f} | {100 * (dense - top1):.2f} "
            f"| {len(front.points)} | {seconds:.0f} |"
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| neurons removed | widths | " + " | ".join(REFINEMENTS) + " |")
    print("|---" * (2 + len(REFINEMENTS)) + "|")
    for amount, way in dict.fromkeys(key[:2] for key in kept):
        cells = []
        for name in REFINEMENTS:
            values = [100 * value for value in kept[amount, way, name]]
            cells.append(f"{sum(values) / len(values):.2f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {amount:g} | {way} | " + " | ".join(cells) + " |")
    print(
        f"\n| seed | parameters left at max_drop={options.max_drop:g} | drop, validation | drop, test "
        "| networks tried | seconds |"
    )
    print("|---" * 6 + "|")
    print("\n".join(found))


if __name__ == "__main__":
    main()
