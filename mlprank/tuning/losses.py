"""Loss and accuracy of every trial of a stack."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stacked_cross_entropy(
    scores: Float[Tensor, "K classes B"], targets: Tensor, *, label_smoothing: Float[Tensor, " K"] | None = None
) -> Float[Tensor, " K"]:
    """Return the mean cross-entropy of every trial.

    Args:
        scores: Logits, shape (K, classes, B).
        targets: Class indices, shape (B,) for all or (K, B), or probabilities, shape (B, classes) or (K, B, classes).
        label_smoothing: Share of the target that is spread over all classes, of every trial, in [0, 1); None is 0.

    Returns:
        Losses, shape (K,).
    """
    log_p = scores.log_softmax(dim=1)
    if targets.is_floating_point():
        picked = (log_p * targets.movedim(-1, -2)).sum(dim=1)
    else:
        picked = log_p.gather(1, targets.expand(len(scores), -1).unsqueeze(1)).squeeze(1)
    if label_smoothing is not None:
        share = label_smoothing.to(log_p).unsqueeze(1)
        picked = (1 - share) * picked + share * log_p.mean(dim=1)
    return -picked.mean(dim=1)


def rank_of_target(scores: Float[Tensor, "K classes B"], targets: Int[Tensor, "..."]) -> Int[Tensor, "K B"]:
    """Return how many classes are scored above the right one; 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal scores the lower class comes first, as in `argmax`. A sample whose scores are not finite ranks last.

    Args:
        scores: Logits, shape (K, classes, B).
        targets: Class indices, shape (B,) or (K, B).

    Returns:
        Ranks, shape (K, B), int64.
    """
    classes = scores.shape[1]
    index = targets.expand(len(scores), -1).unsqueeze(1)
    own = scores.gather(1, index)
    lower = torch.arange(classes, device=scores.device).view(1, -1, 1) < index
    rank = ((scores > own) | ((scores == own) & lower)).sum(dim=1)
    return torch.where(scores.isfinite().all(dim=1), rank, classes)
