"""The self-check: the removed network must give what the masked one gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.evaluating import evaluating
from mlprank.graph import Graph

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_SAMPLES = 256


def check_agreement(masked: nn.Module, narrow: nn.Module, example: Tensor, graph: Graph) -> float:
    """Run both networks on a calibration batch and compare their outputs.

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
    with evaluating(masked, narrow), torch.no_grad():
        expected = _outputs(masked, example)
        try:
            got = _outputs(narrow, example)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the narrow network cannot run ({str(error).splitlines()[0]}); " + _suspects(graph)
            ) from error
    largest = 0.0
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"the narrow network gives shape {tuple(other.shape)} instead of {tuple(one.shape)}; "
                + _suspects(graph)
            )
        if one.numel() == 0:
            continue
        difference = float((one.double() - other.double()).abs().max())
        scale = max(1.0, float(one.double().abs().max()))
        if not difference <= TOLERANCES.get(one.dtype, 0.0) * scale:
            raise ValueError(
                f"the narrow network differs from the masked one by {difference:.2g} on outputs up to {scale:.3g}; "
                + _suspects(graph)
            )
        largest = max(largest, difference)
    return largest


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(model(example.clone())) if isinstance(leaf, Tensor)]


def _suspects(graph: Graph) -> str:
    if not graph.reshapes:
        return "its forward depends on a width in a way that tracing does not see; protect the layers concerned"
    lines = "; ".join(graph.reshapes)
    return f"a width is written into the forward pass: {lines}; take sizes from the tensor (x.flatten(1), x.shape[-1]) or protect the layer"
