"""Layer kinds: the ways in which weights make neurons out of neurons; a new kind is one class (`register_kind`).

A kind knows where outputs and inputs lie in its weight, how the weight looks as a matrix to a measure, what one output
position sees of its input, and which attributes of a module state sizes. The law that every kind keeps, and the tests
check:

    operation(value, weight, bias) at a position
        == outputs(value, weight) + bias
        == patches(value) @ flat(weight)^T + bias
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mlprank.graph.program import as_node, ndim_of, operation


@dataclass(frozen=True)
class Use:
    """One operation through which weights make neurons.

    Attributes:
        kind: The kind, with the geometry of this use.
        source: The value that is read.
        dim: Its dimension along the inputs.
        weight: The weight, as an argument of the operation.
        bias: The bias likewise, or None.
        out_dim: The dimension of the operation's value along the outputs.
    """

    kind: Kind
    source: fx.Node
    dim: int
    weight: fx.Node
    bias: fx.Node | None
    out_dim: int


class Kind(Protocol):
    """What the engine asks of a kind of layer; an instance holds the geometry of one use and is frozen.

    Attributes:
        unit: What its outputs are called, in the plural.
        operations: Names of the operations of a traced program that may be of this kind.
        weight_out: The weight's dimension along the outputs.
        weight_in: The weight's dimension along the inputs.
        groups: Into how many equal parts inputs and outputs fall that do not see each other.
        pads: Whether positions at the border see zeros besides inputs, so that an input's constant has no place in a
            bias.
        refits: Whether `patches`, `outputs` and `flat` are known, so that whole weights can be fitted anew.
    """

    unit: ClassVar[str]
    operations: ClassVar[frozenset[str]]

    @property
    def weight_out(self) -> int: ...  # noqa: D102
    @property
    def weight_in(self) -> int: ...  # noqa: D102
    @property
    def groups(self) -> int: ...  # noqa: D102
    @property
    def pads(self) -> bool: ...  # noqa: D102
    @property
    def refits(self) -> bool: ...  # noqa: D102

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Say how an operation uses its weight, or None if it is not of this kind after all."""
        ...

    def flat(self, weight: Tensor) -> Float[Tensor, "groups outputs inputs patch"]:
        """The weight in order: of each group its outputs, its inputs, and the patch that an output sees of an input."""
        ...

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """The inverse of `flat`; `like` is a weight with the sizes of the patch."""
        ...

    def patches(
        self, value: Tensor, inputs: Tensor, positions: int | None
    ) -> Float[Tensor, "groups rows inputs patch"]:
        """What outputs see of given inputs (indices within a group), at all positions or so many of each sample."""
        ...

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Float[Tensor, "groups rows outputs"]:
        """What a weight makes of a value at those positions, without a bias."""
        ...

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """Sums of squares of what is read, over samples and positions, shape (n_in,)."""
        ...

    def resize(self, module: nn.Module) -> None:
        """Make the attributes of a module of this kind agree with its weight."""
        ...


def matrix(kind: Kind, weight: Tensor) -> Float[Tensor, "n_out n_in"]:
    """How a weight looks to a measure: the weight itself, or the sum of each kernel's absolute values."""
    flat = kind.flat(weight)
    plain = flat[..., 0] if flat.shape[3] == 1 else flat.abs().sum(3)
    if len(plain) == 1:
        return plain[0]
    joined: Tensor = torch.block_diag(*plain)
    return joined


def rows(value: Tensor, dim: int) -> Float[Tensor, "rows n"]:
    """A value as rows of the entries along one dimension."""
    return value.movedim(dim, -1).reshape(-1, value.shape[dim])


def squares(value: Tensor, dim: int) -> Float[Tensor, " n"]:
    """Sums of squares of the entries along one dimension, float64."""
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    others = [other for other in range(value.dim()) if other != dim % value.dim()]
    return value.square().sum(others).double() if others else value.square().double()


