"""Scores along a graph, regressions and removal, slow and obvious, on explicit activations, without the package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.reference import normalise, weighted_pagerank

Array = NDArray[np.float64]


def double(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy().copy()


def hooked(network: nn.Module, x: Tensor) -> list[tuple[str, Array, Array]]:
    """Inputs and outputs of every linear layer in the order of the calls, seen by plain forward hooks in eval mode."""
    calls: list[tuple[str, Array, Array]] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):

            def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                calls.append((name, double(inputs[0]), double(output)))

            handles.append(module.register_forward_hook(note))
    network.eval()
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return calls


def l2(values: Array) -> Array:
    return np.sqrt((values**2).sum(0))


def bn_factor(norm: nn.BatchNorm1d) -> Array:
    assert norm.running_var is not None
    return np.abs(double(norm.weight)) / np.sqrt(double(norm.running_var) + norm.eps)


def pagerank(linear: nn.Linear, previous: Array, emitted: Array, *, factor: Array | None = None) -> Array:
    """Weighted PageRank of a layer whose rows a normalisation scales, by what it emits."""
    weight = double(linear.weight)
    if factor is not None:
        weight = weight * factor[:, None]
    return weighted_pagerank(weight, previous, l2(emitted), gamma=0.9, theta=0.5)


def six_layer_scores(network: nn.Module, x: Tensor) -> dict[str, Array]:
    """Scores of `SixLayerMLP` on its true graph by hand: norms follow the ReLUs, the skips are edges of weight 1."""
    layer: Callable[[str], nn.Linear] = network.get_submodule  # type: ignore[assignment]
    norm: Callable[[str], nn.BatchNorm1d] = network.get_submodule  # type: ignore[assignment]
    emitted = {name: np.maximum(output, 0) for name, _, output in hooked(network, x)}
    (_, flat, _), *_ = hooked(network, x)
    wide, middle, narrow = (bn_factor(norm(name)) for name in ("batchnorm", "batchnorm2", "batchnorm3"))
    own = {"fc1": pagerank(layer("fc1"), normalise(l2(flat)), emitted["fc1"])}
    first = normalise(wide * own["fc1"])
    own["fc2"] = pagerank(layer("fc2"), first, emitted["fc2"])
    second = normalise(normalise(wide * own["fc2"]) + first)
    own["fc3"] = pagerank(layer("fc3"), second, emitted["fc3"])
    third = normalise(middle * own["fc3"])
    own["fc4"] = pagerank(layer("fc4"), third, emitted["fc4"])
    fourth = normalise(normalise(middle * own["fc4"]) + third)
    own["fc5"] = pagerank(layer("fc5"), fourth, emitted["fc5"])
    logits = {name: output for name, _, output in hooked(network, x)}["fc_last"]
    own["fc_last"] = pagerank(layer("fc_last"), normalise(narrow * own["fc5"]), logits)
    for tied in (("fc1", "fc2"), ("fc3", "fc4")):
        shared = normalise(own[tied[0]] + own[tied[1]])
        own.update(dict.fromkeys(tied, shared))
    return own


def ridge_prediction(seen: Array, mask: Array, *, ridge: float) -> tuple[Array, Array]:
    """Predict pruned columns from kept ones: coefficients (kept, pruned) and intercept, by lstsq on stacked rows."""
    mean = seen.mean(0)
    centred = seen - mean
    kept, pruned = centred[:, mask], centred[:, ~mask]
    penalty = ridge * (kept**2).sum(0).mean()
    rows = np.concatenate([kept, np.sqrt(penalty) * np.eye(kept.shape[1])])
    targets = np.concatenate([pruned, np.zeros((kept.shape[1], pruned.shape[1]))])
    coefficients = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return coefficients, mean[~mask] - coefficients.T @ mean[mask]


def refit(seen: Array, targets: Array, weight: Array, mask: Array, *, ridge: float) -> tuple[Array, Array]:
    """Fit weights on kept columns to targets (no bias), drawn to the old ones: weights (m, kept) and shift (m,)."""
    kept = seen[:, mask]
    centred, wanted = kept - kept.mean(0), targets - targets.mean(0)
    penalty = ridge * (centred**2).sum(0).mean() + 1e-4 * len(kept) * (kept.mean(0) ** 2).mean()
    rows = np.concatenate([centred, np.sqrt(penalty) * np.eye(kept.shape[1])])
    left = np.concatenate([wanted - centred @ weight[:, mask].T, np.zeros((kept.shape[1], len(weight)))])
    new = weight[:, mask] + np.linalg.lstsq(rows, left, rcond=None)[0].T
    return new, targets.mean(0) - new @ kept.mean(0)


def compensate_by_hand(
    network: nn.Module, x: Tensor, masks: dict[str, Tensor], reads: Sequence[tuple[str, str]], *, ridge: float | None
) -> nn.Module:
    """Compensate in place, reader by reader in forward order, each on what arrives in the network as it then is.

    `reads` are (reader, layer whose neurons it reads); `ridge` None predicts every pruned neuron by its mean, otherwise
    a reader is fitted to what it computed in the dense network.
    """
    dense = copy.deepcopy(network)
    for reader, made in reads:
        mask = masks[made].numpy()
        seen, before = (
            next(inputs for name, inputs, _ in hooked(each, x) if name == reader) for each in (network, dense)
        )
        linear = network.get_submodule(reader)
        assert isinstance(linear, nn.Linear)
        weight = double(linear.weight)
        new = np.zeros_like(weight)
        if ridge is None:
            new[:, mask], shift = weight[:, mask], weight[:, ~mask] @ seen.mean(0)[~mask]
        else:
            new[:, mask], shift = refit(seen, before @ weight.T, weight, mask, ridge=ridge)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(new))
            linear.bias.add_(torch.from_numpy(shift))
    return network
