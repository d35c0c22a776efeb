"""A small Lightning network that remembers what it saw."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional


class Recorder(LightningModule):
    """A linear classifier; `seen` holds a checksum of every training batch, `labels` the labels, `kinds` the dtypes."""

    def __init__(self, num_features: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_features, num_classes)
        self.seen: list[tuple[int, float]] = []
        self.labels: list[list[int]] = []
        self.kinds: set[tuple[str, torch.dtype]] = set()

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        weights = torch.arange(images.numel(), dtype=torch.float64).view_as(images)
        self.seen.append((self.current_epoch, float((images.double() * weights).sum())))
        self.labels.append(labels.tolist())
        self.kinds.add(("train", images.dtype))
        return functional.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.kinds.add(("validate", batch[0].dtype))
        self(batch[0])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.kinds.add(("test", batch[0].dtype))
        self(batch[0])

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self(batch).argmax(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**options: object) -> Trainer:
    """Return a CPU trainer that prints and writes nothing unless told to."""
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{**silent, "enable_checkpointing": False, "devices": 1, **options})
