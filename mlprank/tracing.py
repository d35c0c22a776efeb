"""From a network and an example input to its graph of neurons, by `torch.export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.parameter import is_lazy

from mlprank.evaluating import evaluating
from mlprank.graph import Graph
from mlprank.reading import read_graph


def trace(model: nn.Module, example: Tensor) -> Graph:
    """Read a network into its graph of neurons.

    The network is run once and traced once, in evaluation mode, and left as it was.

    Args:
        model: Any network that takes one tensor.
        example: A batch of its inputs, shape (N, ...) with N at least 1, on the network's device.

    Returns:
        The graph of its linear layers.

    Raises:
        TypeError: If the network cannot take the example, or holds parameters that are not initialised or not floating point.
        ValueError: If the network cannot be traced, or works for one batch size only.
    """
    check_parameters(model)
    example = example[:2] if len(example) > 1 else example.repeat(2, *[1] * (example.dim() - 1))
    with evaluating(model), _uncompiled(model), torch.no_grad():
        try:
            model(example.clone())
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise TypeError(
                f"calibration: {type(model).__name__} cannot take a batch of shape {tuple(example.shape)} and dtype {example.dtype}"
                f" ({_first_line(error)}); give inputs as the network is trained on, and as the only argument"
            ) from error
        try:
            exported = torch.export.export(model, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
        except (RuntimeError, TypeError, ValueError, AssertionError, torch._dynamo.exc.TorchDynamoException) as error:
            raise ValueError(
                f"model: {type(model).__name__} cannot be traced by torch.export: {_first_line(error)}; write its forward without"
                " control flow that depends on data, or prune the part of it that can be traced"
            ) from error
    batch = exported.graph_signature.user_inputs[0]
    node = next(node for node in exported.graph.nodes if node.name == batch)
    if isinstance(node.meta["val"].shape[0], int):
        raise ValueError(
            f"model: the forward of {type(model).__name__} works for batches of {node.meta['val'].shape[0]} only; write it for any batch size"
        )
    return read_graph(model, exported)


def check_parameters(model: nn.Module) -> None:
    """Raise a TypeError or ValueError that names the first parameter that cannot be pruned by."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise TypeError(f'parameter "{name}" is not initialised yet; run the network on one batch first')
        if not parameter.is_floating_point():
            raise TypeError(f'parameter "{name}" has dtype {parameter.dtype}; prune the network before it is quantised')
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f'layer "{name.rpartition(".")[0] or name}": {name} holds values that are not finite; train it again or repair it'
            )


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Take back `module.compile()` for a while: the plain forward is what can be traced."""
    compiled = {
        module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl is not None
    }
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, implementation in compiled.items():
            module._compiled_call_impl = implementation


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
