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

from mlprank.graph.axes import Axis, size_of
from mlprank.graph.layers import Kind
from mlprank.graph.program import Program

State = Mapping[str, Tensor]
Place = tuple[str, int]
"""A value (or tensor) by its name, and one of its dimensions."""


@dataclass(frozen=True)
class Scale:
    """A per-channel factor between two values: an evaluation-mode normalisation, a learned gain, or a depthwise kernel.

    Its fields are names of tensors: the gain, shape (n,), or the kernel, shape (n, ...), and the running variance.
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
    """One use of a layer's weights in the forward pass."""

    node: str  # the operation, whose value is the layer's output before any activation
    place: Place  # the value that it reads, and the dimension along the inputs
    out_dim: int  # the dimension of the operation's value along the outputs
    emitted: Place  # what the neurons send on: the value after normalisation and activation, and the dimension
    scales: tuple[Scale, ...]  # the factors between `node` and the activation
    bias: str | None  # name of the bias that is its own, or that can be created; None where there is no place for one
    kind: Kind  # how it uses the weights


@dataclass(frozen=True)
class Layer:
    """One weight and every use of it in one way."""

    name: str  # the module's, or the parameter's where no module owns it
    weight: str  # name of the weight
    made: Axis  # along its outputs; segments name groups
    read: Axis  # along its inputs; entries that are no followed neurons are segments of None
    calls: tuple[Call, ...]  # in forward order
    tied: bool = False  # the weight is also used in another way, so that it cannot be fitted anew for this one

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
        return tuple(dict.fromkeys(call.bias for call in self.calls if call.bias is not None))

    @property
    def made_groups(self) -> tuple[int, ...]:
        """Indices of the groups that its outputs belong to, each once."""
        return tuple(dict.fromkeys(segment.space for segment in self.made if segment.space is not None))

    @property
    def read_groups(self) -> tuple[int, ...]:
        """Indices of the groups that it reads, each once."""
        return tuple(dict.fromkeys(segment.space for segment in self.read if segment.space is not None))


@dataclass(frozen=True)
class Group:
    """Neurons that can only be removed together: neuron j of every layer here is the same channel."""

    name: str  # the first layer's, with the range of its outputs where it makes neurons of several groups
    layers: tuple[str, ...]  # that make the neurons, in forward order
    width: int  # number of neurons
    readers: tuple[str, ...]  # the layers that read the neurons, in forward order
    whole: str | None  # why no neuron of the group can be removed
    output: bool  # the neurons are outputs of the network
    varying: bool = False  # they are multiplied with other values of the input: a zeroed one sends a constant only if 0
    moved: bool = False  # other values of the input are added to them: what a zeroed one sends is no constant
    written: str | None = None  # a source line at which their number may be written into the forward pass


@dataclass(frozen=True)
class Part:
    """One value that importance comes from: entries from `start` to `stop` along `dim`."""

    value: str
    dim: int
    start: int
    stop: int
    block: int = 1  # every entry becomes so many
    repeat: int = 1  # all of them come so many times


@dataclass(frozen=True)
class Flow:
    """How importance reaches a value from the values before it."""

    parts: tuple[Part, ...]
    scale: Scale | None = None  # the factor that it multiplies with
    joined: bool = False  # the parts lie side by side instead of meeting


@dataclass(frozen=True)
class Norm:
    """A normalisation over neurons; a narrow one with other gain and eps computes the same of the kept ones.

    A pruned neuron sends the mean of the kept ones of its set (layer and group norm) or 0 (RMS norm), so that over n
    entries of which k are kept the mean square is k/n times that over the kept: `gain * sqrt(n/k)` and `eps * n/k` over
    the kept give the same.
    """

    node: str  # the operation
    module: str  # that it belongs to
    weight: str  # name of its gain, shape (n,)
    axis: Axis  # that it normalises
    dim: int  # the dimension of its input along that axis
    sets: int  # equal parts of the axis that are normalised one by one
    centred: bool  # the mean is taken off


@dataclass(frozen=True)
class Graph:
    """A network as a directed acyclic graph of neurons."""

    layers: tuple[Layer, ...]  # in forward order
    groups: tuple[Group, ...]  # their neurons, in the order of each group's first layer
    slots: Mapping[Place, Axis]  # of (tensor, dimension) along neurons the axis, of biases yet to be created, too
    flow: Mapping[Place, Flow]  # of importance between the values that layers emit and those that layers read
    program: Program  # the traced network, to run on calibration data with any weights
    others: Mapping[str, str]  # why parts that are no layers stay whole, by name
    norms: tuple[Norm, ...] = ()  # normalisations over neurons that can be removed

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def group_by_name(self) -> Mapping[str, int]:
        """The groups' indices by name."""
        return {group.name: index for index, group in enumerate(self.groups)}

    def group_of(self, layer: str) -> Group:
        """Return the (first) group that a layer's neurons belong to."""
        return self.groups[self.by_name[layer].made_groups[0]]

    def readers_of(self, group: Group) -> tuple[Layer, ...]:
        """Return the layers that read a group's neurons."""
        return tuple(self.by_name[name] for name in group.readers)

    def kept_entries(
        self, masks: Mapping[str, Tensor], axis: Axis, device: torch.device | None = None
    ) -> Bool[Tensor, " n"]:
        """Expand masks of groups, by name, to a mask of the entries along an axis, True for kept ones."""
        parts = []
        for segment in axis:
            kept = None if segment.space is None else masks.get(self.groups[segment.space].name)
            kept = torch.ones(segment.width, dtype=torch.bool) if kept is None else kept
            parts.append(kept.to(device).repeat_interleave(segment.block))
        return torch.cat(parts)


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
