"""What a measure is given for one layer, what it has to be, and scores that sum to 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.utils.errors import check_amount


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the neurons being ranked.

    Attributes:
        weight: The reader's raw weights on these neurons, shape (m, n_out).
        gram: Centred Gram matrix ``C^T C`` of what it reads from them, shape (n_out, n_out), float64,
            activation units squared. Readers of the same tensor share one object.

    Examples:
        >>> import torch
        >>> Reader(weight=torch.ones(3, 2), gram=torch.eye(2, dtype=torch.float64)).weight.shape
        torch.Size([3, 2])
    """

    weight: Float[Tensor, "m n_out"]
    gram: Float[Tensor, "n_out n_out"]


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """All that a measure may look at for one layer; it must change none of it.

    Attributes:
        name: The layer's or group's name, for messages.
        weight: Raw signed weights, shape (n_out, n_in); of a kernel, or of the block of inputs that a neuron below
            sends, the sum of the absolute values.
        previous: Scores of what the layer reads, shape (n_in,), unitless, summing to 1.
        input_norms: L2 norms over the calibration samples of what the layer reads, shape (n_in,), activation units.
        output_norms: L2 norms over the calibration samples of what each neuron emits, shape (n_out,),
            activation units.
        amount: The requested fraction of neurons to remove, in [0, 1).
        kernels: All raw weights of every neuron, shape (n_out, m), where `weight` holds sums over kernels or blocks;
            None where it does not.
        readers: Gives the layers that read these neurons, with their Gram matrices; called only by a measure
            that needs them, because the matrices cost a pass over the calibration data.

    Raises:
        TypeError: If the weights are not real floating-point numbers.
        ValueError: If a shape does not fit the weights, a norm or a score is negative, NaN or infinite, or the
            amount is outside [0, 1); the message names the layer.

    Examples:
        >>> import torch
        >>> from mlprank.measures import Activation
        >>> ones = torch.ones(2)
        >>> record = LayerRecord("fc1", torch.eye(2), ones / 2, input_norms=ones, output_norms=torch.tensor([3.0, 1.0]))
        >>> Activation()(record)
        tensor([0.7500, 0.2500])
    """

    name: str
    weight: Float[Tensor, "n_out n_in"]
    previous: Float[Tensor, " n_in"]
    input_norms: Float[Tensor, " n_in"]
    output_norms: Float[Tensor, " n_out"]
    amount: float = 0.0
    kernels: Float[Tensor, "n_out m"] | None = None
    readers: Callable[[], tuple[Reader, ...]] = tuple

    def __post_init__(self) -> None:
        place = f'layer "{self.name}": '
        score_dtype(self.weight, place=place)
        if self.weight.ndim != 2:
            raise ValueError(f"{place}weight has shape {tuple(self.weight.shape)}; it must be (n_out, n_in)")
        check_amount(self.amount, f"{place}amount")
        num_out, num_in = self.weight.shape
        for argument, size in (("previous", num_in), ("input_norms", num_in), ("output_norms", num_out)):
            values = getattr(self, argument)
            if tuple(values.shape) != (size,):
                raise ValueError(
                    f"{place}{argument} has shape {tuple(values.shape)}; a weight {(num_out, num_in)} needs ({size},)"
                )
            check_non_negative(values, argument=argument, place=place)


@runtime_checkable
class Measure(Protocol):
    """Anything that turns a layer's record into scores.

    A measure says by two attributes, both False where they are missing, what else its scores depend on:
    ``reads_pruned``, whether it must see the network already pruned below a layer, and ``reads_amount``, whether it
    looks at `LayerRecord.amount` (a measure of another package that does not say is asked anew for every amount).

    Examples:
        >>> from mlprank.measures import Norm
        >>> isinstance(Norm(), Measure)
        True
    """

    def __call__(self, layer: LayerRecord) -> Float[Tensor, " n_out"]:
        """Return scores, shape (n_out,), unitless, non-negative, summing to 1; larger means keep."""


def score_dtype(weight: Tensor, *, place: str = "") -> torch.dtype:
    """Return the precision of a layer's scores: float64 for float64 weights, else float32."""
    if not weight.dtype.is_floating_point:
        raise TypeError(
            f"{place}weight has dtype {weight.dtype}; a measure needs real numbers: convert the model by model.float()"
        )
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def check_non_negative(values: Tensor, *, argument: str, place: str = "") -> None:
    """Raise a ValueError if a vector is empty or has a negative, NaN or infinite entry."""
    if values.numel() == 0:
        raise ValueError(f"{place}{argument} is empty; a layer needs at least one neuron on either side")
    low, high = values.aminmax()
    if low.item() >= 0.0 and high.item() < math.inf:
        return
    index = int((~((values >= 0) & (values < float("inf")))).nonzero()[0])
    raise ValueError(
        f"{place}{argument}[{index}]={float(values[index])}, but it must be finite and at least 0; look for NaN, "
        "overflow or a sign error in the calibration data, the weights or the layer below"
    )


def normalise_scores(scores: Float[Tensor, " n"], *, argument: str = "scores") -> Float[Tensor, " n"]:
    """Divide non-negative values, shape (n,), by their sum; ``1 / n`` each where all are 0.

    Raises:
        ValueError: If they are empty or have a negative, NaN or infinite entry; `argument` is what they are called.
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
