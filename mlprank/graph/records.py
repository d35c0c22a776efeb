"""The graph of neurons: which layers make them, which layers read them, which must stay together.

A network is read once (`mlprank.graph.trace`) into these frozen records; scores, masks, compensation and removal look at nothing else.
Names of nodes are those of the traced program, names of tensors are those of the network's `state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from mlprank.graph.program import Program

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """A per-channel factor between two values: an evaluation-mode normalisation, or a learned gain.

    Attributes:
        weight: Name of the gain, shape (n,), or None.
        variance: Name of the running variance, shape (n,), or None.
        eps: Added to the variance.
    """

    weight: str | None
    variance: str | None = None
    eps: float = 0.0

    def factor(self, state: State) -> Float[Tensor, " n"] | float:
        """Return the absolute factor, `|weight| / sqrt(variance + eps)`, shape (n,), unitless; 1 where there is none."""
        gain = 1.0 if self.weight is None else state[self.weight].abs()
        return gain if self.variance is None else gain / (state[self.variance] + self.eps).sqrt()


@dataclass(frozen=True)
class Call:
    """One use of a linear layer's weights in the forward pass.

    Attributes:
        node: The linear operation, whose value is the layer's output before any activation.
        source: The value that it reads.
        emitted: What the neurons send on: the value after normalisation and activation.
        scales: The factors between `node` and the activation.
        bias: Name of the bias that this use adds, or None.
        owner: Name of the `nn.Linear` that this use belongs to, where a bias can be created; None for functional calls.
    """

    node: str
    source: str
    emitted: str
    scales: tuple[Scale, ...]
    bias: str | None
    owner: str | None

    @property
    def bias_place(self) -> str | None:
        """Name of the bias of this use, or of the one that can be created; None where there is no place for one."""
        return self.bias or (f"{self.owner}.bias" if self.owner is not None else None)


@dataclass(frozen=True)
class Layer:
    """A linear layer: one weight matrix and every use of it.

    Attributes:
        name: The module's name, or the parameter's where no module owns it.
        weight: Name of the weight, shape (out_features, in_features).
        out_features: Number of its neurons.
        in_features: Number of its inputs.
        calls: Its uses, in forward order.
        group: Index of the group that its neurons belong to.
        source_group: Index of the group that it reads, or None if it reads no layer's neurons.
    """

    name: str
    weight: str
    out_features: int
    in_features: int
    calls: tuple[Call, ...]
    group: int
    source_group: int | None

    @property
    def sources(self) -> tuple[str, ...]:
        """The values that the layer reads, each once."""
        return tuple(dict.fromkeys(call.source for call in self.calls))

    @property
    def biases(self) -> tuple[str, ...]:
        """The biases that its uses add, or would add if they were created, each once."""
        return tuple(dict.fromkeys(call.bias_place for call in self.calls if call.bias_place is not None))


@dataclass(frozen=True)
class Group:
    """Neurons that can only be removed together: neuron j of every layer here is the same channel.

    Attributes:
        layers: The layers that make the neurons, in forward order.
        width: Number of neurons.
        slots: Every (tensor name, dimension) that runs along the neurons, weights of readers and biases yet to be created included.
        readers: The layers that read the neurons, in forward order.
        whole: Why no neuron of the group can be removed, or None.
        output: Whether the neurons are outputs of the network.
    """

    layers: tuple[str, ...]
    width: int
    slots: tuple[tuple[str, int], ...]
    readers: tuple[str, ...]
    whole: str | None
    output: bool

    @property
    def name(self) -> str:
        """The first layer's name, by which the group goes in scores and masks."""
        return self.layers[0]


@dataclass(frozen=True)
class Flow:
    """How importance reaches a value from the values before it.

    Attributes:
        inputs: The values that it is made of; empty for a source, whose importance is its calibration norm.
        scale: The factor that it multiplies with, or None.
    """

    inputs: tuple[str, ...]
    scale: Scale | None = None


@dataclass(frozen=True)
class Graph:
    """A network as a directed acyclic graph of neurons.

    Attributes:
        layers: The linear layers in forward order.
        groups: Their neurons, in the order of each group's first layer.
        flow: How importance flows between the values that layers emit and those that layers read.
        program: The traced network, to run on calibration data with any weights.
        others: Why parts that are no linear layers stay whole, by name.
        reshapes: Source lines that reshape a layer's neurons: where a width may be written into the forward pass.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    flow: Mapping[str, Flow]
    program: Program
    others: Mapping[str, str]
    reshapes: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    def group_of(self, layer: str) -> Group:
        """Return the group that a layer's neurons belong to."""
        return self.groups[self.by_name[layer].group]

    def whole(self) -> dict[str, str]:
        """Return why each part that stays whole does, by name of the layer or module."""
        layers = {name: group.whole for group in self.groups if group.whole for name in group.layers}
        return {**layers, **self.others}

    def readers_of(self, group: Group) -> tuple[Layer, ...]:
        """Return the layers that read a group's neurons."""
        return tuple(self.by_name[name] for name in group.readers)