@dataclass(frozen=True)
class Linear:
    """Weighted sums along the last dimension: `F.linear`, `addmm`, `x @ w`, `einsum` with a matrix."""

    unit: ClassVar[str] = "neurons"
    operations: ClassVar[frozenset[str]] = frozenset({"linear", "addmm", "matmul", "mm", "einsum"})
    weight_out: int = 0
    groups: ClassVar[int] = 1
    pads: ClassVar[bool] = False
    refits: ClassVar[bool] = True

    @property
    def weight_in(self) -> int:
        """The other dimension."""
        return 1 - self.weight_out

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Read the arguments of any of the operations."""
        name = operation(node)
        if name == "linear":
            source, weight, out = node.args[0], node.args[1], 0
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        elif name == "addmm":
            if any(float(node.kwargs.get(key, 1)) != 1 for key in ("alpha", "beta")):  # type: ignore[arg-type]
                return None
            bias, source, weight, out = node.args[0], node.args[1], node.args[2], 1
        elif name == "einsum":
            return cls._einsum(node)
        else:
            source, weight, bias, out = node.args[0], node.args[1], None, 1
        if not isinstance(weight, fx.Node) or ndim_of(weight) != 2:
            return None
        return cls._use(node, as_node(source), weight, bias, out)

    @classmethod
    def _use(cls, node: fx.Node, source: fx.Node, weight: fx.Node, bias: Any, out: int) -> Use:
        bias = None if bias is None else as_node(bias)
        return Use(cls(out), source, ndim_of(source) - 1, weight, bias, ndim_of(node) - 1)

    @classmethod
    def _einsum(cls, node: fx.Node) -> Use | None:
        """`...i,io->...o` and the like: one index of the matrix is summed, the other one takes its place at the end."""
        equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
        inputs, _, result = equation.partition("->")
        if not isinstance(operands, (list, tuple)) or len(operands) != 2 or inputs.count(",") != 1:
            return None
        source, weight = (as_node(operand) for operand in operands)
        left, right = inputs.split(",")
        if ndim_of(weight) != 2 or len(right) != 2:
            return None
        summed = left[-1]
        other = right.replace(summed, "", 1)
        if summed not in right or len(other) != 1 or other in left or result != left[:-1] + other:
            return None
        return cls._use(node, source, weight, None, right.index(other))

    def flat(self, weight: Tensor) -> Tensor:
        """Outputs first."""
        return (weight if self.weight_out == 0 else weight.T)[None, :, :, None]

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Outputs where they were."""
        return flat[0, ..., 0] if self.weight_out == 0 else flat[0, ..., 0].T

    def patches(self, value: Tensor, inputs: Tensor, positions: int | None) -> Tensor:
        """Rows; a position is a token."""
        return _tokens(value, positions)[:, inputs][None, :, :, None]

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Tensor:
        """Products of the same rows with the matrix."""
        return (_tokens(value, positions) @ (weight.T if self.weight_out == 0 else weight))[None]

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """Over all rows."""
        return squares(value, dim)

    def resize(self, module: nn.Module) -> None:
        """Set `out_features` and `in_features` of `nn.Linear`, `nf` and `nx` of GPT-2's Conv1D."""
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, Tensor):
            module.out_features, module.in_features = weight.shape
        elif type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and hasattr(module, "nf"):
            module.nx, module.nf = weight.shape  # type: ignore[assignment]


def _tokens(value: Tensor, positions: int | None) -> Float[Tensor, "rows n"]:
    """All tokens, or so many of each sample."""
    if positions is not None and value.dim() > 2 and positions < math.prod(value.shape[1:-1]):
        tokens = value.flatten(1, -2)
        value = tokens[:, spread(tokens.shape[1], positions)]
    return value.reshape(-1, value.shape[-1])


def spread(total: int, count: int) -> list[int]:
    """So many of `total` positions, evenly spread with an odd step, so that rows and columns of an image both vary."""
    generator = torch.Generator().manual_seed(total)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


