"""Training speed on one thread: `mlprank fit` against plain Lightning and against a raw loop of torch, in one run.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.training_speed
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from mlprank.datamodules import FashionMNISTDataModule
from mlprank.models import MODELS
from mlprank.training import run as training_run
from mlprank.training.parser import parse

BATCH = 64
OPTIMIZER = partial(Adam, lr=0.005, weight_decay=1e-8, fused=True)
CONFIG = """\
seed_everything: 0
trainer:
  max_epochs: {epochs}
  limit_train_batches: {steps}
  limit_val_batches: 20
  accelerator: cpu
  default_root_dir: {root}
  callbacks:
    - class_path: mlprank.training.progress.RunProgress
    - class_path: mlprank.callbacks.PruningCallback
      init_args: {{amount: 0.5}}
model:
  model:
    class_path: mlprank.models.{network}
  optimizer:
    class_path: torch.optim.Adam
    init_args: {{lr: 0.005, weight_decay: 1.0e-8, fused: true}}
  lr_scheduler:
    class_path: torch.optim.lr_scheduler.StepLR
    init_args: {{step_size: 30}}
data:
  class_path: mlprank.datamodules.FashionMNISTDataModule
  init_args: {{batch_size: {batch}}}
"""


@dataclass
class Clock(Callback):
    """Processor time of every training epoch without its validation: steps, metrics, logs and checkpoints."""

    epochs: list[float] = field(default_factory=list)
    started: float = 0.0
    validation: float = 0.0
    running: bool = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.process_time()
        if self.running:
            self.epochs.append(now - self.started - self.validation)
        self.started, self.validation, self.running = now, 0.0, True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation -= time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation += time.process_time()


def torchvision_images(folder: Path) -> FashionMNIST:
    """Debian's files as torchvision reads them: PIL images, made into tensors one by one."""
    raw_files = folder / "FashionMNIST" / "raw"
    raw_files.mkdir(parents=True)
    for file in FashionMNISTDataModule.file_set.system_folders[0].glob("*.gz"):
        (raw_files / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    return FashionMNIST(folder, transform=ToTensor())


class Plain(LightningModule):
    """A classifier as tutorials write it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Adam:
        return OPTIMIZER(self.parameters())


def images() -> tuple[Tensor, Tensor]:
    """The training images of FashionMNIST, shape (60000, 1, 28, 28), uint8, and their labels."""
    data = FashionMNISTDataModule()
    read, labels, _ = data.read("train")
    return read, labels


def fit(network: str, *, steps: int, epochs: int) -> float:
    """Samples per second of processor time of `mlprank fit`, the first epoch left out."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        config = Path(folder) / "speed.yaml"
        values = {"epochs": epochs + 2, "steps": steps, "root": f"{folder}/runs", "network": network, "batch": BATCH}
        config.write_text(CONFIG.format(**values))
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # as importing Lightning leaves it
        clock, own = Clock(), training_run._run_callbacks
        training_run._run_callbacks = lambda *arguments: [*own(*arguments), clock]
        try:
            training_run.run(parse("fit", [f"--config={config}"]))
        finally:
            training_run._run_callbacks = own
    return BATCH * steps / statistics.median(clock.epochs[1:])


def plain(network: str, *, steps: int, epochs: int) -> float:
    """Samples per second of Lightning with a DataLoader, per-image ToTensor, and the default bar and logger."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        loader = DataLoader(torchvision_images(Path(folder)), batch_size=BATCH, shuffle=True)
        options: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": folder, "limit_train_batches": steps}
        Trainer(max_epochs=epochs + 2, callbacks=[clock], **options).fit(Plain(MODELS[network]()), loader)
    return BATCH * steps / statistics.median(clock.epochs[1:])


def raw(network: str, data: tuple[Tensor, Tensor], *, steps: int, epochs: int) -> float:
    """Samples per second of a loop of torch over the images in memory."""
    pixels, labels = data
    model = MODELS[network]().train()
    optimizer = OPTIMIZER(model.parameters())
    spent = []
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # Lightning's, which slows torch's Adam down
    for _ in range(epochs + 1):
        started = time.process_time()
        for index in torch.randperm(len(pixels))[: steps * BATCH].split(BATCH):
            batch = pixels[index].float().div_(255)
            loss = F.cross_entropy(model(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spent.append(time.process_time() - started)
    return BATCH * steps / statistics.median(spent[1:])


@dataclass(frozen=True)
class Comparison:
    """What rounds of the three ways came to, medians.

    Attributes:
        samples_per_s: By way: "fit", "plain", "raw".
        times_plain: How many times as fast as plain Lightning `mlprank fit` was, round by round.
        share_of_raw: What share of the raw loop's speed it reached, round by round.
    """

    samples_per_s: dict[str, float]
    times_plain: float
    share_of_raw: float


def compare(network: str, *, rounds: int = 8, steps: int = 750) -> Comparison:
    """Compare the three ways on one thread; in a round, fit stands between two runs of each other way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = images()
    speeds: dict[str, list[float]] = {"fit": [], "plain": [], "raw": []}
    try:
        for _ in range(rounds):
            raws = [raw(network, data, steps=steps, epochs=2)]
            plains = [plain(network, steps=steps // 5, epochs=1)]
            speeds["fit"].append(fit(network, steps=steps, epochs=2))
            plains.append(plain(network, steps=steps // 5, epochs=1))
            raws.append(raw(network, data, steps=steps, epochs=2))
            speeds["raw"].append(statistics.mean(raws))
            speeds["plain"].append(statistics.mean(plains))
    finally:
        torch.set_num_threads(before)
    times, shares = (
        statistics.median(fits / others for fits, others in zip(speeds["fit"], speeds[way], strict=True))
        for way in ("plain", "raw")
    )
    return Comparison({way: statistics.median(values) for way, values in speeds.items()}, times, shares)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def main() -> None:
    """Print a line a network."""
    for network in ("TwoLayerMLP", "ThreeLayerMLP"):
        found = compare(network)
        speed = found.samples_per_s
        print(
            f"{network}: fit {speed['fit']:,.0f} samples/s, plain Lightning {speed['plain']:,.0f} "
            f"(fit is {found.times_plain:.1f} times), raw torch {speed['raw']:,.0f} "
            f"(fit is {found.share_of_raw:.2f} of it)",
            flush=True,
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
