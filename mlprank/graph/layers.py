"""Layer kinds: the ways in which weights make neurons out of neurons; a new kind is one class in `KINDS`.

A kind knows where outputs and inputs lie in its weight, how the weight looks as a matrix to a measure, what one output
position sees of its input, and which attributes of a module state sizes. The law that every kind keeps, and the tests
check:

    operation(value, weight, bias) at a position
        == outputs(value, weight) + bias
        == patches(value) @ flat(weight)^T + bias
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mlprank.graph.axes import Axis
from mlprank.graph.program import arguments, as_node, ndim_of, operation


@dataclass(frozen=True)
class Use:
    """One operation through which weights make neurons."""

    kind: Kind  # with the geometry of this use
    source: fx.Node  # the value that is read
    dim: int  # its dimension along the inputs
    weight: fx.Node  # the weight, as an argument of the operation
    bias: fx.Node | None  # likewise
    out_dim: int  # the dimension of the operation's value along the outputs


class Kind(ABC):
    """What the engine asks of a kind of layer: an instance holds the geometry of one use and is frozen.

    What stands here holds for one matrix.
    """

    unit: ClassVar[str] = "neurons"  # what its outputs are called, in the plural
    operations: ClassVar[frozenset[str]]  # names of the operations of a traced program that may be of this kind
    weight_out: int = 0  # the weight's dimension along the outputs
    groups: int = 1  # equal parts into which inputs and outputs fall that do not see each other
    pads: bool = False  # positions at the border see zeros, too, so that an input's constant has no place in a bias
    refits: bool = True  # `patches`, `outputs` and `flat` are known, so that whole weights can be fitted anew

    def whole(self, axes: Mapping[int, Axis]) -> tuple[Axis, Axis]:
        """The axes along all outputs and inputs, from those of the weight, whose second one is that of one group."""
        sides = axes[0], axes[1] * self.groups
        return sides if self.weight_out == 0 else sides[::-1]

    @classmethod
    @abstractmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Say how an operation uses its weight, or None if it is not of this kind after all."""

    def flat(self, weight: Tensor) -> Float[Tensor, "groups outputs inputs patch"]:
        """The weight in order: of each group its outputs, its inputs, and the patch that an output sees of an input."""
        return (weight if self.weight_out == 0 else weight.T)[None, :, :, None]

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """The inverse of `flat`; `like` is a weight with the sizes of the patch."""
        return flat[0, ..., 0] if self.weight_out == 0 else flat[0, ..., 0].T

    def patches(
        self, value: Tensor, inputs: Tensor, positions: int | None
    ) -> Float[Tensor, "groups rows inputs patch"]:
        """What outputs see of given inputs (indices within a group), at all positions or so many of each sample."""
        return _tokens(value, positions)[:, inputs][None, :, :, None]

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Float[Tensor, "groups rows outputs"]:
        """What a weight makes of a value at those positions, without a bias."""
        return (_tokens(value, positions) @ (weight.T if self.weight_out == 0 else weight))[None]

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """Sums of squares of what is read, over samples and positions, shape (n_in,)."""
        return squares(value, dim)

    def resize(self, module: Any) -> None:  # noqa: B027  # not every kind states sizes
        """Make the sizes that a module states agree with its weight, if it is of this kind."""


def matrix(kind: Kind, weight: Tensor) -> Float[Tensor, "n_out n_in"]:
    """How a weight looks to a measure: the weight itself, or the sum of each kernel's absolute values."""
    flat = kind.flat(weight)
    plain = flat[..., 0] if flat.shape[3] == 1 else flat.abs().sum(3)
    if len(plain) == 1:
        return plain[0]
    joined: Tensor = torch.block_diag(*plain)
    return joined


def squares(value: Tensor, dim: int) -> Float[Tensor, " n"]:
    """Sums of squares of the entries along one dimension, float64."""
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    others = [other for other in range(value.dim()) if other != dim % value.dim()]
    return value.square().sum(others).double() if others else value.square().double()


@dataclass(frozen=True)
class Linear(Kind):
    """Weighted sums along the last dimension: `F.linear`, `addmm`, `x @ w`, `einsum` with a matrix."""

    operations: ClassVar[frozenset[str]] = frozenset({"linear", "addmm", "matmul", "mm", "einsum"})
    weight_out: int = 0

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Read the arguments of any of the operations."""
        name, given = operation(node), arguments(node)
        if name == "einsum":
            # `...i,io->...o`: one index of the matrix is summed, the other one takes its place at the end.
            inputs, _, result = given["equation"].replace(" ", "").partition("->")
            left, _, right = inputs.partition(",")
            other = right.replace(left[-1:], "", 1)
            if len(given["tensors"]) != 2 or len(other) != 1 or other in left or result != left[:-1] + other:
                return None
            (source, weight), bias, out = given["tensors"], None, right.index(other)
        else:
            bias = given.get("bias") if name == "linear" else given.get("self") if name == "addmm" else None
            source, weight = node.args[1:3] if name == "addmm" else node.args[:2]
            out = int(name != "linear")
            if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
                return None
        if not isinstance(weight, fx.Node) or ndim_of(weight) != 2:
            return None
        source = as_node(source)
        return Use(cls(out), source, ndim_of(source) - 1, weight, bias, ndim_of(node) - 1)

    def resize(self, module: Any) -> None:
        """Set `out_features` and `in_features` of `nn.Linear`, `nf` and `nx` of GPT-2's Conv1D."""
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            module.nx, module.nf = module.weight.shape


