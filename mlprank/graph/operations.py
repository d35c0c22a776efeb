"""Operations of a traced program, as the rules of `mlprank.graph.rules` see them."""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
from torch import Tensor, fx

_TORCH = os.path.dirname(torch.__file__)
_ACTIVATIONS = {
    "leaky_relu",
    "hardswish",
    "hardsigmoid",
    "relu6",
    "log_sigmoid",
    "logsigmoid",
    "softsign",
    "tanhshrink",
    "silu",
    "mish",
    "rrelu",
}


def operation(node: fx.Node) -> str:
    """Name an operation as a person would: `aten.relu_.default` is `relu_`."""
    return _name_of(node.target)


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return str(getattr(target, "__name__", target))


def is_pointwise(target: object) -> bool:
    """Whether an operation of ATen works on every element for itself."""
    plain = _name_of(target).rstrip("_")
    overloads = [
        target,
        getattr(getattr(torch.ops.aten, plain, None), getattr(target, "_overloadname", "default"), None),
    ]
    return plain in _ACTIVATIONS or any(torch.Tag.pointwise in getattr(overload, "tags", ()) for overload in overloads)


def is_in_place(target: object) -> bool:
    """Whether an operation of ATen overwrites its first argument."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.arguments:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def owner_of(node: fx.Node) -> str:
    """The path of the module that an operation belongs to; empty for the network itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def source_line(node: fx.Node) -> str:
    """The line of the forward pass that an operation came from, with its place."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    return f"{lines[-1]} ({lines[-2]})" if len(lines) > 1 else operation(node)


def as_node(argument: Any) -> fx.Node:
    """Narrow an argument that can only be a value of the program."""
    assert isinstance(argument, fx.Node), argument
    return argument


def as_number(argument: Any) -> float:
    """Narrow an argument that can only be a number."""
    assert isinstance(argument, (int, float)), argument
    return argument


def shape_of(node: fx.Node) -> tuple[int | str, ...]:
    """The shape of a value; sizes that depend on the batch are given by name."""
    value = node.meta.get("val")
    return (
        tuple(size if isinstance(size, int) else str(size) for size in value.shape) if isinstance(value, Tensor) else ()
    )


def ndim_of(node: fx.Node) -> int:
    """Number of dimensions of a value; 0 for what is no tensor."""
    return len(shape_of(node))


def sizes_of(node: fx.Node) -> list[Any]:
    """The sizes of a value; those that depend on the batch as expressions, which can be multiplied and compared."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return []
    return [size if isinstance(size, int) else size.node.expr for size in value.shape]


def user_line(node: fx.Node) -> str:
    """The innermost line of somebody's own code (not torch's) that an operation came from, with its place; empty if there is none."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for place, line in reversed(list(itertools.pairwise(lines))):
        if place.startswith("File ") and _TORCH not in place and not line.startswith("File "):
            file, number = place.split(", line ")[:2]
            return f"`{line}` ({file.removeprefix('File ').strip(chr(34))}:{number.split(',')[0]})"
    return ""
