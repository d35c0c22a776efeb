"""What a pruned neuron leaves behind.

`constant` and `zero` leave the neuron's constant output to its readers, exactly. `mean` and `least_squares` change what the readers
do with the kept neurons instead, so that on the calibration data they miss the pruned ones least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.calibration.statistics import Moments, PooledMoments
from mlprank.graph.records import Graph, Layer, State
from mlprank.utils.registry import Registry


@dataclass(frozen=True)
class Prediction:
    """Pruned neurons from kept ones: `pruned = coefficients.T @ kept + intercept`, all float64.

    Attributes:
        coefficients: Shape (num_kept, num_pruned).
        intercept: Shape (num_pruned,).
    """

    coefficients: Float[Tensor, "kept pruned"]
    intercept: Float[Tensor, " pruned"]


@runtime_checkable
class Compensation(Protocol):
    """What a pruned neuron leaves behind.

    Attributes:
        keeps_bias: Whether the pruned neuron's bias stays, so that it sends `act(bias)`; otherwise it sends `act(0)`.
    """

    @property
    def keeps_bias(self) -> bool:
        """Whether the pruned neuron's bias stays."""
        ...


@runtime_checkable
class Regression(Compensation, Protocol):
    """A compensation that predicts pruned neurons from kept ones."""

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Return the prediction from calibration moments; `mask`, shape (n,), is True for kept neurons."""
        ...


@dataclass(frozen=True)
class Constant:
    """The weight row is zeroed, the bias stays: the neuron sends `act(bias)`. As published."""

    keeps_bias: ClassVar[bool] = True


@dataclass(frozen=True)
class Zero:
    """Weight row and bias are zeroed: the neuron sends `act(0)`."""

    keeps_bias: ClassVar[bool] = False


@dataclass(frozen=True)
class Mean:
    """The neuron sends its mean over the calibration data."""

    keeps_bias: ClassVar[bool] = False

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Return the means as intercepts."""
        pruned = moments.mean[~mask]
        return Prediction(pruned.new_zeros(int(mask.sum()), len(pruned)), pruned)


@dataclass(frozen=True)
class LeastSquares:
    """The neuron sends its best linear prediction from the kept neurons, by ridge regression on the calibration data.

    Attributes:
        ridge: The penalty as a share of the mean variance of the kept neurons, positive.
    """

    ridge: float = 1e-2
    keeps_bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (0 < self.ridge < math.inf):
            raise ValueError(f"least_squares: ridge={self.ridge} must be a positive number")

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Solve `(G_KK + lambda I) B = G_KP` with `lambda = ridge * mean(diag(G_KK))`, larger where that cannot be factorised."""
        kept, pruned = moments.gram[mask][:, mask], moments.gram[mask][:, ~mask]
        scale = float(kept.diagonal().mean())
        if not math.isfinite(scale):
            raise ValueError(
                "least_squares: the moments of the kept neurons are not finite; check the calibration data"
            )
        if scale <= 0:
            return Mean().predict(moments, mask)
        eye, ridge = torch.eye(len(kept), dtype=kept.dtype, device=kept.device), self.ridge
        factor, failed = torch.linalg.cholesky_ex(kept + ridge * scale * eye)
        while int(failed):
            ridge *= 10
            factor, failed = torch.linalg.cholesky_ex(kept + ridge * scale * eye)
        coefficients = torch.cholesky_solve(pruned, factor)
        return Prediction(coefficients, moments.mean[~mask] - coefficients.T @ moments.mean[mask])


COMPENSATIONS = Registry(
    "compensation",
    Compensation,
    {"constant": Constant, "zero": Zero, "mean": Mean, "least_squares": LeastSquares},
)


def register_compensation(name: str, cls: type[Any]) -> None:
    """Make a compensation known by a name, for Python, YAML and the command line; see `Registry.register`.

    Examples:
        >>> from mlprank.compensation import Mean, register_compensation
        >>> register_compensation("mean", Mean)  # a name keeps its class
    """
    COMPENSATIONS.register(name, cls)


def get_compensation(compensation: str | Mapping[str, Any] | type[Any] | Compensation) -> Compensation:
    """Return a compensation by name, dotted path, description, class or as it is; see `Registry.find`.

    Examples:
        >>> from mlprank.compensation import get_compensation
        >>> get_compensation("least_squares")
        LeastSquares(ridge=0.01)
    """
    found: Compensation = COMPENSATIONS.find(compensation)
    return found


def zero_rows(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return the weights with the rows of pruned neurons zeroed.

    Args:
        graph: The network's graph.
        state: Its weights.
        masks: For every layer to change, shape (n_out,), True for kept neurons.
        keeps_bias: Leave the pruned neurons' biases as they are.

    Returns:
        A new state; tensors that do not change are the given ones.
    """
    changed = dict(state)
    for name, rows in zeroed_parameters(graph, state, masks, keeps_bias=keeps_bias).items():
        changed[name] = changed[name] * rows.view(-1, *[1] * (changed[name].dim() - 1))
    return changed


def zeroed_parameters(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return which rows of which weights and biases stay: shape (n_out,) by parameter name, True for rows that stay."""
    rows: dict[str, Tensor] = {}
    for name, mask in masks.items():
        layer = graph.by_name[name]
        for parameter in (layer.weight,) if keeps_bias else (layer.weight, *layer.biases):
            if parameter in state:
                rows[parameter] = rows[parameter] & mask if parameter in rows else mask
    return rows


def regress(
    state: State, readers: Iterable[Layer], mask: Tensor, moments: PooledMoments, *, by: Regression
) -> dict[str, Tensor]:
    """Return the weights with readers of a group making up for the group's pruned neurons.

    For the weights W of a reader, `W_K += W_P B^T` and `b += W_P (mean_P - B^T mean_K)`; its weights on pruned neurons become zero. A
    reader that has no place for a bias is regressed without an intercept.

    Args:
        state: The network's weights.
        readers: Layers that read the group that is pruned.
        mask: Shape (n,), True for kept neurons.
        moments: Moments of what every reader reads, by `Layer.sources`.
        by: The regression.

    Returns:
        A new state; biases that did not exist are in it under the name that they will have.
    """
    changed = dict(state)
    for layer in readers:
        places = dict.fromkeys(call.bias_place for call in layer.calls)
        seen = moments[layer.sources]
        prediction = by.predict(seen.uncentred() if None in places else seen, mask)
        weight = state[layer.weight]
        pruned = weight[:, ~mask].double()
        new = torch.zeros_like(weight)
        new[:, mask] = (weight[:, mask].double() + pruned @ prediction.coefficients.T).to(weight.dtype)
        changed[layer.weight] = new
        for place in places:
            if place is not None:
                changed[place] = _added(changed.get(place), pruned @ prediction.intercept, like=weight)
    return changed


def _added(bias: Tensor | None, shift: Tensor, *, like: Tensor) -> Tensor:
    return shift.to(like.dtype) if bias is None else (bias.double() + shift).to(like.dtype)
