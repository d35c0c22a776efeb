"""Remove the same share of neurons from every layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.methods.selection import check_request, keep_largest, kept_count


@dataclass(frozen=True)
class Local:
    """In every layer, remove the ``round(amount * n_out)`` neurons with the smallest scores.

    Rounding is Python's: a half goes to the even number. Of equal scores the lower index goes first.
    """

    layer_by_layer: ClassVar[bool] = True

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
            amounts: Each layer's fraction to remove, in [0, 1); the same keys.
            min_neurons: How many neurons every layer keeps at least (all, if it has fewer).
            round_to: What the number of kept neurons is rounded up to a multiple of, where the layer has as many.

        Returns:
            Masks by layer, shape (n_out,), True is kept. The guards may remove less than was asked for, never more.

        Raises:
            ValueError: If the keys differ, an amount, `min_neurons` or `round_to` is out of range, or a layer's
                scores are empty, not a vector, or have a negative, NaN or infinite entry.
        """
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        masks = {}
        for name, values in scores.items():
            size = values.numel()
            wanted = size - round(amounts[name] * size)
            masks[name] = keep_largest(values, kept_count(wanted, size, min_neurons=min_neurons, round_to=round_to))
        return masks