def _tokens(value: Tensor, positions: int | None) -> Float[Tensor, "rows n"]:
    """All tokens, or so many of each sample."""
    if value.dim() > 2:
        value = value.flatten(1, -2)
        value = value[:, _some(value.shape[1], positions)]
    return value.reshape(-1, value.shape[-1])


def _some(total: int, count: int | None) -> Any:
    """So many of `total` positions, spread at random, always the same ones; a slice of all where there are no more."""
    if count is None or count >= total:
        return slice(None)
    return sorted(torch.randperm(total, generator=torch.Generator().manual_seed(total))[:count].tolist())


@dataclass(frozen=True)
class Convolution(Kind):
    """A linear layer applied at every position, in one, two or three dimensions; transposed ones too.

    Depthwise convolutions do not mix channels: the rules pass channels through them.
    """

    unit: ClassVar[str] = "channels"
    operations: ClassVar[frozenset[str]] = frozenset(
        f"{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3)
    )
    kernel: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[tuple[int, int], ...] = ((0, 0),)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        # Transposed ones see fewer inputs at the border, whatever their padding, and between strides; what one of their
        # outputs sees depends on its position, and their outputs come second.
        pads = any(map(any, self.padding)) or (self.transposed and max(self.kernel) > 1)
        for name, value in (("weight_out", int(self.transposed)), ("pads", pads), ("refits", not self.transposed)):
            object.__setattr__(self, name, value)

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Read the arguments by the operation's schema."""
        given = arguments(node)
        source, weight = as_node(given["input"]), as_node(given["weight"])
        kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])

        def each(value: Any) -> tuple[int, ...]:
            values = [value] if isinstance(value, int) else list(value)
            return tuple(int(one) for one in values * (len(kernel) if len(values) == 1 else 1))

        dilation = each(given["dilation"])
        if isinstance(given["padding"], str):
            totals = [d * (k - 1) if given["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        else:
            padding = tuple((one, one) for one in each(given["padding"]))
        transposed = "transpose" in operation(node)
        kind = cls(kernel, each(given["stride"]), padding, dilation, int(given["groups"]), transposed)
        dim = ndim_of(source) - 1 - len(kernel)
        return Use(kind, source, dim, weight, given["bias"], dim)

    def flat(self, weight: Tensor) -> Tensor:
        """Split the groups, flatten the kernel."""
        parts: Tensor = weight.unflatten(0, (self.groups, -1)).flatten(3)
        return parts.transpose(1, 2) if self.transposed else parts

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Join the groups, give the kernel its shape."""
        flat = flat.transpose(1, 2) if self.transposed else flat
        return flat.reshape(-1, flat.shape[2], *like.shape[2:])

    def patches(self, value: Tensor, inputs: Tensor, positions: int | None) -> Tensor:
        """Gather the inputs under the kernel at output positions."""
        value = self._padded(value)
        if inputs.numel() != value.shape[1]:
            value = value.unflatten(1, (self.groups, -1))[:, :, inputs.to(value.device)].flatten(1, 2)
        for dim, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), start=2):
            value = value.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
        sizes = value.shape[2 : 2 + len(self.kernel)]
        places = torch.arange(math.prod(sizes), device=value.device)[_some(math.prod(sizes), positions)]
        at: Any = (slice(None), slice(None), *torch.unravel_index(places, sizes))
        seen: Tensor = value[at].flatten(3).unflatten(1, (self.groups, -1))  # (n, groups, inputs, positions, kernel)
        return seen.permute(1, 0, 3, 2, 4).flatten(1, 2)

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Tensor:
        """Convolve everywhere, take the positions."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        made: Tensor = convolve(
            self._padded(value), weight, stride=self.stride, dilation=self.dilation, groups=self.groups
        ).flatten(2)
        made = made[:, :, _some(made.shape[2], positions)].unflatten(1, (self.groups, -1))
        return made.permute(1, 0, 3, 2).flatten(1, 2)

    def _padded(self, value: Tensor) -> Tensor:
        """A batch with its zeros around."""
        value = value[None] if value.dim() == len(self.kernel) + 1 else value
        pads = [side for sides in reversed(self.padding) for side in sides]
        return F.pad(value, pads) if any(pads) else value

    def resize(self, module: Any) -> None:
        """Set `in_channels`, `out_channels` and the groups of a depthwise convolution."""
        if isinstance(module, nn.modules.conv._ConvNd):
            first, second = module.weight.shape[:2]
            if 1 < module.groups == module.in_channels and not module.transposed:
                module.groups = first * module.in_channels // module.out_channels
            sizes = first, second * module.groups
            module.in_channels, module.out_channels = sizes if module.transposed else sizes[::-1]


@dataclass(frozen=True)
class Embedding(Kind):
    """A table of rows, looked up by integers: makes neurons, reads none."""

    operations: ClassVar[frozenset[str]] = frozenset({"embedding"})
    size: int = 0
    weight_out: int = 1
    refits: bool = False

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """The table comes first."""
        weight, indices = as_node(node.args[0]), as_node(node.args[1])
        return Use(cls(int(weight.meta["val"].shape[0])), indices, -1, weight, None, ndim_of(node) - 1)

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """How often every row is looked up."""
        return torch.bincount(value.flatten(), minlength=self.size).double()

    def resize(self, module: Any) -> None:
        """Set `num_embeddings` and `embedding_dim`."""
        if isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape


KINDS: list[type[Kind]] = [Linear, Convolution, Embedding]
"""All that are known; the first one that can read an operation does."""
