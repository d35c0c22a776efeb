"""Modified PageRank: what a neuron emits, times what it receives."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord


def modified_pagerank(
    weight: Float[Tensor, "n_out n_in"],
    previous: Float[Tensor, " n_in"],
    activation: Float[Tensor, " n_out"],
    *,
    ignored: int = 0,
) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by activation times weighted sum of the scores below.

    Args:
        weight: Layer weights, shape (n_out, n_in). The sign is ignored.
        previous: Scores of the layer below, shape (n_in,), summing to 1.
        activation: Calibration L2 norms, shape (n_out,), non-negative; all zero counts as uniform.
        ignored: How many of the smallest entries of `previous` count as 0; of equal ones the lower index first.

    Returns:
        Scores, shape (n_out,), unitless, summing to 1; larger means keep. Float64 for float64 weights, else float32.

    Raises:
        TypeError: If the weights are not floating-point numbers.
        ValueError: If `activation` has a negative, NaN or infinite entry, or `weight` a NaN or infinite one.

    Source:
        Hoffmann 2024, "MLP-Rank: A Graph Theoretical Approach to Pruning Deep Neural Networks", bachelor's thesis.
    """
    dtype = score_dtype(weight)
    received = previous.detach().to(dtype)
    if ignored:
        received = received.clone()
        received[received.argsort(stable=True)[:ignored]] = 0.0
    own = normalise_scores(activation.detach().to(dtype), argument="activation")
    linked = normalise_scores(torch.mv(weight.detach().to(dtype).abs(), received), argument="weight @ previous")
    return normalise_scores(own * linked)


@dataclass(frozen=True)
class ModifiedPageRank:
    """Modified PageRank with its parameter.

    Attributes:
        z_importance: Ignore the ``int(amount * n_in)`` least central inputs, those that pruning will take away.

    Raises:
        TypeError: If `z_importance` is not a bool.
    """

    z_importance: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.z_importance, bool):
            raise TypeError(f"ModifiedPageRank: z_importance={self.z_importance!r} must be True or False")

    @property
    def reads_amount(self) -> bool:
        """Whether scores depend on the amount."""
        return self.z_importance

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `modified_pagerank`."""
        ignored = int(layer.amount * layer.previous.numel()) if self.z_importance else 0
        return modified_pagerank(layer.weight, layer.previous, layer.output_norms, ignored=ignored)
