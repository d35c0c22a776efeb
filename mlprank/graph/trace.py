"""From a network and an example input to its graph of neurons, by `torch.export`."""

from __future__ import annotations

import contextlib
import inspect
import io
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from mlprank.graph.assembly import build_graph
from mlprank.graph.operations import ndim_of, source_line, user_line
from mlprank.graph.program import Inputs, Program, as_inputs
from mlprank.graph.records import Graph, describe_whole
from mlprank.graph.rules import Reading
from mlprank.utils.errors import first_line
from mlprank.utils.modules import evaluating

_CANNOT_RUN = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


LOCK = threading.RLock()
"""Held while somebody's network is traced, run or copied: tracing is not safe in threads, and modes and hooks are changed meanwhile."""


def trace(model: nn.Module, example: Tensor | Inputs, *, varying: Collection[tuple[int, int]] = ()) -> Graph:
    """Read a network into its graph of neurons.

    The network is run and traced in evaluation mode, and left as it was. Hooks that only observe are put aside.

    Args:
        model: Any network.
        example: A call of it with at least one sample, on the network's device; a tensor stands for a call with that tensor.
        varying: Dimensions besides the first whose size differs between batches: number of the tensor, and dimension.

    Returns:
        The graph of its layers.

    Raises:
        TypeError: If the network cannot take the example, or holds parameters that are not initialised or not floating point.
        ValueError: If the network cannot be traced, works for one batch size only, or has nothing to prune.
    """
    check_parameters(model)
    inputs = as_inputs(example)
    short = inputs.first(2) if len(inputs) > 1 else inputs.repeated(2)
    with LOCK, evaluating(model), _untouched(model), _uncompiled(model), torch.no_grad():
        hooked = _hooks_count(model, short)
        with contextlib.nullcontext() if hooked else without_hooks(model):
            exported = _exported(model, short, varying)
            reading = Reading(model, exported, _tensor_names(exported))
            reading.read_all()
            graph = build_graph(reading, hooked=hooked)
            for node in exported.graph.nodes:
                if node.name in exported.graph_signature.user_inputs and ndim_of(node):
                    size = node.meta["val"].shape[0]
                    if isinstance(size, int) and size == len(short) and len(inputs) != size:
                        raise ValueError(
                            f"model: the forward of {type(model).__name__} works for batches of {size} only; write it for any batch size"
                        )
            _compare(model, graph.program, inputs, lambda: _written_numbers(model, inputs, exported, varying))
    if not graph.layers:
        raise ValueError(f"model: {type(model).__name__} has nothing to prune: {describe_whole(graph.whole())}")
    return graph


def _exported(model: nn.Module, inputs: Inputs, varying: Collection[tuple[int, int]]) -> ExportedProgram:
    """Trace for any number of samples; an error says what stands in the way."""
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    size = len(inputs)
    for number, tensor in enumerate(inputs.tensors):
        dims = {dim: Dim.AUTO for index, dim in varying if index == number and dim < tensor.dim()}
        if tensor.dim() and len(tensor) == size:
            dims[0] = Dim.AUTO
        if dims:
            shapes[tensor] = dims
    try:
        return export_program(model, inputs, shapes)
    except (*_CANNOT_RUN, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced by torch.export{_place(error)}: {first_line(error)}; write its"
            f" forward without control flow that depends on data{_cache_hint(error)}, or prune the part of it that can be traced"
        ) from error


def export_program(model: nn.Module, inputs: Inputs, shapes: ShapesCollection) -> ExportedProgram:
    """Run `torch.export`, quietly and under the lock; what it raises passes as it is."""
    with LOCK, warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        kwargs = dict(inputs.kwargs)
        dynamic = shapes.dynamic_shapes(model, inputs.args, kwargs)  # type: ignore[no-untyped-call]
        return torch.export.export(model, inputs.args, kwargs, dynamic_shapes=dynamic, strict=False)


def _cache_hint(error: BaseException) -> str:
    return ", return no cache (use_cache=False)" if "Cache" in str(error) else ""


