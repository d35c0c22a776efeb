"""Measures: from one layer's record to its neurons' scores; the thesis's two, what they have to beat, and their names.

Each returns scores of shape (n_out,), unitless, summing to 1, larger meaning keep; float64 for float64 weights, else
float32. What `LayerRecord` refuses none of them sees. A new measure is one class, one line in `MEASURES` and one slow
loop in ``tests/reference.py``. Somebody else's is registered with `register_measure`, or simply given to
`mlprank.prune` as an instance.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.reconstruction import Reconstruction
from mlprank.measures.record import LayerRecord, Measure, Reader, normalise_scores, score_dtype
from mlprank.utils.errors import check_whole
from mlprank.utils.registry import Registry

# A block of rows whose absolute values stay in the cache between being written and being read.
_BLOCK_BYTES = 2**21


@dataclass(frozen=True)
class WeightedPageRank:
    """Weighted PageRank: a neuron receives each input's score in proportion to its share of that input's edges.

    Shares are of that input's absolute weights (theta) and of its non-zero weights (1 - theta), damped by gamma towards
    the neuron's own activation, of which all zero counts as uniform. The sign of weights is ignored.

    Attributes:
        gamma: Damping in [0, 1]; 0 ignores the graph.
        theta: Weight against degree, in [0, 1].

    Raises:
        ValueError: If a parameter is outside [0, 1] or NaN; on a call, if a weight is NaN or infinite.

    Source:
        Hoffmann 2024, "MLP-Rank: A Graph Theoretical Approach to Pruning Deep Neural Networks", bachelor's thesis.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> WeightedPageRank(gamma=0.9)(layer)
        tensor([0.4833, 0.5167])
    """

    gamma: float = 0.9
    theta: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                rule = f"is not a number in [0, 1]; the default is {getattr(WeightedPageRank, name)}"
                raise ValueError(f"WeightedPageRank: {name}={value!r} {rule}")

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores."""
        dtype, gamma, theta = score_dtype(layer.weight), self.gamma, self.theta
        scores = (1.0 - gamma) * normalise_scores(layer.output_norms.detach().to(dtype), argument="activation")
        by_weight, by_degree = _shares(layer.weight.detach(), layer.previous.detach().to(dtype))
        scores.add_(by_weight, alpha=gamma * theta)
        scores.add_(by_degree, alpha=gamma * (1.0 - theta))
        return normalise_scores(scores)


def _shares(
    weight: Float[Tensor, "n_out n_in"], previous: Float[Tensor, " n_in"]
) -> tuple[Float[Tensor, " n_out"], Float[Tensor, " n_out"]]:
    """Return ``Ŵ p`` and ``Â p`` without building either matrix: ``Ŵ p = W (p / colsum)``."""
    # In blocks of rows, so that the absolute values never reach main memory.
    num_out, num_in = weight.shape
    rows = num_out if weight.is_cuda else max(1, _BLOCK_BYTES // (num_in * previous.itemsize))
    blocks, ones, dtype = torch.split(weight, rows), previous.new_ones(min(rows, num_out)), previous.dtype
    buffer = previous.new_empty(len(ones), num_in)

    def absolute_of(block: Tensor) -> Tensor:
        return torch.abs(block.to(dtype), out=buffer[: len(block)])

    total, complete = torch.zeros_like(previous), True
    for block in blocks:
        absolute = absolute_of(block)
        # A matrix-vector product, unlike a matrix product, is never run in TF32 or bfloat16.
        total += torch.mv(absolute.t(), ones[: len(block)])
        complete = complete and absolute.amin().item() > 0.0
    per_weight = _divide(previous, total)
    # Backwards: what was read last is still in the cache.
    by_weight = torch.cat([torch.mv(absolute_of(block), per_weight) for block in blocks[::-1]][::-1])
    if complete:  # every neuron has an edge from every input
        return by_weight, (previous.sum() / num_out).expand(num_out)
    edges = [(block != 0).to(dtype) for block in blocks]
    degrees = torch.stack([torch.mv(each.t(), ones[: len(each)]) for each in edges]).sum(0)
    per_edge = _divide(previous, degrees)
    return by_weight, torch.cat([torch.mv(each, per_edge) for each in edges])


def _divide(previous: Float[Tensor, " n_in"], total: Float[Tensor, " n_in"]) -> Float[Tensor, " n_in"]:
    """Divide, with 0 where the total is 0 (or so small that the quotient could overflow)."""
    low, high = total.aminmax()
    if not high.item() < math.inf:
        raise ValueError(
            "weight has a NaN or infinite entry, or a column whose absolute values overflow; repair the checkpoint"
        )
    tiny = torch.finfo(total.dtype).tiny
    if low.item() >= tiny:
        return previous / total
    usable = total >= tiny
    return torch.where(usable, previous, 0.0) / torch.where(usable, total, 1.0)


@dataclass(frozen=True)
class ModifiedPageRank:
    """A neuron's activation times the sum of its absolute weights, each times the score of the neuron below.

    Attributes:
        z_importance: Ignore the ``int(amount * n_in)`` least central inputs, which pruning takes away; of equal ones
            the lower index first. What is not a bool is a TypeError.

    Source:
        That of `WeightedPageRank`.

    Examples:
        >>> import torch
        >>> from mlprank.measures import LayerRecord
        >>> half, norms = torch.full((2,), 0.5), torch.tensor([1.0, 2.0])
        >>> layer = LayerRecord("fc1", torch.tensor([[3.0, 0.0], [0.0, 1.0]]), half, norms, norms)
        >>> ModifiedPageRank()(layer)
        tensor([0.6000, 0.4000])
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
        """Return the layer's scores."""
        dtype = score_dtype(layer.weight)
        received = layer.previous.detach().to(dtype)
        if self.z_importance:
            least = received.argsort(stable=True)[: int(layer.amount * received.numel())]
            received = received.index_fill(0, least, 0.0)
        own = normalise_scores(layer.output_norms.detach().to(dtype), argument="activation")
        linked = torch.mv(layer.weight.detach().to(dtype).abs(), received)
        return normalise_scores(own * normalise_scores(linked, argument="weight @ previous"))


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


_NAMES: dict[str, tuple[type[Measure], str]] = {
    "weighted_pagerank": (WeightedPageRank, "WeightedPageRank"),
    "modified_pagerank": (ModifiedPageRank, "ModifiedPageRank"),
    "random": (Random, "ChannelRandom"),
    "norm": (Norm, "ChannelNorm"),
    "activation": (Activation, "ChannelActivation"),
    "wanda": (Wanda, "ChannelWandA"),
    "reconstruction": (Reconstruction, ""),
}
PUBLISHED_MEASURES: dict[str, str] = {theirs: ours for ours, (_, theirs) in _NAMES.items() if theirs}
"""The thesis's names, and ours for the same measures."""

MEASURES: Registry[Measure] = Registry(
    "measure",
    Measure,
    {name: cls for name, (cls, _) in _NAMES.items()},
    {name: (short, {}) for name, short in PUBLISHED_MEASURES.items()},
)

register_measure = MEASURES.register
"""Make a measure known by a name, for Python, YAML and the command line; see `Registry.register`."""

get_measure = MEASURES.find
"""Return a measure by name, dotted path, description, class or as it is; see `Registry.find`."""

__all__ = [
    "MEASURES", "PUBLISHED_MEASURES", "Activation", "LayerRecord", "Measure", "ModifiedPageRank", "Norm", "Random",
    "Reader", "Reconstruction", "Wanda", "WeightedPageRank", "get_measure", "register_measure",
]  # fmt: skip
