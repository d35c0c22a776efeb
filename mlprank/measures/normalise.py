"""Scores that sum to 1, the precision they are kept in, and the check of what they are made from."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def score_dtype(weight: Tensor, *, place: str = "") -> torch.dtype:
    """Return the precision of a layer's scores.

    Args:
        weight: The layer's weights.
        place: Where the weights are, put in front of the message, such as ``'layer "fc1": '``.

    Returns:
        float64 for float64 weights, float32 for float16, bfloat16 and float32 weights.

    Raises:
        TypeError: If the weights are not real floating-point numbers.
    """
    if not weight.dtype.is_floating_point:
        raise TypeError(
            f"{place}weight has dtype {weight.dtype}; a measure needs real floating-point weights: "
            "convert the model with model.float() first"
        )
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def check_non_negative(values: Tensor, *, argument: str, place: str = "") -> None:
    """Check that a vector of norms or scores is finite and non-negative.

    Args:
        values: The vector, shape (n,).
        argument: What the caller calls it, for the message.
        place: Where it belongs, put in front of the message, such as ``'layer "fc1": '``.

    Raises:
        ValueError: If it is empty or has a negative, NaN or infinite entry.
    """
    if values.numel() == 0:
        raise ValueError(f"{place}{argument} is empty; a layer needs at least one neuron on either side")
    low, high = values.aminmax()
    if low.item() >= 0.0 and high.item() < math.inf:
        return
    index = int((~((values >= 0) & (values < float("inf")))).nonzero()[0])
    raise ValueError(
        f"{place}{argument}[{index}]={float(values[index])}, but it must be finite and at least 0; "
        "look for NaN, overflow or a sign error in the calibration data, the weights or the layer below"
    )


def normalise_scores(scores: Float[Tensor, " n"], *, argument: str = "scores") -> Float[Tensor, " n"]:
    """Divide scores by their sum; scores without a direction become uniform.

    Args:
        scores: Non-negative values, shape (n,), any unit.
        argument: What the caller calls them, for the message.

    Returns:
        Scores, shape (n,), unitless, summing to 1; ``1 / n`` each where all are 0.

    Raises:
        ValueError: If they are empty or have a negative, NaN or infinite entry.
    """
    check_non_negative(scores, argument=argument)
    total = scores.sum().item()
    if torch.finfo(scores.dtype).tiny <= total < math.inf:
        return scores / total
    # The sum of very large or very small scores leaves the range of their type; relative to the peak it does not.
    peak = scores.max()
    if peak == 0:
        return torch.full_like(scores, 1.0 / scores.numel())
    relative = scores.to(torch.float64) / peak
    return (relative / relative.sum()).to(scores.dtype)
