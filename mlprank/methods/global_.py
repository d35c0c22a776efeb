"""Remove the neurons with the smallest scores of the whole network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.methods.selection import check_request, keep_largest, kept_count


@dataclass(frozen=True)
class Global:
    """Over all layers together, remove the ``ceil(amount * total)`` neurons with the smallest scores.

    Of equal scores the earlier layer goes first, within a layer the lower index. The `min_neurons` best neurons of
    every layer are not candidates: others go in their place, as long as there are any.

    Attributes:
        normalise: ``"width"`` multiplies a layer's scores by its width, so that their mean is 1 in every layer;
            ``"none"`` compares them as they are, as published, which empties the widest layers first.

    Raises:
        ValueError: If `normalise` is neither.
    """

    normalise: Literal["width", "none"] = "width"

    def __post_init__(self) -> None:
        if self.normalise not in ("width", "none"):
            raise ValueError(f'Global: normalise={self.normalise!r} is unknown; use "width" or "none"')

    def __call__(
        self,
        scores: Mapping[str, Float[Tensor, " n_out"]],
        amounts: Mapping[str, float],
        *,
        min_neurons: int = 1,
        round_to: int = 1,
    ) -> dict[str, Bool[Tensor, " n_out"]]:
        """Return which neurons every layer keeps.

        Args:
            scores: Each layer's scores, shape (n_out,); larger means keep.
            amounts: The fraction of all neurons to remove, in [0, 1); the same for every layer.
            min_neurons: How many neurons every layer keeps at least (all, if it has fewer).
            round_to: What the number of kept neurons is rounded up to a multiple of, where the layer has as many.

        Returns:
            Masks by layer, shape (n_out,), True is kept. The guards may remove less than was asked for, never more.

        Raises:
            ValueError: If the keys or the amounts differ, an amount, `min_neurons` or `round_to` is out of range, or
                a layer's scores are empty, not a vector, or have a negative, NaN or infinite entry.
        """
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        if not scores:
            return {}
        if len(set(amounts.values())) > 1:
            given = ", ".join(f'"{name}": {amount}' for name, amount in amounts.items())
            raise ValueError(
                f'method="global" ranks all layers together and takes one amount, but was given {given}; '
                'use method="local" for an amount per layer'
            )
        layers = list(scores.values())
        device = layers[0].device
        flat = torch.cat([values.to(device=device, dtype=torch.float64) * self._scale(values) for values in layers])
        sizes = [values.numel() for values in layers]
        removed = math.ceil(next(iter(amounts.values())) * flat.numel())
        masks = torch.split(keep_largest(flat, flat.numel() - removed), sizes)
        if any(int(mask.count_nonzero()) < min(min_neurons, mask.numel()) for mask in masks):
            for part in torch.split(flat, sizes):
                part[keep_largest(part, min(min_neurons, part.numel()))] = math.inf
            candidates = int(flat.isfinite().count_nonzero())
            masks = torch.split(keep_largest(flat, flat.numel() - min(removed, candidates)), sizes)
        rounded = {}
        for name, mask in zip(scores, masks, strict=True):
            kept = int(mask.count_nonzero())
            wanted = kept_count(kept, mask.numel(), min_neurons=min_neurons, round_to=round_to)
            chosen = mask.clone() if wanted == kept else keep_largest(scores[name], wanted)
            rounded[name] = chosen.to(scores[name].device)
        return rounded

    def _scale(self, values: Float[Tensor, " n_out"]) -> float:
        return float(values.numel()) if self.normalise == "width" else 1.0
