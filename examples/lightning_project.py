"""A Lightning project of one's own: a callback prunes the best weights when fitting ends.

Run: python examples/lightning_project.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mlprank.callbacks import PruningCallback


class Spirals(LightningModule):
    """Tells two spirals apart."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 2))

    def forward(self, points: Tensor) -> Tensor:
        return self.net(points)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def spirals(count: int) -> TensorDataset:
    """Points on two spirals, shape (count, 2), and which spiral each lies on, shape (count,)."""
    labels = torch.randint(0, 2, (count,))
    turn = 6.0 * torch.rand(count).sqrt()
    angle = turn + torch.pi * labels
    points = torch.stack([angle.cos(), angle.sin()], 1) * turn[:, None] / 3 + 0.05 * torch.randn(count, 2)
    return TensorDataset(points, labels)


if __name__ == "__main__":
    seed_everything(0)
    trainer = Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[PruningCallback(amount=0.5, measure="reconstruction")],
    )
    trainer.fit(Spirals(), DataLoader(spirals(2000), batch_size=64, shuffle=True))
    trainer.test(dataloaders=DataLoader(spirals(1000), batch_size=500))
