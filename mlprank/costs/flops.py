"""Floating-point operations of one sample, all of them and those that are left when zero weights are skipped.

FLOPs are twice the multiply-accumulates (FLOPs = 2 MACs) of the matrix products, convolutions and attention;
element-wise operations and normalisations count as nothing, as in torch's own counter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mlprank.graph.program import Inputs, as_inputs
from mlprank.utils.modules import device_of, evaluating


def count_flops(model: nn.Module, example: Tensor | Inputs) -> int:
    """Count the FLOPs of one sample with torch's own counter.

    Args:
        model: The model; run once in evaluation mode, left as it was.
        example: One input batch, shape (N, ...), N at least 1; the count is divided by N.

    Returns:
        FLOPs of one sample, 2 for each multiply-accumulate.

    Raises:
        ValueError: If `example` has no sample.
    """
    return flops_of(model, example)[0]


def count_flops_nonzero(model: nn.Module, example: Tensor) -> int:
    """Count the FLOPs of one sample that are left when products with zero weights are skipped.

    A linear layer counts 2 FLOPs for each non-zero weight and each position (row of its input). Whatever multiplies no
    two-dimensional weight of the model (convolutions, attention scores) counts in full. This is the thesis's
    theoretical cost `flops_nz`: what a masked network would need on a machine that skips zeros.

    Args:
        model: The model; run once in evaluation mode, left as it was.
        example: One input batch, shape (N, ...), N at least 1; the count is divided by N.

    Returns:
        FLOPs of one sample, at most `count_flops`.

    Raises:
        ValueError: If `example` has no sample.
    """
    return flops_of(model, example)[1]


def flops_of(model: nn.Module, example: Tensor | Inputs) -> tuple[int, int]:
    """Return `count_flops` and `count_flops_nonzero` from one run of the model; arguments and errors are theirs."""
    inputs = as_inputs(example)
    if len(inputs) == 0:
        raise ValueError(
            f"example of shape {tuple(inputs.tensors[0].shape)}: counting FLOPs needs a batch of at least one sample, shape (N, ...)"
        )
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # Fused attention kernels hide their products from the counter: take the plain path while counting.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            _uncompiled(),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            _ZeroProducts(model) as zeros,
            FlopCounterMode(display=False) as counter,
        ):
            inputs.to(device_of(model)).feed(getattr(model, "_orig_mod", model))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    total = counter.get_total_flops()
    return total // len(inputs), (total - 2 * zeros.num_macs) // len(inputs)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules as written, since the counter cannot look into compiled code."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; importing the compiler takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _ZeroProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates with weights that are exactly zero.

    A weight is an operand of a matrix product that lives in a parameter, or in the plain tensor that a mask of
    `torch.nn.utils.prune` leaves on its module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_macs = 0
        self._model = model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = _PRODUCTS.get(func)
        if operands is not None:
            left, right = args[operands], args[operands + 1]
            if self._is_weight(right):
                self.num_macs += left.shape[-2] * _count_zeros(right)
            elif self._is_weight(left):
                self.num_macs += right.shape[-1] * _count_zeros(left)
        return func(*args, **(kwargs or {}))

    def _is_weight(self, operand: Tensor) -> bool:
        storage = operand.untyped_storage()._cdata
        return any(storage == tensor.untyped_storage()._cdata for tensor in self._weights())

    def _weights(self) -> Iterator[Tensor]:
        yield from self._model.parameters()
        for module in self._model.modules():
            yield from (value for value in vars(module).values() if isinstance(value, Tensor))


# Operation -> position of its left operand; the right one follows.
_PRODUCTS: Mapping[Callable[..., Any], int] = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}


def _count_zeros(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.count_nonzero(tensor))
