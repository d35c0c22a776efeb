"""Measures by a neuron's own weights, its activation, both, or chance: what PageRank has to beat.

Every function returns scores of shape (n_out,), unitless, summing to 1, larger meaning keep; float64 for float64
weights, else float32. Each raises a TypeError for weights that are not floating-point numbers, and a ValueError for
norms or weights that are negative (norms), NaN or infinite.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.record import LayerRecord, check_non_negative, normalise_scores, score_dtype


def weight_norm(weight: Float[Tensor, "n_out n_in"], *, p: float) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the p-norm of their incoming weights; infinity takes the largest absolute weight."""
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
    """The norm of the incoming weights.

    Attributes:
        p: Order of the norm, above 0; ``inf`` is allowed.

    Raises:
        ValueError: If `p` is not above 0 or is NaN.

    Examples:
        >>> import torch
        >>> from mlprank.measures.record import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> Norm(p=2)(layer)
        tensor([0.7500, 0.2500])
    """

    p: float = 1

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float) or not self.p > 0:
            raise ValueError(f"Norm: p={self.p!r} is not a number above 0; choose one such as 1, 2 or inf")

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `weight_norm`."""
        return weight_norm(layer.weight if layer.kernels is None else layer.kernels, p=self.p)


def activation_scores(activation: Float[Tensor, " n_out"]) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the L2 norm of what they emit on the calibration data; all zero counts as uniform."""
    return normalise_scores(activation.detach(), argument="activation")


@dataclass(frozen=True)
class Activation:
    """Activation norms; it has no parameters.

    Examples:
        >>> import torch
        >>> from mlprank.measures.record import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> Activation()(layer)
        tensor([0.3333, 0.6667])
    """

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `activation_scores`."""
        return activation_scores(layer.output_norms.to(score_dtype(layer.weight)))


def wanda(weight: Float[Tensor, "n_out n_in"], input_norms: Float[Tensor, " n_in"]) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by the sum over inputs of absolute weight times calibration L2 norm.

    Source:
        The weight-and-activation product of Sun et al. 2023, arXiv:2306.11695, summed per neuron.
    """
    dtype = score_dtype(weight)
    check_non_negative(input_norms, argument="input_norms")
    product = torch.mv(weight.detach().to(dtype).abs(), input_norms.detach().to(dtype))
    return normalise_scores(product, argument="weight @ input_norms")


@dataclass(frozen=True)
class Wanda:
    """Weights times activations; it has no parameters.

    Examples:
        >>> import torch
        >>> from mlprank.measures.record import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> Wanda()(layer)
        tensor([0.6000, 0.4000])
    """

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `wanda`."""
        return wanda(layer.weight, layer.input_norms)


def random_scores(num_neurons: int, *, seed: int, name: str) -> Float[Tensor, " n_out"]:
    """Draw one layer's scores uniformly from [0, 1), float64; the global random state is not touched.

    Args:
        num_neurons: How many scores to draw, at least 1.
        seed: Non-negative seed of the whole network's draw.
        name: The layer's name; every name has its own draw, whatever the order in which layers are ranked.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return normalise_scores(torch.rand(num_neurons, generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Random:
    """Random scores.

    Attributes:
        seed: Non-negative integer; the same seed and layer name give the same scores.

    Raises:
        ValueError: If the seed is not a non-negative integer.

    Examples:
        >>> import torch
        >>> from mlprank.measures.record import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> Random(seed=0)(layer)
        tensor([0.4963, 0.5037])
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"Random: seed={self.seed!r} is not a non-negative integer; give one, such as 0")

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `random_scores`."""
        scores = random_scores(layer.weight.shape[0], seed=self.seed, name=layer.name)
        return scores.to(device=layer.weight.device, dtype=score_dtype(layer.weight))
