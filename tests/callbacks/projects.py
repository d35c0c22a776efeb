"""A Lightning project that knows nothing of mlprank, as small as one can be."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES = 3


def blobs(num_samples: int = 240, *, seed: int = 0, num_features: int = 8) -> TensorDataset:
    """Classes that a small network tells apart within a few epochs."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, num_features, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(NUM_CLASSES, (num_samples,), generator=generator)
    return TensorDataset(centres[labels] + torch.randn(num_samples, num_features, generator=generator), labels)


class Blobs(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(seed=1), batch_size=60)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(seed=2), batch_size=60)


class Project(LightningModule):
    def __init__(self, width: int = 16, *, lr: float = 0.01) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def trainer_for(directory: Any, *callbacks: Any, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(default_root_dir=str(directory), callbacks=list(callbacks), **{**settings, **options})


def pruned_rows(module: nn.Module) -> dict[str, int]:
    """How many rows of every weight are zero where the network computes."""
    module.eval()
    return {
        name: int((layer.weight == 0).all(1).sum())
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }


class Fixed(Blobs):
    """The same batches in the same order, so that a resumed run can be compared with an uninterrupted one."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(blobs(), batch_size=32)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module that may be masked, by plain names and without masks."""
    return {name.removesuffix("_orig"): value for name, value in module.state_dict().items() if "_mask" not in name}
