"""The thesis's two measures: weighted PageRank, in two reads of a layer's weights, and modified PageRank."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.record import LayerRecord, normalise_scores, score_dtype

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

    total, degrees, with_zeros = torch.zeros_like(previous), torch.zeros_like(previous), set[int]()
    for index, block in enumerate(blocks):
        absolute = absolute_of(block)
        # A matrix-vector product, unlike a matrix product, is never run in TF32 or bfloat16.
        total += torch.mv(absolute.t(), ones[: len(block)])
        if absolute.amin().item() > 0.0:  # every neuron has an edge from every input
            degrees += len(block)
        else:
            with_zeros.add(index)
            degrees += torch.mv(absolute.sign_().t(), ones[: len(block)])
    per_weight, per_edge = _divide(previous, total), _divide(previous, degrees)
    every_edge, by_weight, by_degree = per_edge.sum(), list[Tensor](), list[Tensor]()
    for index in reversed(range(len(blocks))):  # what was read last is still in the cache, and in the buffer
        if index < len(blocks) - 1 or index in with_zeros:
            absolute = absolute_of(blocks[index])
        by_weight.insert(0, torch.mv(absolute, per_weight))
        some = index in with_zeros
        by_degree.insert(0, torch.mv(absolute.sign_(), per_edge) if some else every_edge.expand(len(absolute)))
    return torch.cat(by_weight), torch.cat(by_degree)


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
