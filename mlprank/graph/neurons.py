"""Where the neurons of a traced program are: the notes that are taken while it is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from mlprank.graph.operations import operation, owner_of
from mlprank.graph.records import Flow

OUTPUT = "its neurons are outputs of the network"


@dataclass
class Neurons:
    """Where a value carries neurons: the index of their space, and the dimension along which they lie."""

    space: int
    dim: int


@dataclass
class Space:
    """Neurons that must stay aligned; merged spaces point at their parent."""

    width: int
    parent: int
    reasons: list[str] = field(default_factory=list)


@dataclass
class Notes:
    """What is known of a program while it is read.

    Attributes:
        model: The network, to look up which module owns a tensor.
        exported: The program.
        tensors: The state dict's name for every placeholder that is a parameter or a buffer.
        spaces: The neurons of every linear operation, and why they stay whole.
        values: Which values carry neurons.
        flow: How importance flows between values.
        activations: Operations that count as activations.
        slots: The space that runs along a dimension of a tensor.
        untracked: Dimensions of tensors that also run along something that is no followed neuron.
        claimed: The operations through which neurons are followed along a tensor.
        linears: The uses of every weight by a linear operation, by the weight's name.
        others: Why parts that are no linear layers stay whole.
        reshapes: Source lines that reshape neurons.
        varying: Values that depend on the input.
    """

    model: nn.Module
    exported: ExportedProgram
    tensors: dict[str, str]
    spaces: list[Space] = field(default_factory=list)
    values: dict[fx.Node, Neurons] = field(default_factory=dict)
    flow: dict[fx.Node, Flow] = field(default_factory=dict)
    activations: set[fx.Node] = field(default_factory=set)
    slots: dict[tuple[str, int], int] = field(default_factory=dict)
    untracked: set[tuple[str, int]] = field(default_factory=set)
    claimed: dict[str, set[fx.Node]] = field(default_factory=lambda: defaultdict(set))
    linears: dict[str, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    others: dict[str, str] = field(default_factory=dict)
    reshapes: list[str] = field(default_factory=list)
    varying: set[fx.Node] = field(default_factory=set)

    def new_space(self, width: int) -> int:
        """Start a space of neurons and return its index."""
        self.spaces.append(Space(width=width, parent=len(self.spaces)))
        return len(self.spaces) - 1

    def root(self, space: int) -> int:
        """The space that a space has been merged into."""
        while self.spaces[space].parent != space:
            space = self.spaces[space].parent
        return space

    def merge(self, one: int, other: int) -> None:
        """Let the neurons of two spaces stay together."""
        one, other = sorted((self.root(one), self.root(other)))
        if one != other:
            self.spaces[other].parent = one
            self.spaces[one].reasons += self.spaces[other].reasons

    def width(self, value: fx.Node) -> int:
        """Number of neurons that a value carries."""
        return self.spaces[self.root(self.values[value].space)].width

    def keep_whole(self, node: fx.Node, reason: str) -> None:
        """Say why the neurons of a value cannot be removed."""
        if node in self.values:
            self.spaces[self.root(self.values[node].space)].reasons.append(reason)

    def refuse(self, node: fx.Node, tracked: Iterable[fx.Node], why: str = "") -> None:
        """Keep whole what an operation reads that cannot be narrowed."""
        place = owner_of(node)
        reason = why or f"they feed `{operation(node)}`" + (f' in "{place}"' if place else "")
        for value in tracked:
            self.keep_whole(value, reason)

    def claim(self, placeholder: fx.Node, dim: int, space: int | None, user: fx.Node) -> None:
        """Note that a dimension of a tensor runs along the neurons of a space (or along none that is followed)."""
        name = self.tensors[placeholder.name]
        self.claimed[name].add(user)
        if space is None:
            self.untracked.add((name, dim))
        elif (name, dim) in self.slots:
            self.merge(self.slots[name, dim], space)
        else:
            self.slots[name, dim] = space

    def is_tensor(self, node: Any) -> bool:
        """Whether this is a parameter or a buffer of the network."""
        return isinstance(node, fx.Node) and node.name in self.tensors

    def move(self, node: fx.Node, source: fx.Node, dim: int) -> None:
        """The neurons of `source` lie along `dim` of this value, unchanged."""
        self.values[node] = Neurons(self.values[source].space, dim)
        self.flow[node] = Flow((source.name,))
