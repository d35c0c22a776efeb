"""The graph of neurons: which layers make them, which layers read them, which must stay together.

A network is read once (`mlprank.graph.trace`) into these frozen records; scores, masks, compensation and removal look
at nothing else. Names of nodes are those of the traced program, names of tensors are those of the network's
`state_dict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlprank.graph.axes import Axis, entries, size_of
from mlprank.graph.layers import Kind
from mlprank.graph.program import Program

State = Mapping[str, Tensor]
Place = tuple[str, int]
"""A value (or tensor) by its name, and one of its dimensions."""


@dataclass(frozen=True)
class Scale:
    """A per-channel factor between two values: an evaluation-mode normalisation, a learned gain, or a depthwise kernel.

    Attributes:
        weight: Name of the gain, shape (n,), or of the kernel, shape (n, ...), or None.
        variance: Name of the running variance, shape (n,), or None.
        eps: Added to the variance.
    """

    weight: str | None
    variance: str | None = None
    eps: float = 0.0

    def factor(self, state: State) -> Float[Tensor, " n"] | float:
        """Return the factor `|weight| / sqrt(variance + eps)`, shape (n,), unitless; 1 where there is none."""
        gain: Tensor | float = 1.0
        if self.weight is not None:
            gain = state[self.weight].abs()
            gain = gain.flatten(1).sum(1) if gain.dim() > 1 else gain
        return gain if self.variance is None else gain / (state[self.variance] + self.eps).sqrt()


@dataclass(frozen=True)
class Call:
    """One use of a layer's weights in the forward pass.

    Attributes:
        node: The operation, whose value is the layer's output before any activation.
        source: The value that it reads.
        dim: The dimension of `source` along the inputs.
        out_dim: The dimension of the operation's value along the outputs.
        emitted: What the neurons send on: the value after normalisation and activation.
        emitted_dim: Its dimension along the neurons.
        scales: The factors between `node` and the activation.
        bias: Name of the bias that this use adds and that is its own, or None.
        owner: Name of the module that this use belongs to, where a bias can be created; None for functional calls.
        kind: How it uses the weights.
    """

    node: str
    source: str
    dim: int
    out_dim: int
    emitted: str
    emitted_dim: int
    scales: tuple[Scale, ...]
    bias: str | None
    owner: str | None
    kind: Kind

    @property
    def place(self) -> Place:
        """What it reads, and along which dimension."""
        return self.source, self.dim

    @property
    def bias_place(self) -> str | None:
        """Name of the bias of this use, or of the one that can be created; None where there is no place for one."""
        return self.bias or (f"{self.owner}.bias" if self.owner is not None else None)


@dataclass(frozen=True)
class Layer:
    """One weight and every use of it in one way.

    Attributes:
        name: The module's name, or the parameter's where no module owns it.
        weight: Name of the weight.
        made: The axis along its outputs; segments name groups.
        read: The axis along its inputs; entries that are no followed neurons are segments of None.
        calls: Its uses, in forward order.
        tied: Whether the weight is also used in another way, so that it cannot be fitted anew for this one.
    """

    name: str
    weight: str
    made: Axis
    read: Axis
    calls: tuple[Call, ...]
    tied: bool = False

    @property
    def kind(self) -> Kind:
        """How it makes neurons."""
        return self.calls[0].kind

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return size_of(self.made)

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return size_of(self.read)

    @property
    def sources(self) -> tuple[Place, ...]:
        """The values that the layer reads, each once."""
        return tuple(dict.fromkeys(call.place for call in self.calls))

    @property
    def biases(self) -> tuple[str, ...]:
        """The biases that its uses add, or would add if they were created, each once."""
        return tuple(dict.fromkeys(call.bias_place for call in self.calls if call.bias_place is not None))

    @property
    def made_groups(self) -> tuple[int, ...]:
        """Indices of the groups that its outputs belong to, each once."""
        return tuple(dict.fromkeys(segment.space for segment in self.made if segment.space is not None))

    @property
    def read_groups(self) -> tuple[int, ...]:
        """Indices of the groups that it reads, each once."""
        return tuple(dict.fromkeys(segment.space for segment in self.read if segment.space is not None))

    @property
    def source_group(self) -> int | None:
        """The group that it reads, if what it reads is the group's neurons one by one and nothing else."""
        sole = self.read[0] if len(self.read) == 1 and self.read[0].block == 1 else None
        return None if sole is None else sole.space


