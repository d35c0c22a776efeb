"""On an accelerator: `mlprank fit` against a raw loop of torch, and the latency of a pruned network.

Run: python -m tests.benchmarks.gpu fit --epochs 8
     python -m tests.benchmarks.gpu latency dense.ckpt
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

import mlprank
from mlprank.datamodules import CIFAR10DataModule
from mlprank.models import SixLayerMLP
from mlprank.models.classifier import ImageClassifier
from mlprank.training import run as training_run
from mlprank.training.parser import parse

RECIPE = Path("configs/thesis/six_layer_cifar10.yaml")
AMOUNTS = (0.5, 0.75)
BATCH_SIZES = (1, 64, 1024)


def finish(device: torch.device) -> float:
    """Wait until the device has done everything, and return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock(Callback):
    """Wall time of every epoch, its validation included; the first is left out."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.marks.append(finish(pl_module.device))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.marks.append(finish(pl_module.device))

    @property
    def epoch_s(self) -> float:
        """Median of all epochs but the first."""
        return statistics.median(after - before for before, after in pairwise(self.marks[1:]))


def fit(device: torch.device, *, epochs: int, batch_size: int, augment: bool) -> float:
    """Seconds an epoch of `mlprank fit`, with its logs, metrics and checkpoints."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = [] if augment else ["--data.init_args.auto_augment=null"]
        clock, own = Clock(), training_run._run_callbacks
        training_run._run_callbacks = lambda *arguments: [*own(*arguments), clock]
        try:
            training_run.run(
                parse(
                    "fit",
                    [
                        f"--config={RECIPE}",
                        f"--trainer.max_epochs={epochs + 1}",
                        f"--trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}",
                        "--trainer.callbacks=null",
                        f"--trainer.default_root_dir={folder}",
                        f"--data.init_args.batch_size={batch_size}",
                        *options,
                    ],
                )
            )
        finally:
            training_run._run_callbacks = own
    return clock.epoch_s


def raw(device: torch.device, *, epochs: int, batch_size: int) -> float:
    """Seconds an epoch of a loop of torch over the same images on the device, without augmentation."""
    data = CIFAR10DataModule()
    images, labels = (tensor.to(device) for tensor in data.read("train")[:2])
    train, validation = (part.to(device) for part in data._split())
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (data.mean, data.std))
    network = SixLayerMLP().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-9, fused=True)

    def pixels(rows: Tensor) -> Tensor:
        return images[rows].float().div_(255).sub_(mean).div_(std)

    marks = []
    for _ in range(epochs + 1):
        marks.append(finish(device))
        network.train()
        for rows in train[torch.randperm(len(train), device=device)].split(batch_size):
            loss = F.cross_entropy(network(pixels(rows)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        right = torch.zeros((), device=device)
        with torch.no_grad():
            for rows in validation.split(batch_size):
                right += (network(pixels(rows)).argmax(1) == labels[rows]).sum()
        right.item()
    marks.append(finish(device))
    return statistics.median(after - before for before, after in pairwise(marks[1:]))


def microseconds(call: Callable[[], object], device: torch.device, *, repeats: int = 200) -> float:
    """Median wall time of a call and the wait for its end."""
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        start = finish(device)
        call()
        times.append(finish(device) - start)
    return 1e6 * statistics.median(times)


def graphed(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """Return the network on these images as one CUDA graph."""
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            network(images)
    return graph.replay


def latency(device: torch.device, checkpoint: str) -> list[dict[str, Any]]:
    """Time a dense network and its pruned ones side by side, eager and as a CUDA graph."""
    dense = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").model.eval().to(device)
    loader = CIFAR10DataModule().calibration_dataloader(num_samples=1024)
    networks = {"dense": dense}
    for amount in AMOUNTS:
        networks[f"pruned {amount:g}"] = mlprank.prune(dense, loader, amount=amount, round_to=8).model
    rows = []
    for batch_size in BATCH_SIZES:
        images = torch.randn(batch_size, 3, 32, 32, device=device)
        for name, network in networks.items():
            with torch.no_grad():
                row = {"network": name, "batch": batch_size, "eager_us": microseconds(partial(network, images), device)}
            if device.type == "cuda":
                row["graph_us"] = microseconds(graphed(network, images), device)
            rows.append(row)
    return rows


def main() -> None:
    """Measure, and print one line of JSON a figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fit", "latency"])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device(arguments.device)
    print(
        json.dumps(
            {"device": torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu", "torch": torch.__version__}
        )
    )
    if arguments.what == "latency":
        for row in latency(device, arguments.checkpoint):
            print(json.dumps(row), flush=True)
        return
    for size in arguments.batch_sizes:
        row = {"batch": size, "raw_s": raw(device, epochs=arguments.epochs, batch_size=size)}
        row["fit_s"] = fit(device, epochs=arguments.epochs, batch_size=size, augment=False)
        row["raw_again_s"] = raw(device, epochs=arguments.epochs, batch_size=size)
        row["fit_augmented_s"] = fit(device, epochs=arguments.epochs, batch_size=size, augment=True)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
