"""Small networks of many styles, built from a frozen description that also says which of their layers go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, settings
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "relu6": F.relu6,
    "mish": F.mish,
    "clamped": lambda x: x.clamp(-1, 2) + 0.25,
    "identity": lambda x: x,
}
"""Activations of one argument; "prelu", with one slope a neuron, is made by `Drawn`."""

# Every example traces a network, so shrinking one that fails would take minutes.
settled = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

KINDS = ("plain", "residual", "bottleneck", "gated", "reused", "layer_norm")
NORMS = ("none", "before", "after", "shared")


@dataclass(frozen=True)
class Block:
    """One piece of a network.

    Attributes:
        kind: plain: `act(fc(x))`; residual: `x + act(fc(x))`; bottleneck: `x + down(act(up(x)))`; gated:
            `down(act(gate(x)) * up(x))`; reused: `act(fc(act(fc(h))))` behind an entering layer; layer_norm: a plain
            one whose output is layer-normalised.
        width: Neurons; of the inner layer of a bottleneck or a gated block twice as many.
        activation: One of `ACTIVATIONS`, or "prelu".
        norm: A batch norm of its own before or after the activation, or one shared by all blocks of this width, after
            it.
        bias: Whether its linear layers have biases.
        functional: Written with bare parameters and `F.linear`.
    """

    kind: str
    width: int
    activation: str = "relu"
    norm: str = "none"
    bias: bool = True
    functional: bool = False


@dataclass(frozen=True)
class Spec:
    """A network: blocks, then one or two heads.

    Attributes:
        blocks: From the input to the output.
        in_features: Size of an input.
        num_tokens: 0 for inputs (B, in_features), else the number of tokens T of inputs (B, T, in_features).
        pool: What becomes of the tokens before the head: "mean", "first" or "none".
        num_heads: 1 or 2 outputs, the second one as an entry of a dict.
        head_bias: Whether the heads have biases.
        dtype: Of the weights.
        seed: Of the weights.
    """

    blocks: tuple[Block, ...]
    in_features: int = 5
    num_tokens: int = 0
    pool: str = "mean"
    num_heads: int = 1
    head_bias: bool = True
    dtype: torch.dtype = torch.float32
    seed: int = 0


@dataclass
class Expected:
    """Which layers share their neurons, worked out from the description alone."""

    parent: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    normed: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)

    def root(self, layer: str) -> str:
        while self.parent[layer] != layer:
            layer = self.parent[layer]
        return layer

    def add(self, layer: str, *, tied: str | None = None) -> str:
        self.parent.setdefault(layer, layer)
        if tied is not None:
            self.parent[self.root(layer)] = self.root(tied)
        return layer

    def groups(self) -> dict[frozenset[str], bool]:
        """Say for every set of layers that share neurons whether it may be pruned."""
        members: dict[str, set[str]] = {}
        for layer in self.parent:
            members.setdefault(self.root(layer), set()).add(layer)
        return {
            frozenset(layers): not layers & self.whole and not (layers & self.normed and layers & self.added)
            for layers in members.values()
        }


class Drawn(nn.Module):
    """The network of a `Spec`, with random weights, some of them exactly zero, and random batch statistics."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.expected = Expected()
        self.norm_of: dict[str, str] = {}
        self.shared_by: dict[int, str] = {}
        previous, carried = spec.in_features, None
        for index, block in enumerate(spec.blocks):
            previous, carried = self.add_block(f"b{index}", block, previous, carried)
        self.head = nn.Linear(previous, 3, bias=spec.head_bias)
        heads = ["head"]
        if spec.num_heads == 2:
            self.other = nn.Linear(previous, 2, bias=spec.head_bias)
            heads.append("other")
        self.expected.whole.update(self.expected.add(head) for head in heads)
        randomise(self, seed=spec.seed)
        self.to(spec.dtype).eval()

    def add_block(self, name: str, block: Block, previous: int, carried: str | None) -> tuple[int, str | None]:
        """Make a block's layers; return the width of its output and the layer whose neurons that is."""
        width = previous if block.kind in {"residual", "bottleneck"} else block.width
        made: str | None = None
        if block.kind in {"bottleneck", "gated"}:
            inner = self.linear(f"{name}_up", previous, 2 * block.width, block)
            if block.kind == "gated":
                self.linear(f"{name}_gate", previous, 2 * block.width, block, tied=inner)
            made = self.linear(f"{name}_down", 2 * block.width, width, block)
            self.extras(name, block, 2 * block.width, inner)
        elif block.kind == "reused":
            made = self.linear(f"{name}_enter", previous, width, block)
            self.linear(f"{name}_again", width, width, block, tied=made)
            self.extras(name, block, width, made)
        else:
            made = self.linear(f"{name}_fc", previous, width, block)
            self.extras(name, block, width, made)
        if block.kind in {"residual", "bottleneck"}:
            if carried is None:
                self.expected.whole.add(made)
            else:
                self.expected.add(made, tied=carried)
                self.expected.added.add(made)
        if block.kind == "layer_norm":
            self.add_module(f"{name}_ln", nn.LayerNorm(width))
            self.expected.normed.add(made)
        return width, made

    def linear(self, name: str, size_in: int, size_out: int, block: Block, *, tied: str | None = None) -> str:
        if block.functional:
            self.register_parameter(name, nn.Parameter(torch.empty(size_out, size_in)))
            if block.bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(size_out)))
        else:
            self.add_module(name, nn.Linear(size_in, size_out, bias=block.bias))
        return self.expected.add(name, tied=tied)

    def extras(self, name: str, block: Block, width: int, layer: str) -> None:
        if block.activation == "prelu":
            per_neuron = not self.spec.num_tokens
            self.register_parameter(f"{name}_slope", nn.Parameter(torch.empty(width if per_neuron else 1)))
        if block.norm in {"before", "after"}:
            self.add_module(f"{name}_bn", nn.BatchNorm1d(width))
        elif block.norm == "shared":
            key = f"shared{width}"
            if not hasattr(self, key):
                self.add_module(key, nn.BatchNorm1d(width))
                self.shared_by[width] = layer
            self.norm_of[name] = key
            self.expected.add(layer, tied=self.shared_by[width])

    def apply_linear(self, name: str, x: Tensor) -> Tensor:
        found = getattr(self, name)
        if isinstance(found, nn.Linear):
            return found(x)
        return F.linear(x, found, getattr(self, f"{name}_bias", None))

    def batch_norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.transpose(1, 2)).transpose(1, 2) if x.dim() == 3 else norm(x)

    def activate(self, name: str, block: Block, z: Tensor) -> Tensor:
        if block.norm == "before":
            z = self.batch_norm(self.get_submodule(f"{name}_bn"), z)
        prelu = block.activation == "prelu"
        h = F.prelu(z, getattr(self, f"{name}_slope")) if prelu else ACTIVATIONS[block.activation](z)
        if block.norm == "after":
            h = self.batch_norm(self.get_submodule(f"{name}_bn"), h)
        elif block.norm == "shared":
            h = self.batch_norm(self.get_submodule(self.norm_of[name]), h)
        return h

    def apply_block(self, name: str, block: Block, x: Tensor) -> Tensor:
        if block.kind in {"bottleneck", "gated"}:
            up = self.apply_linear(f"{name}_up", x)
            if block.kind == "bottleneck":
                return x + self.apply_linear(f"{name}_down", self.activate(name, block, up))
            gate = self.activate(name, block, self.apply_linear(f"{name}_gate", x))
            return self.apply_linear(f"{name}_down", gate * up)
        if block.kind == "reused":
            h = self.activate(name, block, self.apply_linear(f"{name}_enter", x))
            for _ in range(2):
                h = self.activate(name, block, self.apply_linear(f"{name}_again", h))
            return h
        h = self.activate(name, block, self.apply_linear(f"{name}_fc", x))
        if block.kind == "layer_norm":
            return self.get_submodule(f"{name}_ln")(h)
        return x + h if block.kind == "residual" else h

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        for index, block in enumerate(self.spec.blocks):
            x = self.apply_block(f"b{index}", block, x)
        if self.spec.num_tokens and self.spec.pool != "none":
            x = x.mean(1) if self.spec.pool == "mean" else x[:, 0]
        logits: Tensor = self.head(x)
        return {"logits": logits, "other": self.other(x)} if self.spec.num_heads == 2 else logits

    def inputs(self, num_samples: int, *, seed: int = 1) -> Tensor:
        """Draw inputs that fit, shape (num_samples, [T,] in_features)."""
        tokens = (self.spec.num_tokens,) if self.spec.num_tokens else ()
        shape = (num_samples, *tokens, self.spec.in_features)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            self.spec.dtype
        )


