"""What calibration data shows of the neurons: norms, second moments, constants. Streaming: memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mlprank.calibration.data import Calibration
from mlprank.graph.records import Graph, State

# A neuron whose variance is below this share of its mean square does not vary.
CONSTANT = 1e-12


@dataclass(frozen=True)
class Norms:
    """L2 norms over all calibration samples (and positions), by the name of the value.

    Attributes:
        read: Norm of every input of what a linear layer reads, shape (n_in,).
        made: Norm of every neuron's output, shape (n_out,), by the name of the linear operation: of `relu(z)` in chain mode, of what
            the neuron emits in dag mode.
    """

    read: Mapping[str, Tensor]
    made: Mapping[str, Tensor]


def measure_norms(graph: Graph, state: State, calibration: Calibration, *, chain: bool) -> Norms:
    """Run the calibration data through the network once.

    Args:
        graph: The network's graph.
        state: The weights to run with.
        calibration: The data.
        chain: Take `relu(z)` of the linear operation, whatever follows it, instead of what the neuron emits.

    Returns:
        The norms, summed in float64 over batches and processes.

    Raises:
        ValueError: If a value is not finite; the layer is named.
    """
    emits = {call.node if chain else call.emitted: call.node for layer in graph.layers for call in layer.calls}
    sources = {call.source for layer in graph.layers for call in layer.calls}
    read: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def on_read(name: str, value: Tensor) -> None:
        _accumulate(read, name, _rows(value))

    def on_made(name: str, value: Tensor) -> None:
        _accumulate(made, emits[name], _rows(value).clamp(min=0) if chain else _rows(value))

    for batch in calibration:
        graph.program.observe(state, batch, sources=sources, on_read=on_read, made=emits, on_made=on_made)
    norms = [
        {name: calibration.reduce(total).sqrt() for name, total in sorted(totals.items())} for totals in (read, made)
    ]
    for layer in graph.layers:
        for call in layer.calls:
            if not (torch.isfinite(norms[0][call.source]).all() and torch.isfinite(norms[1][call.node]).all()):
                raise ValueError(
                    f'layer "{layer.name}": calibration gives activations that are not finite; check the data and the weights'
                )
    return Norms(*norms)


@dataclass(frozen=True)
class Moments:
    """First and second moments of what a layer reads.

    Attributes:
        count: Number of samples times positions.
        mean: Mean of every neuron, shape (n,), float64.
        gram: Centred Gram matrix, shape (n, n), float64: the sum over samples of the products of deviations from the mean.
    """

    count: float
    mean: Float[Tensor, " n"]
    gram: Float[Tensor, "n n"]

    def uncentred(self) -> Moments:
        """Return the same with deviations from zero, for a regression without an intercept."""
        return Moments(
            self.count, torch.zeros_like(self.mean), self.gram + self.count * torch.outer(self.mean, self.mean)
        )


PooledMoments = Mapping[tuple[str, ...], Moments]


def measure_moments(
    graph: Graph, state: State, calibration: Calibration, values: Collection[tuple[str, ...]]
) -> PooledMoments:
    """Measure moments of what layers read, in one pass that ends behind the last of them.

    Args:
        graph: The network's graph.
        state: The weights to run with.
        calibration: The data.
        values: Tuples of names of values; the values of one tuple are pooled, for a layer that is used in several places.

    Returns:
        The moments of every tuple, accumulated in float64.
    """
    sources = {source for pooled in values for source in pooled}
    sums: dict[str, Tensor] = {}

    def on_read(name: str, value: Tensor) -> None:
        rows = _rows(value).double()
        ones = rows.new_ones(len(rows), 1)
        rows = torch.cat([rows, ones], dim=1)
        if name in sums:
            sums[name].addmm_(rows.T, rows)
        else:
            sums[name] = rows.T @ rows

    for batch in calibration:
        graph.program.observe(state, batch, sources=sources, on_read=on_read)
    sums = {name: calibration.reduce(total) for name, total in sorted(sums.items())}
    return {pooled: _moments(torch.stack([sums[name] for name in pooled]).sum(0)) for pooled in values}


def measure_constants(graph: Graph, state: State, calibration: Calibration) -> dict[str, Tensor]:
    """Run one sample through a network whose rows are zero, to see what such neurons send to every layer that reads them.

    Args:
        graph: The network's graph.
        state: Weights in which every row that may be pruned is zero.
        calibration: The data.

    Returns:
        For every value that a linear layer reads, what arrives there, shape (n_in,).
    """
    constants: dict[str, Tensor] = {}

    def on_read(name: str, value: Tensor) -> None:
        constants[name] = _rows(value)[0].clone()

    sources = {call.source for layer in graph.layers for call in layer.calls if layer.source_group is not None}
    graph.program.observe(state, calibration.example[:1], sources=sources, on_read=on_read)
    return constants


def _rows(value: Tensor) -> Float[Tensor, "samples n"]:
    return value.reshape(-1, value.shape[-1])


def _accumulate(totals: dict[str, Tensor], name: str, rows: Tensor) -> None:
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    squares = torch.linalg.vector_norm(rows, dim=0).double().square()
    totals[name] = totals[name] + squares if name in totals else squares


def _moments(sums: Tensor) -> Moments:
    count = float(sums[-1, -1])
    mean, squares = sums[-1, :-1] / count, sums[:-1, :-1]
    gram = squares - count * torch.outer(mean, mean)
    # What is left of a constant neuron is rounding, of either sign.
    constant = gram.diagonal() <= CONSTANT * squares.diagonal()
    return Moments(count, mean, gram.masked_fill(constant[:, None] | constant[None, :], 0.0))
