"""36 trials at once against 36 plain Lightning trials one after another, on one thread, ratios within one run.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.test_tuning_speed
"""

import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import time
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.nn import functional as F
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from mlprank.datamodules import FashionMNISTDataModule
from mlprank.models import MODELS
from mlprank.models.classifier import ImageClassifier
from mlprank.tuning.engines import keep_large_blocks
from mlprank.tuning.stack import StackedClassifier, StackedDataModule

RATES = [0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001]
DECAYS = [1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10]
TRIALS = len(RATES) * len(DECAYS)
BATCH = 64
VALIDATED = 4  # training batches to one of validation, as an 80/20 split has them


class Epochs(Callback):
    """Processor time of every epoch but the first and the last: training, validation, metrics and logs."""

    def __init__(self):
        self.times, self.started = [], None

    def on_train_epoch_start(self, trainer, pl_module):
        now = time.process_time()
        if trainer.current_epoch > 1:
            self.times.append(now - self.started)
        self.started = now


class ImageFiles(Dataset):
    """What `torchvision.datasets.FashionMNIST(transform=ToTensor())` does for an image."""

    def __init__(self, images, labels):
        self.images, self.labels, self.transform = images[:, 0], labels, ToTensor()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


class PlainTrial(LightningModule):
    """A trial as tutorials write it: the loss in the bar, accuracy on the validation split after every epoch."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=1e-3, weight_decay=1e-8)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        scores = self.network(images)
        self.log("val_loss", F.cross_entropy(scores, labels), prog_bar=True)
        self.log("val_top1", (scores.argmax(1) == labels).float().mean(), prog_bar=True)


def plain(network, data, *, steps=100):
    """Samples per second of processor time of one trial: DataLoader, per-image ToTensor, default bar and logger."""
    clock = Epochs()
    train, validation = (DataLoader(ImageFiles(*data), batch_size=BATCH, shuffle=shuffle) for shuffle in (True, False))
    options = {"limit_train_batches": steps, "limit_val_batches": steps // VALIDATED, "num_sanity_val_steps": 0}
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        trainer = Trainer(max_epochs=3, accelerator="cpu", default_root_dir=folder, callbacks=[clock], **options)
        trainer.fit(PlainTrial(MODELS[network]()), train, validation)
    return BATCH * steps / statistics.median(clock.times)


def stacked(network, *, own_shuffles, steps=48):
    """Samples per second of processor time over all 36 trials, in an ordinary Trainer."""
    keep_large_blocks()
    classifiers = []
    for rate, decay in itertools.product(RATES, DECAYS):
        torch.manual_seed(0)
        optimizer = partial(Adam, lr=rate, weight_decay=decay)
        classifiers.append(ImageClassifier(MODELS[network](), optimizer=optimizer))
    seeds = range(TRIALS) if own_shuffles else [0] * TRIALS
    data = StackedDataModule(FashionMNISTDataModule(batch_size=BATCH), seeds)
    module = StackedClassifier(classifiers, in_shape=(1, 28, 28))
    clock = Epochs()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=steps,
        limit_val_batches=steps // VALIDATED,
        num_sanity_val_steps=0,
        callbacks=[clock],
    )
    trainer.fit(module, data)
    return TRIALS * BATCH * steps / statistics.median(clock.times)


def compare(network, *, rounds=3):
    """Training samples per second with validation: the plain way, one shuffle for all trials, a shuffle a trial."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    data = FashionMNISTDataModule().read("train")[:2]
    speeds = {"plain": [], "shared": [], "own": []}
    try:
        for _ in range(rounds):
            speeds["plain"].append(plain(network, data))
            speeds["shared"].append(stacked(network, own_shuffles=False))
            speeds["own"].append(stacked(network, own_shuffles=True))
    finally:
        torch.set_num_threads(before)
    return {name: statistics.median(values) for name, values in speeds.items()}


@pytest.mark.slow
@pytest.mark.skipif(
    FashionMNISTDataModule(download=False).file_set.find(FashionMNISTDataModule().data_dir) is None,
    reason="FashionMNIST is not here",
)
@pytest.mark.parametrize(("network", "times"), [("TwoLayerMLP", 7.0), ("ThreeLayerMLP", 3.0)])
def test_36_trials_train_together_many_times_as_fast_as_one_after_another(network, times):
    speed = compare(network, rounds=1)
    assert speed["shared"] >= times * speed["plain"]
    assert speed["own"] >= 0.85 * times * speed["plain"]


def main():
    """Print a line a network."""
    for network in ("TwoLayerMLP", "ThreeLayerMLP"):
        speed = compare(network)
        print(
            f"{network}, {TRIALS} trials: plain Lightning {speed['plain']:,.0f} samples/s; stacked, one shuffle "
            f"{speed['shared']:,.0f} ({speed['shared'] / speed['plain']:.1f} times), own shuffles {speed['own']:,.0f} "
            f"({speed['own'] / speed['plain']:.1f} times)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