@dataclass(frozen=True)
class Group:
    """Neurons that can only be removed together: neuron j of every layer here is the same channel.

    Attributes:
        name: The first layer's name, with the range of its outputs where it makes neurons of several groups.
        layers: The layers that make the neurons, in forward order.
        width: Number of neurons.
        readers: The layers that read the neurons, in forward order.
        whole: Why no neuron of the group can be removed, or None.
        output: Whether the neurons are outputs of the network.
        varying: Whether they are multiplied with other values of the input: what a zeroed one sends is a constant only
            if it is 0.
        moved: Whether other values of the input are added to them: what a zeroed one sends is no constant.
        written: A source line at which their number may be written into the forward pass, or None.
    """

    name: str
    layers: tuple[str, ...]
    width: int
    readers: tuple[str, ...]
    whole: str | None
    output: bool
    varying: bool = False
    moved: bool = False
    written: str | None = None


@dataclass(frozen=True)
class Part:
    """One value that importance comes from.

    Attributes:
        value: Its name.
        dim: The dimension along the neurons.
        start: The first entry taken.
        stop: The entry behind the last one taken.
        block: Every entry becomes so many.
        repeat: All of them come so many times.
    """

    value: str
    dim: int
    start: int
    stop: int
    block: int = 1
    repeat: int = 1


@dataclass(frozen=True)
class Flow:
    """How importance reaches a value from the values before it.

    Attributes:
        parts: The values that it is made of.
        scale: The factor that it multiplies with, or None.
        joined: Whether the parts lie side by side instead of meeting.
    """

    parts: tuple[Part, ...]
    scale: Scale | None = None
    joined: bool = False


@dataclass(frozen=True)
class Norm:
    """A normalisation over neurons; a narrow one with other gain and eps computes the same of the kept ones.

    A pruned neuron sends the mean of the kept ones of its set (layer and group norm) or 0 (RMS norm), so that over n
    entries of which k are kept the mean square is k/n times that over the kept: `gain * sqrt(n/k)` and `eps * n/k` over
    the kept give the same.

    Attributes:
        node: The operation.
        module: The module that it belongs to.
        weight: Name of its gain, shape (n,).
        axis: The axis that it normalises.
        dim: The dimension of its input along that axis.
        sets: Into how many equal parts the axis falls that are normalised one by one.
        centred: Whether the mean is taken off.
    """

    node: str
    module: str
    weight: str
    axis: Axis
    dim: int
    sets: int
    centred: bool


@dataclass(frozen=True)
class Graph:
    """A network as a directed acyclic graph of neurons.

    Attributes:
        layers: The layers in forward order.
        groups: Their neurons, in the order of each group's first layer.
        slots: For every (tensor name, dimension) that runs along neurons, its axis; biases yet to be created included.
        flow: How importance flows between the values that layers emit and those that layers read.
        program: The traced network, to run on calibration data with any weights.
        others: Why parts that are no layers stay whole, by name.
        reshapes: Source lines that reshape a layer's neurons: where a width may be written into the forward pass.
        norms: Normalisations over neurons that can be removed.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    slots: Mapping[Place, Axis]
    flow: Mapping[Place, Flow]
    program: Program
    others: Mapping[str, str]
    reshapes: tuple[str, ...]
    norms: tuple[Norm, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group_by_name(self) -> Mapping[str, int]:
        """The groups' indices by name."""
        return {group.name: index for index, group in enumerate(self.groups)}

    def groups_of(self, layer: str) -> tuple[Group, ...]:
        """Return the groups that a layer's neurons belong to."""
        return tuple(self.groups[index] for index in self.by_name[layer].made_groups)

    def group_of(self, layer: str) -> Group:
        """Return the (first) group that a layer's neurons belong to."""
        return self.groups_of(layer)[0]

    def whole(self) -> dict[str, str]:
        """Return why each part that stays whole does, by name of the layer or module."""
        layers: dict[str, str] = {}
        for layer in self.layers:
            reasons = [self.groups[index].whole for index in layer.made_groups]
            if all(reasons):
                layers[layer.name] = str(reasons[0])
        return {**layers, **self.others}

    def readers_of(self, group: Group) -> tuple[Layer, ...]:
        """Return the layers that read a group's neurons."""
        return tuple(self.by_name[name] for name in group.readers)

    def kept_entries(
        self, masks: Mapping[str, Tensor], axis: Axis, device: torch.device | None = None
    ) -> Bool[Tensor, " n"]:
        """Expand masks of groups, by name, to a mask of the entries along an axis, True for kept ones."""
        kept = {self.group_by_name[name]: mask for name, mask in masks.items() if name in self.group_by_name}
        return entries(axis, kept, device)


def describe_whole(whole: Mapping[str, str]) -> str:
    """Say why layers stay whole, layers of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in whole.items():
        by_reason.setdefault(reason, []).append(name)
    if not by_reason:
        return "the network has no layer that makes neurons"
    return "; ".join(f"{', '.join(quoted(names))}: {reason}" for reason, names in by_reason.items())


def quoted(names: list[str]) -> list[str]:
    """The first names in quotes, and how many more there are."""
    shown = [f'"{name}"' for name in names[:4]]
    return shown if len(names) <= 4 else [*shown, f"{len(names) - 4} more"]
