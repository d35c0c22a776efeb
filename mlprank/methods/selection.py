"""What the methods share: the protocol, the checks, and the choice of the largest scores."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Method(Protocol):
    """Anything that turns scores into masks.

    A method that chooses in every layer by that layer's scores alone says so by the attribute ``layer_by_layer = True``;
    measures with ``reads_pruned`` then rank a layer after the layers below it have been pruned.
    """

    def __call__(
        self,
        scores: Mapping[str, Float[Tensor, " n_out"]],
        amounts: Mapping[str, float],
        *,
        min_neurons: int = 1,
        round_to: int = 1,
    ) -> dict[str, Bool[Tensor, " n_out"]]:
        """Return every layer's mask, shape (n_out,), True is kept; scores and amounts have the same keys."""
        ...


def keep_largest(scores: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Return the mask of the `count` largest scores.

    Args:
        scores: Scores, shape (n,).
        count: How many to keep, from 0 to n.

    Returns:
        Mask, shape (n,), True at exactly `count` entries; of equal scores the lower index goes first.
    """
    removed = scores.numel() - count
    if removed == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    values = scores.detach()
    threshold = values.kthvalue(removed).values
    mask = values >= threshold
    surplus = int(mask.count_nonzero()) - count
    mask[(values == threshold).nonzero()[:surplus, 0]] = False
    return mask


def kept_count(wanted: int, size: int, *, min_neurons: int, round_to: int) -> int:
    """Return how many neurons a layer keeps once the guards have been heard.

    Args:
        wanted: How many it would keep without them.
        size: How many it has.
        min_neurons: How many it keeps at least.
        round_to: What the number is rounded up to a multiple of.

    Returns:
        The number, from 1 to `size`.
    """
    guarded = max(wanted, min_neurons)
    return min(-(-guarded // round_to) * round_to, size)


def check_request(
    scores: Mapping[str, Tensor], amounts: Mapping[str, float], *, min_neurons: int, round_to: int
) -> None:
    """Check what a method was given.

    Args:
        scores: Each layer's scores.
        amounts: Each layer's fraction to remove.
        min_neurons: The least number of neurons to keep.
        round_to: The multiple to round up to.

    Raises:
        ValueError: If the keys differ, an amount is not in [0, 1), a count is below 1, or a layer's scores are empty,
            not a vector, or have a negative, NaN or infinite entry; the message names the layer.
    """
    for argument, value in (("min_neurons", min_neurons), ("round_to", round_to)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}={value!r} is not an integer of at least 1; give 1 to switch it off")
    for name in scores.keys() - amounts.keys():
        raise ValueError(f'layer "{name}" has scores but no amount; give amounts the same keys as scores')
    for name in amounts.keys() - scores.keys():
        raise ValueError(f'layer "{name}" has an amount but no scores; give amounts the same keys as scores')
    for name, amount in amounts.items():
        if not 0.0 <= amount < 1.0:
            raise ValueError(f'layer "{name}": amount={amount} is not in [0, 1); give the fraction to remove')
    for name, values in scores.items():
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(f'layer "{name}": scores of shape {tuple(values.shape)}; they must be a vector, not empty')
        low, high = values.aminmax()
        if not (low.item() >= 0.0 and high.item() < float("inf")):
            raise ValueError(
                f'layer "{name}": scores from {low.item()} to {high.item()} are not all finite and at least 0; '
                "look for the fault in the measure that gave them"
            )
