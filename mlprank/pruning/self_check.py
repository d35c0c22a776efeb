"""The self-check: the removed network must give what the masked one gives."""

import math
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mlprank.graph.program import Inputs, as_inputs
from mlprank.graph.records import Graph
from mlprank.surgery.narrow import with_state
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_SAMPLES = 256


def check_agreement(masked: nn.Module, narrow: nn.Module, example: Tensor | Inputs, graph: Graph) -> float:
    """Run both networks on a calibration batch and compare their outputs.

    Where they differ by more than the tolerance, the comparison in float64 says whether that is more than rounding on
    the way. Returned is the largest absolute difference of two outputs.
    """
    inputs = as_inputs(example).first(_NUM_SAMPLES)
    suspects = "its forward depends on a width in a way that tracing does not see; protect the layers concerned"
    if graph.reshapes:
        suspects = (
            f"a width is written into the forward pass: {'; '.join(graph.reshapes)}; take sizes from the tensor "
            "(x.flatten(1), x.shape[-1]) or protect the layer"
        )
    expected = _outputs(masked, inputs)
    try:
        got = _outputs(narrow, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"the narrow network cannot run ({first_line(error)}); {suspects}") from error
    fault, difference = _compared(expected, got)
    dtypes = [tensor.dtype for tensor in (*masked.parameters(), *inputs.tensors) if tensor.is_floating_point()]
    if fault and dtypes and dtypes[0] != torch.float64:
        wide = inputs.mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        with suppress(RuntimeError):  # of a network that casts to float32 on its own
            one, other = (_outputs(with_state(model, {}).double(), wide) for model in (masked, narrow))
            fault = fault if _compared(one, other, tolerance=_TOLERANCES.get(dtypes[0], 0.0))[0] else ""
    if fault:
        raise ValueError(f"the narrow network {fault}; {suspects}")
    return difference


def _compared(expected: list[Tensor], got: list[Tensor], *, tolerance: float | None = None) -> tuple[str, float]:
    """Say how outputs differ by more than rounding, if they do, and the largest difference."""
    fault, largest = "", 0.0
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            return f"gives shape {tuple(other.shape)} instead of {tuple(one.shape)}", math.inf
        if one.numel():
            scale = max(1.0, float(one.double().abs().max()))
            difference = float((one.double() - other.double()).abs().max())
            largest = max(largest, difference)
            if not difference <= (_TOLERANCES.get(one.dtype, 0.0) if tolerance is None else tolerance) * scale:
                fault = fault or f"differs from the masked one by {difference:.2g} on outputs up to {scale:.3g}"
    return fault, largest


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network in evaluation mode; draws that it makes there, too, are the same for every network."""
    # torch.manual_seed notes the whole stack for a CUDA that may come later, which takes longer than a small network.
    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs.tensors)
    seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
    inputs = inputs.cloned()
    with evaluating(model), torch.no_grad():
        seed(0)
        return [leaf for leaf in pytree.tree_leaves(inputs.feed(model)) if isinstance(leaf, Tensor)]
