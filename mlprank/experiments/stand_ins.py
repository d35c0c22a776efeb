"""Stand-ins for linear layers of pruned variants: they give the layer's outputs from what the dense network's run left behind.

Values are kept with neurons as rows, shape (n, images of a chunk), so that choosing neurons copies whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass
class Clock:
    """Which chunk of the test images is being run."""

    chunk: int = 0


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A linear layer of the dense network and its values on the test images.

    Attributes:
        module: The layer.
        outputs: For every chunk, shape (n_out, images).
        inputs: For every chunk, shape (n_in, images) with a last row of ones; empty for a layer that reads the network's input.
    """

    module: nn.Linear
    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    @cached_property
    def whole(self) -> Cut:
        """The layer as a cut of itself."""
        cut = cut_of(self.module, self.module, rows=None, columns=None)
        assert cut is not None
        return cut


@dataclass(frozen=True, eq=False)
class Cut:
    """What a variant's layer is of the dense one.

    Attributes:
        rows: Which neurons it has, indices, ascending.
        live: Of the dense neurons, True for those that it has with their weights.
        read: Of the dense inputs, True for those that it reads.
        zero: Of its own neurons, True for those without weights, which give their bias; None where there is none.
        bias: Its bias, shape (n,), zeros where there is none.
    """

    rows: Tensor
    live: Bool[Tensor, " n_out"]
    read: Bool[Tensor, " n_in"]
    zero: Bool[Tensor, " n"] | None
    bias: Float[Tensor, " n"]

    @cached_property
    def _bits(self) -> tuple[int, int]:
        """`live` and `read` as the bits of two numbers, which are compared faster than tensors."""
        return _bits(self.live), _bits(self.read)

    def steps_from(self, other: Cut) -> int | None:
        """How many inputs the other reads and this one does not; None where this one has or reads what the other has not."""
        (live, read), (other_live, other_read) = self._bits, other._bits
        return None if live & ~other_live or read & ~other_read else (other_read & ~read).bit_count()


def cut_of(own: nn.Linear, dense: nn.Linear, *, rows: Tensor | None, columns: Tensor | None) -> Cut | None:
    """Say what a layer is of the dense one, by comparing their weights.

    Args:
        own: The variant's layer.
        dense: The dense layer.
        rows: Indices of the neurons that it keeps, or None for all.
        columns: Indices of the inputs that it keeps, or None for all.

    Returns:
        None where its weights are neither the dense ones nor zero.
    """
    weight = dense.weight.detach()
    device = weight.device
    rows = torch.arange(weight.shape[0], device=device) if rows is None else rows
    expected = weight.index_select(0, rows)
    read = torch.ones(weight.shape[1], dtype=torch.bool, device=device)
    if columns is not None:
        expected = expected.index_select(1, columns)
        read = torch.zeros_like(read).index_fill_(0, columns, True)
    zero = None
    if not torch.equal(own.weight, expected):
        if expected.shape != own.weight.shape:
            return None
        zero = (own.weight != expected).any(1)
        if bool((own.weight[zero] != 0).any()):
            return None
    live = torch.zeros(weight.shape[0], dtype=torch.bool, device=device)
    live.index_fill_(0, rows if zero is None else rows[~zero], True)
    bias = own.weight.new_zeros(len(rows)) if own.bias is None else own.bias.detach()
    return Cut(rows, live, read, zero, bias)


class Columns(nn.Module):
    """In place of a layer that reads the network's input: the dense layer's outputs of the neurons that it has."""

    def __init__(self, dense: DenseLayer, cut: Cut, clock: Clock) -> None:
        super().__init__()
        self._dense, self._cut, self._clock = dense, cut, clock
        own = torch.zeros_like(cut.bias) if dense.module.bias is None else dense.module.bias.detach()[cut.rows]
        shift = cut.bias - own
        self._shift = shift[:, None] if cut.zero is None and bool(shift.any()) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs on the chunk that is being run, shape (images, n_out)."""
        values = self._dense.outputs[self._clock.chunk].index_select(0, self._cut.rows)
        return _finished(values if self._shift is None else values.add_(self._shift), self._cut)


class Unread(nn.Module):
    """In place of a layer whose outputs only a `Difference` reads, which does not look at them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return one row of zeros, shape (1, n_out)."""
        return x.new_zeros(1, self._width)


class Difference(nn.Module):
    """In place of a layer that reads such a layer: a larger variant's outputs, less what that one reads and this one does not."""

    def __init__(self, dense: DenseLayer, cut: Cut, clock: Clock, bases: Sequence[Difference]) -> None:
        super().__init__()
        self.cut = cut
        self._dense, self._clock = dense, clock
        self._value: Tensor | None = None
        self._made_at = -1
        steps = {base: cut.steps_from(base.cut) for base in bases}
        near = {base: count for base, count in steps.items() if count is not None and count < len(cut.read)}
        best = min(near, key=near.__getitem__, default=None)
        if best is not None and near[best] >= int((~cut.read).sum()):
            best = None
        self.base: list[Difference] = (
            [] if best is None else [best]
        )  # a list, as a module would become a part of this one
        base = dense.whole if best is None else best.cut
        self._pick = torch.searchsorted(base.rows, cut.rows)
        self._gone = torch.cat([(base.read & ~cut.read).nonzero().flatten(), cut.rows.new_tensor([len(cut.read)])])
        bias = (base.bias[self._pick] - cut.bias)[:, None]
        self._weight = torch.cat([dense.module.weight.detach()[cut.rows][:, self._gone[:-1]], bias], 1)

    @property
    def saves(self) -> bool:
        """Whether this takes fewer operations than the layer itself."""
        return len(self._gone) < int(self.cut.read.sum())

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs on the chunk that is being run, shape (images, n_out)."""
        chunk = self._clock.chunk
        self._value, self._made_at = self.value(chunk), chunk
        return _finished(self._value.clone() if self.cut.zero is not None else self._value, self.cut)

    def value(self, chunk: int) -> Tensor:
        """The outputs, shape (n_out, images); those of neurons without weights are of no use."""
        if self._made_at == chunk and self._value is not None:
            return self._value
        before = self.base[0].value(chunk) if self.base else self._dense.outputs[chunk]
        gone = self._dense.inputs[chunk].index_select(0, self._gone)
        return before.index_select(0, self._pick).addmm_(self._weight, gone, alpha=-1)


class RowMajor(nn.Module):
    """In place of any other linear layer: the product on neurons as rows where they come so, which is many times as fast."""

    def __init__(self, own: nn.Linear) -> None:
        super().__init__()
        self._weight = own.weight.detach()
        self._bias = None if own.bias is None else own.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs, shape (images, ..., n_out)."""
        if x.dim() != 2 or x.is_contiguous():
            return nn.functional.linear(x, self._weight, self._bias)
        values = self._weight @ x.T
        return values.T if self._bias is None else values.add_(self._bias[:, None]).T


def _finished(values: Tensor, cut: Cut) -> Tensor:
    if cut.zero is not None:
        values[cut.zero] = cut.bias[cut.zero][:, None]
    return values.T


def _bits(mask: Tensor) -> int:
    return int.from_bytes(np.packbits(mask.cpu().numpy()).tobytes(), "big")
