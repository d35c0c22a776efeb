"""The thesis's two methods: they remove the smallest scores of a layer or of the network. What methods share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.measures.record import check_non_negative
from mlprank.utils.errors import check_amount, check_choice, check_whole

Scores = Mapping[str, Float[Tensor, " n_out"]]
Amounts = Mapping[str, float]
Masks = dict[str, Bool[Tensor, " n_out"]]


@runtime_checkable
class Method(Protocol):
    """Anything that turns scores into masks.

    A method that chooses in every layer by that layer's scores alone says so by the attribute ``layer_by_layer =
    True``; measures with ``reads_pruned`` then rank a layer after the layers below it have been pruned.
    """

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps.

        Args:
            scores: Each layer's scores, shape (n_out,); larger means keep.
            amounts: The fraction to remove, in [0, 1), by layer; the same keys.
            min_neurons: How many neurons every layer keeps at least (all, if it has fewer).
            round_to: What the number of kept neurons is rounded up to a multiple of, where the layer has as many.

        Returns:
            Masks by layer, shape (n_out,), True is kept. The guards may remove less than was asked for, never more.

        Raises:
            ValueError: If the keys differ, an amount, `min_neurons` or `round_to` is out of range, or a layer's scores
                are empty, not a vector, or have a negative, NaN or infinite entry.
        """


@dataclass(frozen=True)
class Local:
    """In every layer, remove the ``round(amount * n_out)`` neurons with the smallest scores.

    Rounding is Python's: a half goes to the even number. Of equal scores the lower index goes first.

    Examples:
        >>> import torch
        >>> scores = {"fc1": torch.tensor([0.4, 0.1, 0.3, 0.2]), "fc2": torch.tensor([0.6, 0.4])}
        >>> Local()(scores, {"fc1": 0.5, "fc2": 0.5})["fc1"]
        tensor([ True, False,  True, False])
    """

    layer_by_layer: ClassVar[bool] = True

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps; see `Method`."""
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        masks = {}
        for name, values in scores.items():
            size = values.numel()
            wanted = size - round(amounts[name] * size)
            masks[name] = keep_largest(values, _guarded(wanted, size, min_neurons=min_neurons, round_to=round_to))
        return masks


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

    Examples:
        >>> import torch
        >>> scores = {"fc1": torch.tensor([0.4, 0.1, 0.3, 0.2]), "fc2": torch.tensor([0.6, 0.4])}
        >>> Global()(scores, {"fc1": 0.5, "fc2": 0.5})["fc1"]
        tensor([ True, False,  True, False])
    """

    normalise: Literal["width", "none"] = "width"

    def __post_init__(self) -> None:
        check_choice("Global: normalise", self.normalise, ("width", "none"))

    def __call__(self, scores: Scores, amounts: Amounts, *, min_neurons: int = 1, round_to: int = 1) -> Masks:
        """Return which neurons every layer keeps; see `Method`. All layers have one amount, a share of all neurons."""
        check_request(scores, amounts, min_neurons=min_neurons, round_to=round_to)
        if not scores:
            return {}
        sizes, wide = [values.numel() for values in scores.values()], self.normalise == "width"
        device = next(iter(scores.values())).device
        flat = torch.cat([own.to(device, torch.float64) * (own.numel() if wide else 1) for own in scores.values()])
        removed = math.ceil(sole_amount(amounts, method="global") * flat.numel())
        masks = torch.split(keep_largest(flat, flat.numel() - removed), sizes)
        if any(int(mask.count_nonzero()) < min(min_neurons, mask.numel()) for mask in masks):
            for part in torch.split(flat, sizes):
                part[keep_largest(part, min(min_neurons, part.numel()))] = math.inf
            candidates = int(flat.isfinite().count_nonzero())
            masks = torch.split(keep_largest(flat, flat.numel() - min(removed, candidates)), sizes)
        rounded = {}
        for name, mask in zip(scores, masks, strict=True):
            kept = int(mask.count_nonzero())
            wanted = _guarded(kept, mask.numel(), min_neurons=min_neurons, round_to=round_to)
            chosen = mask.clone() if wanted == kept else keep_largest(scores[name], wanted)
            rounded[name] = chosen.to(scores[name].device)
        return rounded


def sole_amount(amounts: Amounts, *, method: str) -> float:
    """Return the amount of a method that looks at all layers together."""
    amount, *others = set(amounts.values())
    if others:
        given = ", ".join(f'"{name}": {amount}' for name, amount in amounts.items())
        raise ValueError(
            f'method="{method}" takes one amount for all layers, but was given {given}; use method="local" for several'
        )
    return amount


def keep_largest(scores: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Return the mask of the `count` largest scores, from 0 to n; of equal scores the lower index goes first."""
    removed = scores.numel() - count
    if removed == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    values = scores.detach()
    threshold = values.kthvalue(removed).values
    mask = values >= threshold
    surplus = int(mask.count_nonzero()) - count
    mask[(values == threshold).nonzero()[:surplus, 0]] = False
    return mask


def _guarded(wanted: int, size: int, *, min_neurons: int, round_to: int) -> int:
    """How many of its neurons a layer keeps once the guards have been heard, from 1 to `size`."""
    return min(-(-max(wanted, min_neurons) // round_to) * round_to, size)


def check_request(scores: Scores, amounts: Amounts, *, min_neurons: int, round_to: int) -> None:
    """Raise the errors of `Method`; the message names the layer."""
    check_whole(min_neurons=min_neurons, round_to=round_to)
    for name in scores.keys() ^ amounts.keys():
        has, lacks = ("scores", "amount") if name in scores else ("an amount", "scores")
        raise ValueError(f'layer "{name}" has {has} but no {lacks}; give amounts the same keys as scores')
    check_amount(amounts)
    for name, values in scores.items():
        if values.ndim != 1 or values.numel() == 0:
            raise ValueError(f'layer "{name}": scores of shape {tuple(values.shape)}; they must be a vector, not empty')
        check_non_negative(values, argument="scores", place=f'layer "{name}": ')
