"""Fine-tuning a torchvision vision transformer at a small image size."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer


def small_transformer(num_classes: int = 4) -> VisionTransformer:
    """Two layers of the architecture that `vit_b_16` has twelve of."""
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=num_classes
    )


class Stripes(LightningDataModule):
    """Images of a colour in a direction; the class says which."""

    def __init__(self, image_size: int = 16, num_samples: int = 128, batch_size: int = 16) -> None:
        super().__init__()
        self.image_size, self.num_samples, self.batch_size = image_size, num_samples, batch_size

    def _images(self, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(4, (self.num_samples,), generator=generator)
        images = 0.3 * torch.randn(self.num_samples, 3, self.image_size, self.image_size, generator=generator)
        images[torch.arange(self.num_samples), labels % 2] += 1
        images[labels >= 2, :, ::2] += 1
        return TensorDataset(images, labels)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._images(0), batch_size=self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._images(1), batch_size=self.batch_size)


class FineTune(LightningModule):
    """Trains the whole network, the head faster."""

    def __init__(self, vit: VisionTransformer, num_classes: int = 4) -> None:
        super().__init__()
        self.vit = vit
        self.vit.heads = nn.Sequential(nn.LayerNorm(vit.hidden_dim), nn.Linear(vit.hidden_dim, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        heads = list(self.vit.heads.parameters())
        body = [parameter for parameter in self.vit.parameters() if all(parameter is not head for head in heads)]
        return torch.optim.AdamW([{"params": body, "lr": 1e-3}, {"params": heads, "lr": 3e-3}])
