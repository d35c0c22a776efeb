"""The self-check: the removed network must give what the masked one gives."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.graph.records import Graph
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_SAMPLES = 256


def check_agreement(masked: nn.Module, narrow: nn.Module, example: Tensor, graph: Graph) -> float:
    """Run both networks on a calibration batch and compare their outputs.

    Where they differ by more than the tolerance, the comparison in float64 says whether that is more than rounding on the way.

    Args:
        masked: The network with zeroed rows.
        narrow: The network without them.
        example: A batch of inputs, shape (N, ...).
        graph: The dense network's graph, for the names of suspects.

    Returns:
        The largest absolute difference of two outputs.

    Raises:
        ValueError: If the narrow network cannot run, or differs by more than 1e-5 in float32 or 1e-12 in float64 (times the largest
            output where that is above 1).
    """
    example = example[:_NUM_SAMPLES]
    expected = _outputs(masked, example)
    try:
        got = _outputs(narrow, example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"the narrow network cannot run ({first_line(error)}); " + _suspects(graph)) from error
    if (fault := _fault(expected, got)) and not _agree_in_float64(masked, narrow, example):
        raise ValueError(f"the narrow network {fault}; " + _suspects(graph))
    differences = [_difference(one, other) for one, other in zip(expected, got, strict=True) if one.numel()]
    return max(differences, default=0.0)


def _agree_in_float64(masked: nn.Module, narrow: nn.Module, example: Tensor) -> bool:
    if not example.is_floating_point() or example.dtype == torch.float64:
        return False
    try:
        one, other = (_outputs(copy.deepcopy(model).double(), example.double()) for model in (masked, narrow))
    except RuntimeError:  # it casts to float32 on its own
        return False
    return _fault(one, other, tolerance=TOLERANCES.get(example.dtype, 0.0)) is None


def _fault(expected: list[Tensor], got: list[Tensor], *, tolerance: float | None = None) -> str | None:
    """Say how outputs differ by more than rounding, or None."""
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            return f"gives shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        scale = max(1.0, float(one.double().abs().max())) if one.numel() else 1.0
        difference = _difference(one, other) if one.numel() else 0.0
        if not difference <= (TOLERANCES.get(one.dtype, 0.0) if tolerance is None else tolerance) * scale:
            return f"differs from the masked one by {difference:.2g} on outputs up to {scale:.3g}"
    return None


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Run a network in evaluation mode; draws that it makes there, too, are the same for every network."""
    # torch.manual_seed notes the whole stack for a CUDA that may come later, which takes longer than a small network.
    seed = torch.default_generator.manual_seed if example.device.type == "cpu" else torch.manual_seed
    with evaluating(model), torch.no_grad():
        seed(0)
        return [leaf for leaf in pytree.tree_leaves(model(example.clone())) if isinstance(leaf, Tensor)]


def _suspects(graph: Graph) -> str:
    if not graph.reshapes:
        return "its forward depends on a width in a way that tracing does not see; protect the layers concerned"
    lines = "; ".join(graph.reshapes)
    return f"a width is written into the forward pass: {lines}; take sizes from the tensor (x.flatten(1), x.shape[-1]) or protect the layer"
