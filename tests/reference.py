"""Every measure and method once more, as slow and obvious loops in float64; nothing of the package is used."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def normalise(values: Array) -> Array:
    total = float(values.sum())
    return values / total if total > 0 else np.full(len(values), 1.0 / len(values))


def weighted_pagerank(weight: Array, previous: Array, activation: Array, *, gamma: float, theta: float) -> Array:
    num_out, num_in = weight.shape
    by_weight, by_degree = np.zeros(num_out), np.zeros(num_out)
    for j in range(num_in):
        column = np.abs(weight[:, j])
        edges = (weight[:, j] != 0).astype(np.float64)
        if column.sum() > 0:
            by_weight += column / column.sum() * previous[j]
            by_degree += edges / edges.sum() * previous[j]
    own = normalise(activation)
    return normalise(gamma * (theta * by_weight + (1 - theta) * by_degree) + (1 - gamma) * own)


def modified_pagerank(
    weight: Array, previous: Array, activation: Array, *, z_importance: bool = False, amount: float = 0.0
) -> Array:
    received = previous.copy()
    if z_importance:
        for j in sorted(range(len(received)), key=lambda j: (previous[j], j))[: int(amount * len(received))]:
            received[j] = 0.0
    linked = np.array([sum(abs(w) * p for w, p in zip(row, received, strict=True)) for row in weight])
    own = normalise(activation)
    return normalise(own * normalise(linked))


def norm(weight: Array, *, p: float = 1) -> Array:
    if math.isinf(p):
        return normalise(np.array([np.abs(row).max() for row in weight]))
    return normalise(np.array([(np.abs(row) ** p).sum() ** (1 / p) for row in weight]))


def wanda(weight: Array, input_norms: Array) -> Array:
    return normalise(np.array([(np.abs(row) * input_norms).sum() for row in weight]))


def reconstruction(readers: Sequence[tuple[Array, Array]]) -> Array:
    """Greedy selection on the data itself: `readers` are (what is read (N, n), weights (m, n))."""
    size = readers[0][0].shape[1]
    centred = [data - data.mean(0) for data, _ in readers]
    targets = [c @ weight.T for c, (_, weight) in zip(centred, readers, strict=True)]
    floors = [1e-4 * (c**2).sum(0).mean() for c in centred]
    gains, left = np.zeros(size), list(range(size))
    while left:
        gain = dict.fromkeys(left, 0.0)
        for c, target, floor in zip(centred, targets, floors, strict=True):
            for j in left:
                if c[:, j] @ c[:, j] > floor:
                    gain[j] += float(((c[:, j] @ target) ** 2).sum() / (c[:, j] @ c[:, j]))
        chosen = max(left, key=lambda j: gain[j])
        if gain[chosen] == 0:
            break
        gains[chosen] = gain[chosen]
        left.remove(chosen)
        for index, (c, floor) in enumerate(zip(centred, floors, strict=True)):
            taken = c[:, chosen].copy()
            if taken @ taken > floor:
                centred[index] = c - np.outer(taken, taken @ c) / (taken @ taken)
    return normalise(gains)


def chain(
    measure: str, layers: Sequence[tuple[Array, Array, Array]], *, amount: float = 0.0, **parameters: float
) -> list[Array]:
    """Published scores of a chain of linear layers, each given as (weight, inputs (N, n_in), outputs (N, n_out)).

    `measure` is a short name; outputs are those before the activation.
    """
    found: list[Array] = []
    for weight, inputs, outputs in layers:
        a_in = np.sqrt((inputs**2).sum(0))
        a_out = np.sqrt((np.maximum(outputs, 0) ** 2).sum(0))
        previous = found[-1] if found else normalise(a_in)
        if measure == "weighted_pagerank":
            gamma, theta = parameters.get("gamma", 0.9), parameters.get("theta", 0.5)
            found.append(weighted_pagerank(weight, previous, a_out, gamma=gamma, theta=theta))
        elif measure == "modified_pagerank":
            ignore = bool(parameters.get("z_importance", False))
            found.append(modified_pagerank(weight, previous, a_out, z_importance=ignore, amount=amount))
        elif measure == "norm":
            found.append(norm(weight, p=parameters.get("p", 1)))
        elif measure == "activation":
            found.append(normalise(a_out))
        elif measure == "wanda":
            found.append(wanda(weight, a_in))
        else:
            raise ValueError(f"no slow loop for the measure {measure}")
    return found


def _guarded(kept: int, size: int, min_neurons: int, round_to: int) -> int:
    kept = max(kept, min_neurons)
    while kept % round_to:
        kept += 1
    return min(kept, size)


def local(
    scores: Mapping[str, Sequence[float]], amounts: Mapping[str, float], *, min_neurons: int = 1, round_to: int = 1
) -> dict[str, list[bool]]:
    masks = {}
    for name, values in scores.items():
        size = len(values)
        kept = _guarded(size - round(amounts[name] * size), size, min_neurons, round_to)
        order = sorted(range(size), key=lambda i: (values[i], i))
        masks[name] = [i in set(order[size - kept :]) for i in range(size)]
    return masks


def global_(
    scores: Mapping[str, Sequence[float]],
    amount: float,
    *,
    normalise: str,
    min_neurons: int = 1,
    round_to: int = 1,
) -> dict[str, list[bool]]:
    """Walk through all neurons from the least central one and take each that its layer can spare."""
    ranked = []
    for position, (name, values) in enumerate(scores.items()):
        for i, value in enumerate(values):
            ranked.append((value * (len(values) if normalise == "width" else 1), position, i, name))
    kept = {name: len(values) for name, values in scores.items()}
    masks = {name: [True] * len(values) for name, values in scores.items()}
    to_remove = math.ceil(amount * len(ranked))
    for _, _, i, name in sorted(ranked):
        if to_remove and kept[name] > min_neurons:
            masks[name][i] = False
            kept[name] -= 1
            to_remove -= 1
    for name, values in scores.items():
        wanted = _guarded(kept[name], len(values), min_neurons, round_to)
        for i in sorted(range(len(values)), key=lambda i: (values[i], i), reverse=True):
            if kept[name] < wanted and not masks[name][i]:
                masks[name][i] = True
                kept[name] += 1
    return masks
