"""What a pruned neuron leaves behind.

`constant` and `zero` leave the neuron's constant output to its readers, exactly. `mean` and `least_squares` change what
the readers do with the kept neurons instead, so that on the calibration data they miss the pruned ones least.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.calibration.data import Calibration
from mlprank.calibration.statistics import Moments, PooledMoments, views_of
from mlprank.graph.program import Fill, Run, shape_of
from mlprank.graph.records import Graph, Layer, Place, State
from mlprank.utils.registry import Registry

_ROWS_PER_ENTRY = 8
_MANY_ROWS = 1 << 16
_MULTIPLICATIONS = 25 * 10**9
"""Positions are sampled: at least 8 rows for every entry that is seen, and where that is cheap 65,536."""
_MAX_BYTES = 2 << 30
_BLOCK = 256


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
            raise ValueError("least_squares: moments of the kept neurons are not finite; check the calibration data")
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

# -- what it does to weights: rows of pruned neurons become zero, readers make up for what is gone -------------------


def zero_rows(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return the weights with zero rows where masks of layers, shape (n_out,), are not True, as for kept neurons."""
    rows = zeroed_parameters(graph, state, masks, keeps_bias=keeps_bias)
    return {**state, **{name: state[name] * _along_rows(kept, state[name]) for name, kept in rows.items()}}


def _along_rows(rows: Tensor, parameter: Tensor) -> Tensor:
    """A mask of rows, shape (n,), or of any dimensions, in a shape that multiplies with the parameter."""
    return rows.view(-1, *[1] * (parameter.dim() - 1)) if rows.dim() == 1 else rows


def zeroed_parameters(graph: Graph, state: State, masks: State, *, keeps_bias: bool) -> dict[str, Tensor]:
    """Return what stays of which weights and biases, by parameter name.

    Shape (n_out,), True for rows that stay, where outputs are a parameter's first dimension; otherwise of all its
    dimensions, of size 1 where it makes no difference.
    """
    found: dict[str, Tensor] = {}
    for name, mask in masks.items():
        layer = graph.by_name[name]
        for parameter in (layer.weight,) if keeps_bias else (layer.weight, *layer.biases):
            if parameter in state:
                tensor, dim = state[parameter], layer.kind.weight_out if parameter == layer.weight else 0
                # Of a grouped transposed convolution every group loses the same.
                rows = mask.to(tensor.device)[: tensor.shape[dim]]
                rows = rows.view(*[1] * dim, -1, *[1] * (tensor.dim() - dim - 1)) if dim else rows
                known = found.get(parameter, rows)
                if known.shape != rows.shape:
                    known, rows = _along_rows(known, tensor), _along_rows(rows, tensor)
                found[parameter] = known & rows
    return found


