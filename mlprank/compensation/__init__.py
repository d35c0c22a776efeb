"""What a pruned neuron leaves behind.

`constant` and `zero` leave the neuron's constant output to its readers, exactly. `mean` and `least_squares` change what
the readers do with the kept neurons instead, so that on the calibration data they miss the pruned ones least.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.calibration.statistics import Moments
from mlprank.utils.registry import Registry


@dataclass(frozen=True)
class Prediction:
    """Pruned neurons from kept ones: `pruned = coefficients.T @ kept + intercept`, all float64."""

    coefficients: Float[Tensor, "kept pruned"]
    intercept: Float[Tensor, " pruned"]


@runtime_checkable
class Compensation(Protocol):
    """What a pruned neuron leaves behind.

    Examples:
        >>> isinstance(Mean(), Compensation)
        True
    """

    @property
    def keeps_bias(self) -> bool:
        """Whether the pruned neuron's bias stays, so that it sends `act(bias)`; otherwise it sends `act(0)`."""


@dataclass(frozen=True)
class Targets:
    """What a reader sees of its kept inputs, and what it computed of all in the dense network: sums over rows, float64.

    `gram` and `cross` are the centred products of what it sees with itself and with the targets.
    """

    count: float
    mean: Float[Tensor, "groups seen"]
    gram: Float[Tensor, "groups seen seen"]
    target_mean: Float[Tensor, "groups outputs"]
    cross: Float[Tensor, "groups seen outputs"]

    def uncentred(self) -> "Targets":
        """Return the same with deviations from zero, for a fit without an intercept."""
        mean, target_mean, means = self.mean, self.target_mean, self.count * self.mean[:, :, None]
        gram, cross = self.gram + means * mean[:, None, :], self.cross + means * target_mean[:, None, :]
        return Targets(self.count, torch.zeros_like(mean), gram, torch.zeros_like(target_mean), cross)


@runtime_checkable
class Refit(Compensation, Protocol):
    """A compensation that fits whole weights of readers anew."""

    def refit(self, targets: Targets, weight: Tensor) -> Tensor:
        """Return new weights on what is seen, (groups, outputs, seen), from the old ones; means are met by the bias."""


@runtime_checkable
class Regression(Compensation, Protocol):
    """A compensation that predicts pruned neurons from kept ones."""

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Return the prediction from calibration moments; `mask`, shape (n,), is True for kept neurons."""


@dataclass(frozen=True)
class Constant:
    """The weight row is zeroed, the bias stays: the neuron sends `act(bias)`. As published.

    Examples:
        >>> Constant().keeps_bias
        True
    """

    keeps_bias: ClassVar[bool] = True


@dataclass(frozen=True)
class Zero:
    """Weight row and bias are zeroed: the neuron sends `act(0)`.

    Examples:
        >>> Zero().keeps_bias
        False
    """

    keeps_bias: ClassVar[bool] = False


@dataclass(frozen=True)
class Mean:
    """The neuron sends its mean over the calibration data.

    Examples:
        >>> get_compensation("mean")
        Mean()
    """

    keeps_bias: ClassVar[bool] = False

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Return the means as intercepts."""
        pruned = moments.mean[~mask]
        return Prediction(pruned.new_zeros(int(mask.sum()), len(pruned)), pruned)


_LEAST_VARIATION = 1e-2


@dataclass(frozen=True)
class LeastSquares:
    """The neuron sends its best linear prediction from the kept neurons, by ridge regression on the calibration data.

    Attributes:
        ridge: The penalty as a share of the mean variance of the kept neurons, positive.

    Examples:
        >>> get_compensation({"name": "least_squares", "ridge": 0.1})
        LeastSquares(ridge=0.1)
    """

    ridge: float = 1e-2
    keeps_bias: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (0 < self.ridge < math.inf):
            raise ValueError(f"least_squares: ridge={self.ridge} must be a positive number")

    def predict(self, moments: Moments, mask: Tensor) -> Prediction:
        """Solve `(G_KK + lambda I) B = G_KP` with `lambda = ridge * mean(diag(G_KK))`."""
        kept, pruned = moments.gram[mask][:, mask], moments.gram[mask][:, ~mask]
        if not float(kept.diagonal().sum()):
            return Mean().predict(moments, mask)
        coefficients = self._solve(kept, pruned)
        return Prediction(coefficients, moments.mean[~mask] - coefficients.T @ moments.mean[mask])

    def refit(self, targets: Targets, weight: Tensor) -> Tensor:
        """Solve `(C^T C + lambda I) D = C^T (z - W c)` for the change D of the weights: the penalty is on change.

        To `lambda = ridge * mean(diag(C^T C))` comes 1e-4 of the mean square of the inputs' means: inputs that hardly
        vary beside their size, such as two neurons behind a layer norm, would get weights so large that rounding
        decides what they give.
        """
        changed = weight.double().clone()
        for group, gram in enumerate(targets.gram):
            if float(gram.diagonal().sum()):
                left = targets.cross[group] - gram @ changed[group].T
                least = _LEAST_VARIATION**2 * targets.count * float(targets.mean[group].square().mean())
                changed[group] += self._solve(gram, left, least=least).T
        return changed

    def _solve(self, gram: Tensor, right: Tensor, *, least: float = 0.0) -> Tensor:
        """Solve with a ridge, larger where the matrix cannot be factorised, and at least so much of it."""
        ridge, scale = self.ridge, float(gram.diagonal().mean()) + least / self.ridge
        if not math.isfinite(scale):
            raise ValueError(
                "least_squares: the moments of the kept neurons are not finite; check the calibration data"
            )
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * eye)
        while int(failed):
            ridge *= 10
            factor, failed = torch.linalg.cholesky_ex(gram + ridge * scale * eye)
        return torch.cholesky_solve(right, factor)


COMPENSATIONS: Registry[Compensation] = Registry(
    "compensation", Compensation, {"constant": Constant, "zero": Zero, "mean": Mean, "least_squares": LeastSquares}
)

register_compensation = COMPENSATIONS.register
"""Make a compensation known by a name, for Python, YAML and the command line; see `Registry.register`."""

get_compensation = COMPENSATIONS.find
"""Return a compensation by name, dotted path, description, class or as it is; see `Registry.find`."""
