"""mlprank beside Torch-Pruning and NVIDIA ModelOpt: what one pruning keeps, costs and takes, in one run.

Run: uv run --group peers python tests/benchmarks/peers.py --network FourLayerCNN --ckpt_path
    runs/fit/RUN/checkpoints/best.ckpt

Every tool gets the same trained network and is asked to take the same share of channels out of every hidden layer;
ModelOpt, which takes a limit on parameters and no share, gets the parameters that mlprank left. All see the same 512
calibration images. Torch-Pruning's Taylor importance also sees their labels, and ModelOpt's search scores candidates on
2,000 labelled validation images; mlprank uses no label. Prints one row a tool and amount: top-1 on the 10,000 test
images at once and after one epoch of fine-tuning (Adam, learning rate 0.001, batch size 256, the same order for all),
parameters, FLOPs and latency as shares of the dense network's, and the seconds that pruning took.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mlprank
from mlprank.datamodules import FashionMNISTDataModule
from mlprank.models import MODELS

Batch = tuple[Tensor, Tensor]


def network_of(name: str, path: Path) -> nn.Module:
    """Return a network of `mlprank.models` with the weights of a checkpoint that `mlprank fit` wrote."""
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    network = MODELS[name]()
    network.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    return network.eval()


def whole(loader: object, *, limit: int | None = None) -> Batch:
    """Return the images and labels of a loader as two tensors, at most `limit` of them."""
    images, labels = zip(*loader, strict=True)  # type: ignore[call-overload]
    return torch.cat(images)[:limit], torch.cat(labels)[:limit]


@torch.inference_mode()
def top1(network: nn.Module, data: Batch) -> float:
    """Return the share of images that a network classifies correctly, in percent."""
    network.eval()
    images, labels = data
    hits = sum(
        int((network(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * hits / len(labels)


def finetuned(network: nn.Module, data: Batch) -> nn.Module:
    """Return a copy of a network, trained for one epoch."""
    network = copy.deepcopy(network).train().requires_grad_()
    images, labels = data
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for chosen in order.split(256):
        optimizer.zero_grad()
        F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


def parameters(network: nn.Module) -> int:
    """Return the number of weights and biases."""
    return sum(p.numel() for p in network.parameters())


def flops(network: nn.Module, images: Tensor) -> int:
    """Return the floating-point operations of one forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images)
    return counter.get_total_flops()


@torch.inference_mode()
def latency(dense: nn.Module, pruned: nn.Module, images: Tensor, *, rounds: int = 30) -> float:
    """Return the pruned network's time as a share of the dense one's: medians, measured in turns."""
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for which, network in enumerate((dense, pruned)):
            start = time.perf_counter()
            network(images)
            times[which].append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def by_mlprank(
    calibration: Batch, *, limits: dict[float, int] | None = None, **recipe: Any
) -> Callable[[nn.Module, float], nn.Module]:
    """Prune without labels by `mlprank.prune`: every layer alike, or so many parameters spent where they cost least."""

    def prune(network: nn.Module, amount: float) -> nn.Module:
        if limits is None:
            return mlprank.prune(network, calibration[0], amount=amount, **recipe).model
        share = 1 - limits[amount] / parameters(network)
        method = {"name": "adaptive", "count": "parameters"}
        return mlprank.prune(network, calibration[0], amount=share, method=method, **recipe).model

    return prune


def by_torch_pruning(importance: str, calibration: Batch) -> Callable[[nn.Module, float], nn.Module]:
    """Prune by Torch-Pruning: one step, every layer alike, the classifier left alone."""
    import torch_pruning

    def prune(network: nn.Module, amount: float) -> nn.Module:
        network = copy.deepcopy(network).requires_grad_()
        chosen = {
            "group L2": torch_pruning.importance.GroupMagnitudeImportance(p=2),
            "Taylor": torch_pruning.importance.GroupTaylorImportance(),
        }[importance]
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        pruner = torch_pruning.pruner.BasePruner(
            network, calibration[0][:2], importance=chosen, pruning_ratio=amount, ignored_layers=[last]
        )
        if importance == "Taylor":
            F.cross_entropy(network(calibration[0]), calibration[1]).backward()
        pruner.step()
        return network.eval()

    return prune


