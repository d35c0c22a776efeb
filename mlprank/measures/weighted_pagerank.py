"""Weighted PageRank of one layer's neurons, in two reads of its weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.measures.normalise import normalise_scores, score_dtype
from mlprank.measures.record import LayerRecord

# A block of rows whose absolute values stay in the cache between being written and being read. Smaller ones would
# stay in a faster cache, but what a call costs then counts for more.
_BLOCK_BYTES = 2**21


def weighted_pagerank(
    weight: Float[Tensor, "n_out n_in"],
    previous: Float[Tensor, " n_in"],
    activation: Float[Tensor, " n_out"],
    *,
    gamma: float,
    theta: float,
) -> Float[Tensor, " n_out"]:
    """Rank one layer's neurons by weighted PageRank.

    A neuron receives each input's score in proportion to its share of that input's absolute weights (theta) and
    of that input's non-zero weights (1 - theta), damped by gamma towards its own activation.

    Args:
        weight: Layer weights, shape (n_out, n_in). The sign is ignored.
        previous: Scores of the layer below, shape (n_in,), summing to 1.
        activation: Calibration L2 norms, shape (n_out,), non-negative; all zero counts as uniform.
        gamma: Damping in [0, 1]; 0 ignores the graph.
        theta: Weight against degree, in [0, 1].

    Returns:
        Scores, shape (n_out,), unitless, summing to 1; larger means keep. Float64 for float64 weights, else float32.

    Raises:
        TypeError: If the weights are not floating-point numbers.
        ValueError: If `activation` has a negative, NaN or infinite entry, or `weight` a NaN or infinite one.

    Source:
        Hoffmann 2024, "MLP-Rank: A Graph Theoretical Approach to Pruning Deep Neural Networks", bachelor's thesis.
    """
    dtype = score_dtype(weight)
    scores = (1.0 - gamma) * normalise_scores(activation.detach().to(dtype), argument="activation")
    by_weight, by_degree = _shares(weight.detach(), previous.detach().to(dtype))
    scores.add_(by_weight, alpha=gamma * theta)
    scores.add_(by_degree, alpha=gamma * (1.0 - theta))
    return normalise_scores(scores)


def _shares(
    weight: Float[Tensor, "n_out n_in"], previous: Float[Tensor, " n_in"]
) -> tuple[Float[Tensor, " n_out"], Float[Tensor, " n_out"]]:
    """Return ``Ŵ p`` and ``Â p`` without building either matrix: ``Ŵ p = W (p / colsum)``.

    Both passes go over blocks of rows, so that the absolute values never reach main memory. A block's 0/1 matrix
    is made only where the block's smallest absolute value says that it has a zero.
    """
    num_out, num_in = weight.shape
    rows = num_out if weight.is_cuda else max(1, min(num_out, _BLOCK_BYTES // (num_in * previous.itemsize)))
    blocks = torch.split(weight, rows)
    last = len(blocks) - 1
    # All views are made beforehand: in the loops, a view costs as much as a product.
    buffer, ones = previous.new_empty((rows, num_in)), previous.new_ones(rows)
    rest = num_out - last * rows
    buffers = [*([buffer] * last), buffer[:rest]]
    ones_of = [*([ones] * last), ones[:rest]]
    sums = previous.new_empty((len(blocks), num_in))
    counts: dict[int, Tensor] = {}
    for index, (block, column_sum) in enumerate(zip(blocks, sums.unbind(), strict=True)):
        absolute = _absolute(block, buffers[index])
        # A matrix-vector product, unlike a matrix product, is never run in TF32 or bfloat16.
        torch.mv(absolute.t(), ones_of[index], out=column_sum)
        if not absolute.amin().item() > 0.0:
            counts[index] = torch.mv(absolute.sign_().t(), ones_of[index])
    per_weight = _divide(previous, sums.sum(0) if last else sums[0])
    full_rows = num_out - sum(blocks[index].shape[0] for index in counts)
    degrees = sum(counts.values(), start=previous.new_full((num_in,), full_rows)) if counts else None
    per_edge = previous / num_out if degrees is None else _divide(previous, degrees)
    by_weight, by_degree = previous.new_empty(num_out), per_edge.sum().expand(num_out).clone()
    by_weight_of = torch.split(by_weight, rows)
    # Backwards: what was read last is still in the cache, and the last block's absolute values are in the buffer.
    for index in range(last, -1, -1):
        at_hand = index == last and index not in counts
        absolute = buffers[index] if at_hand else _absolute(blocks[index], buffers[index])
        torch.mv(absolute, per_weight, out=by_weight_of[index])
        if index in counts:
            torch.mv(absolute.sign_(), per_edge, out=by_degree[index * rows : (index + 1) * rows])
    return by_weight, by_degree


def _absolute(block: Float[Tensor, "rows n_in"], buffer: Float[Tensor, "rows n_in"]) -> Float[Tensor, "rows n_in"]:
    """Write a block's absolute values into the buffer, in the buffer's precision."""
    return torch.abs(block, out=buffer) if block.dtype == buffer.dtype else buffer.copy_(block).abs_()


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
class WeightedPageRank:
    """Weighted PageRank with its two parameters.

    Attributes:
        gamma: Damping in [0, 1]; 0 ignores the graph.
        theta: Weight against degree, in [0, 1].

    Raises:
        ValueError: If a parameter is outside [0, 1] or NaN.
    """

    gamma: float = 0.9
    theta: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("theta", self.theta)):
            if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"WeightedPageRank: {name}={value!r} is not a number in [0, 1]; choose a value between 0 and 1, "
                    f"such as the default {0.9 if name == 'gamma' else 0.5}"
                )

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return the layer's scores; see `weighted_pagerank`."""
        return weighted_pagerank(layer.weight, layer.previous, layer.output_norms, gamma=self.gamma, theta=self.theta)
