"""The published reading of a whole network: scores handed from layer to layer."""

import itertools

import numpy as np
import pytest
import torch

from mlprank.measures import LayerRecord, get_measure
from mlprank.measures.record import normalise_scores
from tests import reference
from tests.measures.records import array, assert_close

WIDTHS = {
    "TwoLayerMLP": (784, 256, 10),
    "ThreeLayerMLP": (784, 512, 512, 10),
    "SixLayerMLP": (3072, 512, 512, 256, 256, 128, 10),
}
MEASURES = [
    ("weighted_pagerank", {}),
    ("weighted_pagerank", {"gamma": 1.0, "theta": 1.0}),
    ("modified_pagerank", {}),
    ("modified_pagerank", {"z_importance": True}),
    ("norm", {"p": 2}),
    ("activation", {}),
    ("wanda", {}),
]


def make_layers(widths, *, seed, zeros):
    """Return (weight, inputs, outputs) of every linear layer of a random network with rectifiers."""
    generator = torch.Generator().manual_seed(seed)
    inputs, layers = torch.rand(32, widths[0], generator=generator), []
    for num_in, num_out in itertools.pairwise(widths):
        weight = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
        weight[torch.rand(num_out, num_in, generator=generator) < zeros] = 0.0
        outputs = inputs @ weight.t()
        layers.append((weight, inputs, outputs))
        inputs = outputs.relu()
    return layers


@pytest.mark.parametrize("zeros", [0.0, 0.1])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize(("name", "parameters"), MEASURES)
def test_chain_scores_equal_the_slow_loop(name, parameters, widths, zeros):
    layers = make_layers(widths, seed=0, zeros=zeros)
    slow = [tuple(array(values) for values in layer) for layer in layers]
    expected = reference.chain(name, slow, amount=0.3, **parameters)
    measure, previous = get_measure(name, **parameters), normalise_scores(layers[0][1].norm(dim=0))
    for index, (weight, inputs, outputs) in enumerate(layers):
        layer = LayerRecord(f"fc{index}", weight, previous, inputs.norm(dim=0), outputs.relu().norm(dim=0), 0.3)
        previous = measure(layer)
        assert_close(previous, expected[index])
        assert float(np.sum(expected[index])) == pytest.approx(1.0)
