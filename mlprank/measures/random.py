"""Random scores: the control that every other measure has to beat."""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord


def random_scores(num_neurons: int, *, seed: int, name: str) -> Float[Tensor, " n_out"]:
    """Draw one layer's scores uniformly from [0, 1).

    Args:
        num_neurons: How many scores to draw, at least 1.
        seed: Non-negative seed of the whole network's draw.
        name: The layer's name; every name has its own draw, whatever the order in which layers are ranked.

    Returns:
        Scores, shape (num_neurons,), float64, unitless, summing to 1. The global random state is not touched.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return normalise_scores(torch.rand(num_neurons, generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Random:
    """Random scores with their seed.

    Attributes:
        seed: Non-negative integer; the same seed and layer name give the same scores.

    Raises:
        ValueError: If the seed is not a non-negative integer.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Random: seed={self.seed!r} is not a non-negative integer; give one, such as 0")

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `random_scores`."""
        scores = random_scores(layer.weight.shape[0], seed=self.seed, name=layer.name)
        return scores.to(device=layer.weight.device, dtype=score_dtype(layer.weight))
