"""The norm of a neuron's incoming weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord


def weight_norm(weight: Float[Tensor, "n_out n_in"], *, p: float) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the p-norm of their incoming weights.

    Args:
        weight: Layer weights, shape (n_out, n_in). The sign is ignored.
        p: Order of the norm, above 0; infinity takes the largest absolute weight.

    Returns:
        Scores, shape (n_out,), unitless, summing to 1; larger means keep. Float64 for float64 weights, else float32.

    Raises:
        TypeError: If the weights are not floating-point numbers.
        ValueError: If `weight` has a NaN or infinite entry.
    """
    dtype = score_dtype(weight)
    absolute = weight.detach().to(torch.float64).abs()
    peak = absolute.amax(1)
    if not math.isinf(p):
        # Relative to the row's peak no power overflows, and the mean in place of the sum changes every row's
        # norm by the same factor, which the normalisation takes out.
        relative = absolute / torch.where(peak > 0, peak, 1.0)[:, None]
        peak = peak * relative.pow(p).mean(1).pow(1.0 / p)
    return normalise_scores(peak, argument="weight norm").to(dtype)


@dataclass(frozen=True)
class Norm:
    """The norm of the incoming weights, with its order.

    Attributes:
        p: Order of the norm, above 0; ``inf`` is allowed.

    Raises:
        ValueError: If `p` is not above 0 or is NaN.
    """

    p: float = 1

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float) or not self.p > 0:
            raise ValueError(f"Norm: p={self.p!r} is not a number above 0; choose one such as 1, 2 or inf")

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `weight_norm`."""
        return weight_norm(layer.weight if layer.kernels is None else layer.kernels, p=self.p)
