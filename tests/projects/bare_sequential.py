"""A bare `nn.Sequential` in a module without a forward of its own; the data comes from the module."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class BareSequential(LightningModule):
    """Digits, batch norm after and dropout before activations."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(64, width, bias=False),
            nn.BatchNorm1d(width),
            nn.Dropout(0.1),
            nn.GELU(),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(width),
            nn.Linear(width, 10),
        )

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        self.data = TensorDataset(torch.as_tensor(images, dtype=torch.float32) / 16, torch.as_tensor(labels))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.Subset(self.data, range(1200)), batch_size=64, shuffle=True, drop_last=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.Subset(self.data, range(1200, 1797)), batch_size=256)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layers(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]
