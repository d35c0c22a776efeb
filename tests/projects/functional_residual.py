"""Functional calls, residual additions, weights that no `nn.Linear` owns, and two optimizers stepped by hand."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Adds what its own two weight matrices make of the input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(hidden, width) * width**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Parameter(torch.randn(width, hidden) * hidden**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(F.gelu(F.linear(x, self.up, self.up_bias)), self.down, self.down_bias)


class FunctionalResidual(LightningModule):
    """Its stem is read, never called, and its training makes two steps a batch, by two optimizers."""

    def __init__(self, num_features: int = 8, width: int = 12, hidden: int = 24, num_classes: int = 3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stem = nn.Linear(num_features, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(2))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.linear(x, self.stem.weight, self.stem.bias))
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = F.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        body = [*self.stem.parameters(), *self.blocks.parameters()]
        return torch.optim.Adam(body, lr=5e-3), torch.optim.SGD(self.head.parameters(), lr=0.05, momentum=0.9)
