"""Measures by a neuron's own weights, its activation, both, or chance: what PageRank has to beat.

Each returns scores of shape (n_out,), unitless, summing to 1, larger meaning keep; float64 for float64 weights, else
float32. What `LayerRecord` refuses none of them sees.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.record import LayerRecord, normalise_scores, score_dtype
from mlprank.utils.errors import check_whole


@dataclass(frozen=True)
class Norm:
    """The p-norm of a neuron's incoming weights.

    Attributes:
        p: Order of the norm, above 0; ``inf`` takes the largest absolute weight.

    Raises:
        ValueError: If `p` is not above 0 or is NaN; on a call, if a weight is NaN or infinite.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
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
        """Return the layer's scores."""
        weight = layer.weight if layer.kernels is None else layer.kernels
        absolute = weight.detach().to(torch.float64).abs()
        peak = absolute.amax(1)
        if not math.isinf(self.p):
            # Relative to the row's peak no power overflows, and the mean in place of the sum changes every row's
            # norm by the same factor, which the normalisation takes out.
            relative = absolute / torch.where(peak > 0, peak, 1.0)[:, None]
            peak = peak * relative.pow(self.p).mean(1).pow(1.0 / self.p)
        return normalise_scores(peak, argument="weight norm").to(score_dtype(weight))


@dataclass(frozen=True)
class Activation:
    """The L2 norm of what a neuron emits on the calibration data; all zero counts as uniform.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> layer = LayerRecord("fc1", torch.eye(2), torch.ones(2) / 2, torch.ones(2), torch.tensor([1.0, 2.0]))
        >>> Activation()(layer)
        tensor([0.3333, 0.6667])
    """

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores."""
        return normalise_scores(layer.output_norms.detach().to(score_dtype(layer.weight)), argument="activation")


@dataclass(frozen=True)
class Wanda:
    """The sum over a neuron's inputs of absolute weight times calibration L2 norm.

    Raises:
        ValueError: On a call, if a weight is NaN or infinite.

    Source:
        The weight-and-activation product of Sun et al. 2023, arXiv:2306.11695, summed per neuron.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> Wanda()(layer)
        tensor([0.6000, 0.4000])
    """

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores."""
        dtype = score_dtype(layer.weight)
        product = torch.mv(layer.weight.detach().to(dtype).abs(), layer.input_norms.detach().to(dtype))
        return normalise_scores(product, argument="weight @ input_norms")


@dataclass(frozen=True)
class Random:
    """Scores drawn uniformly from [0, 1), normalised; the global random state is not touched.

    Attributes:
        seed: Non-negative integer, else a ValueError; the same seed and layer name give the same scores, whatever the
            order of layers.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> layer = LayerRecord("fc1", torch.eye(2), torch.ones(2) / 2, torch.ones(2), torch.tensor([1.0, 2.0]))
        >>> Random(seed=0)(layer)
        tensor([0.4963, 0.5037])
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("Random: ", least=0, seed=self.seed)

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores."""
        digest = hashlib.sha256(f"{self.seed}:{layer.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        drawn = torch.rand(layer.weight.shape[0], generator=generator, dtype=torch.float64)
        return normalise_scores(drawn).to(device=layer.weight.device, dtype=score_dtype(layer.weight))