def randomise(network: nn.Module, *, seed: int, zeros: float = 0.1) -> nn.Module:
    """Give a network random weights, a share of them exactly zero, and random batch statistics, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = values.square() + 0.3
            elif tensor.dim() == 2:
                values = values * (1.4 / tensor.shape[1] ** 0.5)
                values[torch.rand(tensor.shape, generator=generator) < zeros] = 0.0
            tensor.copy_(values)
    return network


def outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run a network in evaluation mode, whatever its mode is, and return its outputs by name."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    with torch.no_grad():
        result = network(x.clone())
    for module, mode in modes.items():
        module.training = mode
    return outputs_of(result)


def outputs_of(result: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """What a network returned, by name."""
    return dict(result) if isinstance(result, dict) else {"logits": result}


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Copy every parameter and buffer, and the mode of every module."""
    modes = {f"{name}:training": torch.tensor(module.training) for name, module in network.named_modules()}
    return {name: tensor.clone() for name, tensor in network.state_dict().items()} | modes


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two networks' outputs, relative to the largest output where that is above 1."""
    assert one.keys() == other.keys()
    largest = 0.0
    for name, value in one.items():
        assert value.shape == other[name].shape, name
        expected, got = value.detach().double(), other[name].detach().double()
        largest = max(largest, float((expected - got).abs().max()) / max(1.0, float(expected.abs().max())))
    return largest
