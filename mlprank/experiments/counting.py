"""How many images the true class is among the k largest logits for, told apart from those that rounding could turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-5
"""Two ways of computing the same float32 logits differ by less than this times the largest one; as the engine's self-check."""


@dataclass(frozen=True)
class Decided:
    """What a batch's logits say, for one k.

    Attributes:
        correct: Shape (N,), True where the true class is among the k largest however the logits are rounded.
        doubtful: Shape (N,), True where rounding decides.
    """

    correct: Bool[Tensor, " n"]
    doubtful: Bool[Tensor, " n"]


def decide(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], *, k: Sequence[int]) -> tuple[Decided, ...]:
    """Decide every image for every k.

    Args:
        logits: Shape (N, num_classes).
        labels: Shape (N,), in [0, num_classes).
        k: Which k, each at least 1.

    Returns:
        One decision for each k.

    Raises:
        ValueError: If a logit is not finite, or a label names no class.
    """
    largest = float(logits.abs().max())
    if not largest < float("inf"):
        raise ValueError("the pruned network gives logits that are not finite; look at its weights and at the amount")
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"label {int(labels.max())} names no class of a network with {logits.shape[1]} outputs; is the checkpoint one for"
            " another data set?"
        )
    tolerance = ROUNDING * max(1.0, largest)
    true = logits.gather(1, labels[:, None])
    above = (logits > true + tolerance).sum(1)
    near = (logits > true - tolerance).sum(1) - 1
    decided = []
    for each in k:
        wanted = min(each, logits.shape[1])
        correct, wrong = near < wanted, above >= wanted
        decided.append(Decided(correct, ~(correct | wrong)))
    return tuple(decided)


def differ(one: Tensor, other: Tensor) -> bool:
    """Say whether logits differ by more than a quarter of what `decide` allows for."""
    if one.shape != other.shape:
        return True
    scale = max(1.0, float(one.abs().max()))
    return not float((one - other).abs().max()) <= ROUNDING * scale / 4


def doubtful_batches(decided: Sequence[Decided], *, batch_size: int) -> list[int]:
    """Return the numbers of the batches that hold an image that is in doubt for some k, ascending.

    Args:
        decided: Decisions of the same images.
        batch_size: Images in a batch.
    """
    doubtful = torch.stack([one.doubtful for one in decided]).any(0).nonzero().flatten()
    return sorted(set((doubtful // batch_size).tolist()))
