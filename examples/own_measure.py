"""A measure of one's own, compared with others on the same network.

Run: python examples/own_measure.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mlprank
from mlprank.measures import LayerRecord, register_measure


@dataclass(frozen=True)
class Energy:
    """Incoming weights times what a neuron emits."""

    power: float = 1.0

    def __call__(self, layer: LayerRecord) -> Tensor:
        scores = layer.weight.abs().sum(1) * layer.output_norms**self.power
        return scores / scores.sum()


register_measure("energy", Energy)

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
inputs = torch.randn(1024, 32)
pruning = mlprank.Pruning(network, inputs, amount=0.5)
for measure in ("weighted_pagerank", "norm", {"name": "energy", "power": 2.0}):
    result = pruning.run(measure=measure)
    error = (result.model(inputs) - network(inputs)).square().mean()
    print(f"{result.recipe.measure}: mean squared error of the outputs {error.item():.4f}")
