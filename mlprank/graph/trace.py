"""From a network and an example input to its graph of neurons, by `torch.export`."""

from __future__ import annotations

import inspect
import io
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.parameter import is_lazy

from mlprank.graph.records import Graph
from mlprank.graph.rules import read_graph
from mlprank.pruning.selection import describe_whole
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating

_CANNOT_RUN = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)


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
        ValueError: If the network cannot be traced, works for one batch size only, or has no linear layer.
    """
    check_parameters(model)
    example = example[:2] if len(example) > 1 else example.repeat(2, *[1] * (example.dim() - 1))
    with evaluating(model), _untouched(model), _uncompiled(model), torch.no_grad():
        try:
            model(example.clone())
        except _CANNOT_RUN as error:
            raise TypeError(
                f"calibration: {type(model).__name__} cannot take a batch of shape {tuple(example.shape)} and dtype {example.dtype}"
                f" ({first_line(error)}); give inputs as the network is trained on, and as the only argument"
            ) from error
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                exported = torch.export.export(model, (example,), dynamic_shapes=_any_batch_size(model), strict=False)
        except (*_CANNOT_RUN, torch._dynamo.exc.TorchDynamoException) as error:
            raise ValueError(
                f"model: {type(model).__name__} cannot be traced by torch.export{_place(error)}: {first_line(error)}; write its"
                " forward without control flow that depends on data, or prune the part of it that can be traced"
            ) from error
    batch = exported.graph_signature.user_inputs[0]
    node = next(node for node in exported.graph.nodes if node.name == batch)
    if isinstance(node.meta["val"].shape[0], int):
        raise ValueError(
            f"model: the forward of {type(model).__name__} works for batches of {node.meta['val'].shape[0]} only; write it for any batch size"
        )
    graph = read_graph(model, exported)
    if not graph.layers:
        raise ValueError(f"model: {type(model).__name__} has nothing to prune: {describe_whole(graph.whole())}")
    return graph


def check_parameters(model: nn.Module) -> None:
    """Raise a TypeError or ValueError that names the first parameter that cannot be pruned by."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
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


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Take back what a forward pass leaves on its modules: attributes, and buffers that count or average."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    values = {
        buffer: buffer.detach().clone() for own in buffers.values() for buffer in own.values() if buffer is not None
    }
    try:
        yield
    finally:
        for module, before in attributes.items():
            vars(module).clear()
            vars(module).update(before)
            module._buffers.clear()
            module._buffers.update(buffers[module])
        with torch.no_grad():
            for buffer, value in values.items():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _any_batch_size(model: nn.Module) -> tuple[Any, ...]:
    """What `torch.export` wants to hear of the first argument's first dimension."""
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    batch: tuple[Any, ...] = ({0: Dim.AUTO},)
    return (batch,) if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL else batch


def _place(error: BaseException) -> str:
    """The line of the network's own code at which tracing failed."""
    foreign = {Path(torch.__file__).parent, Path(inspect.__file__).parent}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if frame.line]
    own = [frame for frame in frames if not _code_root(frame.filename) & foreign]
    return f" at `{own[-1].line}` ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _code_root(filename: str) -> set[Path]:
    """The directories above a source file, up to and without the packages that are installed beside each other."""
    parents = list(Path(filename).parents)
    packages = next((index for index, parent in enumerate(parents) if parent.name == "site-packages"), len(parents))
    return set(parents[:packages])
