"""How strongly a neuron is active on the calibration data."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord


def activation_scores(activation: Float[Tensor, " n_out"]) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the norm of what they emit.

    Args:
        activation: Calibration L2 norms, shape (n_out,), non-negative; all zero counts as uniform.

    Returns:
        Scores, shape (n_out,), unitless, summing to 1; larger means keep.

    Raises:
        ValueError: If `activation` has a negative, NaN or infinite entry.
    """
    return normalise_scores(activation.detach(), argument="activation")


@dataclass(frozen=True)
class Activation:
    """Activation norms; it has no parameters."""

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `activation_scores`."""
        return activation_scores(layer.output_norms.to(score_dtype(layer.weight)))