def _tensor_names(exported: ExportedProgram) -> dict[str, str]:
    signature = exported.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def _eager(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network with a fixed random state and return every tensor that it gives."""
    torch.manual_seed(0)
    inputs = inputs.cloned()
    return [leaf for leaf in pytree.tree_leaves(inputs.feed(model)) if isinstance(leaf, Tensor)]


def _hooks_count(model: nn.Module, inputs: Inputs) -> bool:
    """Whether somebody's forward hooks change what a network computes; it is run here for the first time."""
    try:
        expected = _eager(model, inputs)
    except _CANNOT_RUN as error:
        raise TypeError(
            f"calibration: {type(model).__name__} cannot take a batch: the call {type(model).__name__}{inputs} fails"
            f" ({first_line(error)}); give inputs as the network is trained on, or say by inputs= how a batch becomes a call, such as"
            " inputs=lambda batch: ((batch[0],), {})"
        ) from error
    if not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    try:
        with without_hooks(model):
            got = _eager(model, inputs)
    except _CANNOT_RUN:
        return True
    same = len(got) == len(expected) and all(map(torch.equal, expected, got))
    return not same


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def without_hooks(*models: nn.Module) -> Iterator[None]:
    """Put somebody's hooks aside for a while."""
    aside = []
    for module in {module for model in models for module in model.modules()}:
        for name in _HOOKS:
            hooks = module.__dict__.get(name)
            if hooks:
                aside.append((module, name, hooks))
                module.__dict__[name] = type(hooks)(
                    (key, hook) for key, hook in hooks.items() if getattr(hook, "belongs_to_network", False)
                )
    try:
        yield
    finally:
        for module, name, hooks in aside:
            module.__dict__[name] = hooks


def _compare(model: nn.Module, program: Program, inputs: Inputs, culprits: Callable[[], str]) -> None:
    """See that the program gives what the network does on a batch of real size.

    Raises:
        ValueError: If it does not; the line is named at which a number is taken from the batch.
    """
    try:
        expected = _eager(model, inputs)
    except _CANNOT_RUN as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"model: {type(model).__name__} takes two samples but cannot run a batch of shape {shapes} ({first_line(error)});"
            " write the forward for any batch size"
        ) from error
    torch.manual_seed(0)
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    got = program.outputs({name: tensor.detach() for name, tensor in state.items()}, inputs)
    for one, other in zip(expected, got, strict=True):
        if one.shape == other.shape and one.numel():
            scale = max(1.0, float(one.double().abs().nan_to_num().max()))
            gap = float((one.double() - other.double()).abs().nan_to_num().max()) / scale
        else:
            gap = 0.0 if one.shape == other.shape else float("inf")
        if gap > _TOLERANCES.get(one.dtype, 0.0) and all(map(torch.equal, expected, _eager(model, inputs))):
            raise ValueError(
                f"model: what torch.export traced of {type(model).__name__} differs from it by {gap:.2g} on a batch of {len(inputs)}"
                f" samples: {culprits()}; take sizes as tensors give them (x.flatten(1), x.mean(0)), not as Python numbers"
            )


def _written_numbers(
    model: nn.Module, inputs: Inputs, exported: ExportedProgram, varying: Collection[tuple[int, int]]
) -> str:
    """The lines at which a program of two samples and one of three hold different numbers."""
    more = inputs.first(3) if len(inputs) > 2 else inputs.first(1).repeated(3)
    nodes = exported.graph.nodes
    lines = [
        user_line(node) or source_line(node)
        for node, other in zip(nodes, _exported(model, more, varying).graph.nodes, strict=False)
        if node.op == "call_function" and str(node.args) != str(other.args)
    ]
    return (
        f"a number is taken from the batch at {lines[0]}"
        if lines
        else "its forward depends on the batch in a way that is lost"
    )


def check_parameters(model: nn.Module) -> None:
    """Raise a TypeError or ValueError that names the first module or parameter that cannot be pruned by."""
    for name, module in model.named_modules():
        place = f'layer "{name}"' if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{place} is a {type(module).__name__}, whose forward cannot be read; prune it before it is scripted"
            )
        if hasattr(module, "_packed_params"):
            raise TypeError(f"{place} is a quantised {type(module).__name__}; prune the network before it is quantised")
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