class SideBySide:
    """A network before and after pruning on the same calibration batches, layer by layer in forward order.

    Both runs of a batch are halted where a layer reads and go on from there, so that all layers together cost two
    passes. Batches whose values do not fit into memory take no part; there is always one that does.
    """

    def __init__(self, graph: Graph, dense: State, calibration: Calibration, *, num_samples: int) -> None:
        self.graph, self.dense, self.calibration, self.num_samples = graph, dense, calibration, num_samples
        self._runs: list[tuple[Run, Run]] | None = None

    def read(
        self, state: State, nodes: Mapping[str, Place], fills: Mapping[str, Fill]
    ) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Yield for every batch what operations read in the dense network and in the pruned one as it is now.

        `nodes` gives the value that each operation reads; none of them lies behind one that was asked for before.
        """
        program = self.graph.program
        ordered = sorted(nodes, key=program.order.__getitem__)
        for runs in self._started(state, ordered[0]):
            runs[1].state, runs[1].fills = state, fills
            for run in runs:
                run.until(ordered[0])
            found = {}
            ahead = [run.fork() for run in runs] if len(ordered) > 1 else runs
            for node in ordered:
                for run in ahead:
                    run.until(node)
                before, after = (run.value_of(nodes[node][0]) for run in ahead)
                found[node] = before, after
            yield found

    def _started(self, state: State, node: str) -> Iterator[tuple[Run, Run]]:
        """The runs of every batch; fresh ones where an operation is asked for that lies behind them."""
        program, known = self.graph.program, self._runs
        if known is not None and all(run.position <= program.order[node] for run, _ in known):
            yield from known
            return
        kept: list[tuple[Run, Run]] = []
        used = largest = 0
        for batch in self.calibration:
            if kept and used + largest > _MAX_BYTES:
                break
            runs = Run(program, self.dense, batch), Run(program, state, batch)
            yield runs
            held = [value for run in runs for value in run.values.values() if isinstance(value, Tensor)]
            size = sum(value.numel() * value.element_size() for value in held)
            used, largest = used + size, max(largest, size)
            kept.append(runs)
        if known is None:
            self._runs = kept

    def targets(self, state: State, readers: Sequence[Layer], kept: Tensor, fills: Mapping[str, Fill]) -> Targets:
        """Sum up what readers of one geometry see of kept inputs, shape (n_in,), and compute in the dense network."""
        first, program = readers[0], self.graph.program
        calls = {call.node: call for call in first.calls}
        weights = [self.dense[layer.weight] for layer in readers]
        groups, _, per_group, patch = first.kind.flat(weights[0]).shape
        outputs = sum(first.kind.flat(weight).shape[1] for weight in weights)
        inputs = kept[:per_group].nonzero().flatten()
        seen = len(inputs) * patch
        rows = max(_ROWS_PER_ENTRY * seen, min(_MANY_ROWS, _MULTIPLICATIONS // seen**2))
        positions = max(1, math.ceil(rows / max(1, self.num_samples)))
        total = torch.zeros(groups, seen + 1, seen + 1 + outputs, dtype=torch.float64, device=kept.device)
        for batch in self.read(state, {node: call.place for node, call in calls.items()}, fills):
            for node, (before, after) in batch.items():
                source, kind = program.nodes[program.order[calls[node].place[0]]], calls[node].kind
                if any(str(size).startswith("u") for size in shape_of(source)):
                    before = after  # which rows arrive depends on the data: those of the two networks are no pairs
                x = kind.patches(after, inputs, positions).flatten(2)
                z = [kind.outputs(before, weight, positions) for weight in weights]
                pairs = torch.cat([x, x.new_ones(groups, x.shape[1], 1), *z], dim=2).double()
                for start in range(0, seen + 1, _BLOCK):  # of a symmetric matrix half is enough
                    end = min(start + _BLOCK, seen + 1)
                    total[:, start:end, start:] += pairs[..., start:end].transpose(1, 2) @ pairs[..., start:]
        total = self.calibration.reduce(total)
        count = float(total[0, seen, seen])
        mean, target_mean = total[:, :seen, seen] / max(count, 1), total[:, seen, seen + 1 :] / max(count, 1)
        products, means = total[:, :seen, :seen].triu(), count * mean[:, :, None]
        gram = products + products.triu(1).transpose(1, 2) - means * mean[:, None, :]
        cross = total[:, :seen, seen + 1 :] - means * target_mean[:, None, :]
        return Targets(count, mean, gram, target_mean, cross)


def refit(state: State, readers: Sequence[Layer], kept: Tensor, targets: Targets, *, by: Refit) -> dict[str, Tensor]:
    """Return the weights with readers fitted to what they computed in the dense network.

    For what a reader sees of its kept inputs, c, and what it computed, z (without its bias), its weights there become
    W' and its bias moves by `mean(z) - W' mean(c)`; its weights on pruned inputs become zero. A reader that has no
    place for a bias is fitted without an intercept. Biases that did not exist are in the new state under the name that
    they will have.
    """
    changed, end = dict(state), 0
    for layer in readers:
        weight = state[layer.weight]
        flat = layer.kind.flat(weight)
        mask = kept[: flat.shape[2]].to(weight.device)
        start, end = end, end + flat.shape[1]
        own = replace(targets, target_mean=targets.target_mean[:, start:end], cross=targets.cross[:, :, start:end])
        places = dict.fromkeys(call.bias for call in layer.calls)
        own = own.uncentred() if None in places else own
        fitted = by.refit(own, flat[:, :, mask].flatten(2))
        new = torch.zeros_like(flat)
        new[:, :, mask] = fitted.unflatten(2, (-1, flat.shape[3])).to(weight.dtype)
        changed[layer.weight] = layer.kind.unflat(new, weight).contiguous()
        shift = (own.target_mean - (fitted @ own.mean[:, :, None])[:, :, 0]).flatten()
        _move_biases(changed, places, shift, like=weight)
    return changed


def predict(
    graph: Graph, state: State, layer: Layer, masks: Mapping[str, Tensor], moments: PooledMoments, *, by: Regression
) -> dict[str, Tensor]:
    """Return the weights with a reader making up for pruned neurons by kept ones of their group, a coefficient each.

    For the weights W of a reader, `W_K += W_P B^T` at every position of the kernel and `b += W_P (mean_P - B^T
    mean_K)`; for the rest see `refit`. Masks of groups are by name, shape (width,), True for kept neurons.
    """
    changed, weight = dict(state), state[layer.weight]
    places = dict.fromkeys(call.bias for call in layer.calls)
    flat = layer.kind.flat(weight).double().clone()  # (groups, outputs, inputs, patch)
    shift = flat.new_zeros(flat.shape[:2])
    for index in layer.read_groups:
        mask = masks.get(graph.groups[index].name)
        if mask is None or bool(mask.all()):
            continue
        mask = mask.to(weight.device)
        for view in views_of(layer, index):
            part, inside = divmod(view.start, flat.shape[2])
            own = flat[part, :, inside : inside + view.width * view.block]
            own = own.view(len(own), view.width, view.block, -1)  # changes of it are changes of `flat`
            pruned = own[:, ~mask].clone()
            if view in moments and not layer.tied:
                seen = moments[view]
                prediction = by.predict(seen.uncentred() if None in places else seen, mask)
                own[:, mask] += torch.einsum("opbk,qp->oqbk", pruned, prediction.coefficients)
                shift[part] += pruned.sum((2, 3)) @ prediction.intercept
            own[:, ~mask] = 0
    if not layer.tied:
        changed[layer.weight] = layer.kind.unflat(flat.to(weight.dtype), weight).contiguous()
        _move_biases(changed, places, shift.flatten(), like=weight)
    return changed


def _move_biases(state: dict[str, Tensor], places: Iterable[str | None], shift: Tensor, *, like: Tensor) -> None:
    """Add to biases, new ones where there are none."""
    for place in places:
        if place is not None:
            state[place] = (state[place].double() + shift if place in state else shift).to(like.dtype)