def by_modelopt(
    validation: Batch, limits: dict[float, int], known: Path, *, divisor: int
) -> Callable[[nn.Module, float], nn.Module]:
    """Prune by ModelOpt's FastNAS to as many parameters as mlprank left; its search knows validation labels."""
    import modelopt.torch.prune as pruning

    rules = {f"nn.Conv{n}d": {"*": {"channel_divisor": divisor}} for n in (1, 2, 3)}
    rules |= {f"nn.{kind}": {"*": {"feature_divisor": divisor}} for kind in ("Linear", "BatchNorm1d", "BatchNorm2d")}

    def prune(network: nn.Module, amount: float) -> nn.Module:
        pruned, _ = pruning.prune(
            copy.deepcopy(network),
            mode=[("fastnas", rules)],
            constraints={"params": float(limits[amount])},
            dummy_input=validation[0][:1],
            config={
                "data_loader": [validation],
                "score_func": lambda net: top1(net, validation),
                "checkpoint": str(known),  # what the first search measured of every layer serves the next ones
            },
        )
        return pruned.eval()

    return prune


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(MODELS), required=True)
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--amounts", type=float, nargs="+", default=[0.25, 0.5, 0.7])
    parser.add_argument(
        "--divisor", type=int, default=4, help="ModelOpt's widths are multiples of this (its default: 32)"
    )
    parser.add_argument("--finetune", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--modelopt", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    data = FashionMNISTDataModule(batch_size=1000)
    test, train = whole(data.test_dataloader()), whole(data.train_dataloader())
    calibration, validation = (train[0][:512], train[1][:512]), whole(data.val_dataloader(), limit=2000)
    dense = network_of(options.network, options.ckpt_path)
    timed = test[0][:64]
    base, arithmetic = parameters(dense), flops(dense, timed)
    print(
        f"{options.network}: dense top-1 {top1(dense, test):.2f} %, {base:,} parameters, "
        f"{arithmetic / 64 / 1e6:.1f} MFLOPs an image; torch {torch.__version__}\n"
    )
    columns = ("amount", "tool", "top-1 at once", "after one epoch", "parameters", "FLOPs", "latency", "seconds")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    limits: dict[float, int] = {}
    tools: dict[str, Callable[[nn.Module, float], nn.Module]] = {
        "mlprank, reconstruction": by_mlprank(calibration, measure="reconstruction"),
        "mlprank, weighted PageRank": by_mlprank(calibration, measure="weighted_pagerank"),
        "mlprank, reconstruction, adaptive": by_mlprank(calibration, limits=limits, measure="reconstruction"),
        "mlprank, the same, refine=300": by_mlprank(calibration, limits=limits, measure="reconstruction", refine=300),
        "Torch-Pruning, group L2": by_torch_pruning("group L2", calibration),
        "Torch-Pruning, Taylor": by_torch_pruning("Taylor", calibration),
    }
    if options.modelopt:
        known = Path(tempfile.mkdtemp()) / "fastnas.pt"
        tools["ModelOpt, FastNAS"] = by_modelopt(validation, limits, known, divisor=options.divisor)
    for amount in options.amounts:
        for name, prune in tools.items():
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                pruned = prune(dense, amount)
            seconds = time.perf_counter() - start
            limits.setdefault(amount, parameters(pruned))
            later = f"{top1(finetuned(pruned, train), test):.2f}" if options.finetune else "–"
            shares = (parameters(pruned) / base, flops(pruned, timed) / arithmetic, latency(dense, pruned, timed))
            cells = [f"{amount:g}", name, f"{top1(pruned, test):.2f}", later, *(f"{100 * s:.0f} %" for s in shares)]
            print("| " + " | ".join([*cells, f"{seconds:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
