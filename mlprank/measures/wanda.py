"""Incoming weights times the activations that they multiply."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import check_non_negative, normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord


def wanda(weight: Float[Tensor, "n_out n_in"], input_norms: Float[Tensor, " n_in"]) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the sum over inputs of absolute weight times input norm.

    Args:
        weight: Layer weights, shape (n_out, n_in). The sign is ignored.
        input_norms: Calibration L2 norms of the inputs, shape (n_in,), non-negative.

    Returns:
        Scores, shape (n_out,), unitless, summing to 1; larger means keep. Float64 for float64 weights, else float32.

    Raises:
        TypeError: If the weights are not floating-point numbers.
        ValueError: If `input_norms` has a negative, NaN or infinite entry, or `weight` a NaN or infinite one.

    Source:
        The weight-and-activation product of Sun et al. 2023, arXiv:2306.11695, summed per neuron.
    """
    dtype = score_dtype(weight)
    check_non_negative(input_norms, argument="input_norms")
    product = torch.mv(weight.detach().to(dtype).abs(), input_norms.detach().to(dtype))
    return normalise_scores(product, argument="weight @ input_norms")


@dataclass(frozen=True)
class Wanda:
    """Weights times activations; it has no parameters."""

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `wanda`."""
        return wanda(layer.weight, layer.input_norms)
