"""The networks in the golden files, and the inputs on which their outputs were recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlprank.models import MLP

INPUTS = torch.linspace(-2, 2, 16 * 6).sin().reshape(16, 6)


class Foreign(nn.Module):
    """A network of someone else: it records nothing of how it was built, and its layers have no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 10, bias=False)
        self.again = nn.Linear(10, 10, bias=False)
        self.head = nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.fc(x))
        logits: Tensor = self.head(x + torch.sigmoid(self.again(x)))
        return logits


def configured() -> dict[str, nn.Module]:
    """A dense network for each golden pruned file."""
    return {
        "mlp": MLP(6, [10, 8], 3),
        "foreign": Foreign(),
        "batch_norm": MLP(6, [10, 8], 3, batch_norm=True),
    }


def filled(network: nn.Module, *, seed: int) -> nn.Module:
    """Give a network random weights and batch statistics, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.square() + 0.3 if name.endswith("running_var") else values)
    return network
