"""Prune a network of plain torch: no Lightning, no labels, no training.

Run: python examples/plain_torch.py
"""

import torch
from torch import nn

import mlprank

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
inputs = torch.randn(512, 32)

result = mlprank.prune(network, inputs, amount=0.5, measure="reconstruction")
print(result)

path = result.save("pruned.ckpt")
narrow = mlprank.load_pruned(path, network)  # a dense instance says how the network is built
difference = (narrow(inputs) - result.masked.eval()(inputs)).abs().max()
print(f"\nLoaded again; it differs from the masked network by at most {difference:.1e}.")