@dataclass(frozen=True)
class Convolution:
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

    @property
    def weight_out(self) -> int:
        """Outputs come first, but in transposed convolutions."""
        return int(self.transposed)

    @property
    def weight_in(self) -> int:
        """The other one of the first two dimensions."""
        return 1 - self.weight_out

    @property
    def pads(self) -> bool:
        """Transposed ones see fewer inputs at the border, whatever their padding, and between strides."""
        return any(side for sides in self.padding for side in sides) or (
            self.transposed and any(size > 1 for size in self.kernel)
        )

    @property
    def refits(self) -> bool:
        """What one output of a transposed convolution sees depends on its position."""
        return not self.transposed

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """Read the arguments by the operation's schema."""
        target = node.target
        assert isinstance(target, torch._ops.OpOverload)
        given: dict[str, Any] = {
            argument.name: argument.default_value if argument.has_default_value() else None
            for argument in target._schema.arguments
        }
        given |= {argument.name: value for argument, value in zip(target._schema.arguments, node.args, strict=False)}
        given |= node.kwargs
        source, weight, bias = as_node(given["input"]), as_node(given["weight"]), given["bias"]
        kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])
        num = len(kernel)

        def each(value: Any) -> tuple[int, ...]:
            values = [value] if isinstance(value, int) else list(value)
            return tuple(int(one) for one in values * (num if len(values) == 1 else 1))

        dilation = each(given["dilation"])
        if isinstance(given["padding"], str):
            totals = [d * (k - 1) if given["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        else:
            padding = tuple((one, one) for one in each(given["padding"]))
        transposed = "transpose" in operation(node)
        kind = cls(kernel, each(given["stride"]), padding, dilation, int(given["groups"]), transposed)
        dim = ndim_of(source) - 1 - num
        return Use(kind, source, dim, weight, None if bias is None else as_node(bias), dim)

    def flat(self, weight: Tensor) -> Tensor:
        """Split the groups, flatten the kernel."""
        if self.transposed:  # (groups * inputs, outputs, *kernel)
            parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
            return parts.transpose(1, 2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Join the groups, give the kernel its shape."""
        if self.transposed:
            flat = flat.transpose(1, 2)
        return flat.reshape(-1, flat.shape[2], *like.shape[2:])

    def patches(self, value: Tensor, inputs: Tensor, positions: int | None) -> Tensor:
        """Gather the inputs under the kernel at output positions."""
        num = len(self.kernel)
        value = self._padded(value)
        if inputs.numel() != value.shape[1]:
            per_group = value.shape[1] // self.groups
            starts = torch.arange(self.groups, device=value.device) * per_group
            value = value[:, (starts[:, None] + inputs.to(value.device)).flatten()]
        sizes = value.shape[2:]
        geometry = list(zip(sizes, self.kernel, self.stride, self.dilation, strict=True))
        starts_of = [range(0, size - d * (k - 1), s) for size, k, s, d in geometry]
        total = math.prod(len(starts) for starts in starts_of)
        # The index into the flattened positions is a sum of one part a dimension, for starts and for kernel offsets
        # alike.
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(num)]
        places = torch.tensor([sum(p * s for p, s in zip(at, strides, strict=True)) for at in product(*starts_of)])
        if positions is not None and positions < total:
            places = places[spread(total, positions)]
        offsets_of = [range(0, d * k, d) for k, d in zip(self.kernel, self.dilation, strict=True)]
        offsets = torch.tensor([sum(p * s for p, s in zip(at, strides, strict=True)) for at in product(*offsets_of)])
        index = (places[:, None] + offsets).to(value.device)
        seen = value.flatten(2)[:, :, index.flatten()].unflatten(
            2, tuple(index.shape)
        )  # (n, channels, positions, kernel)
        seen = seen.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2, 4)
        patches: Tensor = seen.reshape(self.groups, -1, seen.shape[3], seen.shape[4])
        return patches

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Tensor:
        """Convolve everywhere, take the positions."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel) - 1]
        made: Tensor = convolve(
            self._padded(value), weight, stride=self.stride, dilation=self.dilation, groups=self.groups
        ).flatten(2)
        if positions is not None and positions < made.shape[2]:
            made = made[:, :, spread(made.shape[2], positions)]
        made = made.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2)
        return made.flatten(1, 2)

    def _padded(self, value: Tensor) -> Tensor:
        """A batch with its zeros around."""
        value = value[None] if value.dim() == len(self.kernel) + 1 else value
        pads = [side for sides in reversed(self.padding) for side in sides]
        return F.pad(value, pads) if any(pads) else value

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """Over samples and positions."""
        return squares(value, dim)

    def resize(self, module: nn.Module) -> None:
        """Set `in_channels`, `out_channels` and the groups of a depthwise convolution."""
        if not isinstance(module, nn.modules.conv._ConvNd) or not isinstance(module.weight, Tensor):
            return
        first, second = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels and not module.transposed and second == 1:
            multiplier = module.out_channels // module.in_channels
            module.groups = first // multiplier
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.in_channels, module.out_channels = second * module.groups, first


@dataclass(frozen=True)
class Embedding:
    """A table of rows, looked up by integers: makes neurons, reads none."""

    unit: ClassVar[str] = "neurons"
    operations: ClassVar[frozenset[str]] = frozenset({"embedding"})
    weight_out: ClassVar[int] = 1
    weight_in: ClassVar[int] = 0
    groups: ClassVar[int] = 1
    pads: ClassVar[bool] = False
    refits: ClassVar[bool] = False
    size: int = 0

    @classmethod
    def read(cls, node: fx.Node) -> Use | None:
        """The table comes first."""
        weight, indices = as_node(node.args[0]), as_node(node.args[1])
        return Use(cls(int(weight.meta["val"].shape[0])), indices, -1, weight, None, ndim_of(node) - 1)

    def flat(self, weight: Tensor) -> Tensor:
        """Outputs first."""
        return weight.T[None, :, :, None]

    def unflat(self, flat: Tensor, like: Tensor) -> Tensor:
        """Outputs last."""
        return flat[0, ..., 0].T

    def patches(self, value: Tensor, inputs: Tensor, positions: int | None) -> Tensor:
        """One row of zeros and a one for every lookup."""
        return F.one_hot(value.flatten(), self.size)[:, inputs][None, :, :, None]

    def outputs(self, value: Tensor, weight: Tensor, positions: int | None) -> Tensor:
        """The rows that are looked up."""
        return weight[value.flatten()][None]

    def input_norms(self, value: Tensor, dim: int) -> Tensor:
        """How often every row is looked up."""
        return torch.bincount(value.flatten(), minlength=self.size).double()

    def resize(self, module: nn.Module) -> None:
        """Set `embedding_dim`."""
        if isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape


KINDS: list[type[Any]] = [Linear, Convolution, Embedding]


def register_kind(kind: type[Any]) -> Callable[[], None]:
    """Make a kind known to the reader of networks; those registered last are asked first.

    Returned is a function that takes it back.
    """
    KINDS.insert(0, kind)
    return lambda: KINDS.remove(kind)


def use_of(node: fx.Node) -> Use | None:
    """How an operation makes neurons by weights, or None if it is no layer that is known."""
    name = operation(node)
    for kind in KINDS:
        if name in kind.operations:
            found: Use | None = kind.read(node)
            if found is not None:
                return found
    return None


def resize(module: nn.Module) -> None:
    """Make the sizes that a module states agree with the tensors that it holds, whatever kind it is of."""
    for kind in KINDS:
        kind().resize(module)
