"""What the variants of a network share on the test set: everything that pruning does not change, computed once by the dense network.

The first linear layers of all variants are rows of the dense network's, and the layers that read only those differ from the dense ones by
the neurons that are gone. Deeper layers read what pruning changed and are run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.experiments.stand_ins import Clock, Columns, DenseLayer, Difference, RowMajor, Unread, cut_of
from mlprank.graph.records import Graph, Layer

MAX_BYTES = 1 << 30
"""Memory for the dense network's values; layers that do not fit are not shared."""


Slices = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Variant:
    """A pruned network and where its narrow tensors come from: kept indices by tensor name and dimension."""

    model: nn.Module
    slices: Slices


class Sharing:
    """The shared layers of a network.

    Args:
        dense: The dense network.
        graph: Its graph.
        num_images: How many images it will be tested on.
    """

    def __init__(self, dense: nn.Module, graph: Graph, *, num_images: int) -> None:
        self.clock = Clock()
        self.firsts: dict[str, DenseLayer] = {}
        self.seconds: dict[str, DenseLayer] = {}
        self._linears = [layer.name for layer in graph.layers if _own_module(dense, layer) is not None]
        self._sole_readers: dict[str, str] = {}
        left = MAX_BYTES
        for layer in graph.layers:
            module = _own_module(dense, layer)
            reads_input = layer.source_group is None
            below = () if layer.source_group is None else graph.groups[layer.source_group].layers
            follows = len(below) == 1 and below[0] in self.firsts
            num_values = layer.out_features if reads_input else layer.in_features + layer.out_features
            num_bytes = num_images * num_values * 4
            if module is not None and (reads_input or follows) and num_bytes <= left:
                left -= num_bytes
                (self.firsts if reads_input else self.seconds)[layer.name] = DenseLayer(module)
                if follows and graph.groups[graph.by_name[below[0]].group].readers == (layer.name,):
                    self._sole_readers[below[0]] = layer.name

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Keep the values of the dense network's layers while it is run chunk by chunk, `clock.chunk` counting."""
        handles = [
            layer.module.register_forward_hook(_keeper(layer, with_inputs=name in self.seconds))
            for name, layer in {**self.firsts, **self.seconds}.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layers in (self.firsts, self.seconds):
                for name in [name for name, layer in layers.items() if len(layer.outputs) != self.clock.chunk + 1]:
                    del layers[name]
            known = {**self.firsts, **self.seconds}
            self._sole_readers = {a: b for a, b in self._sole_readers.items() if a in known and b in known}

    @contextmanager
    def swapped(self, variants: Sequence[Variant]) -> Iterator[list[int]]:
        """Put stand-ins in place of the variants' shared layers meanwhile.

        Yields:
            The numbers of the variants in the order in which they are to be run on every chunk.
        """
        order = sorted(range(len(variants)), key=lambda number: -_num_parameters(variants[number].model))
        swapped: list[tuple[nn.Module, str, nn.Module]] = []
        made: dict[str, list[Difference]] = {name: [] for name in self.seconds}
        try:
            for number in order:
                model, slices = variants[number].model, variants[number].slices
                parts = self._stand_ins(model, slices, made)
                for name, part in parts.items():
                    swapped.append((model, name, model.get_submodule(name)))
                    model.set_submodule(name, part)
            yield order
        finally:
            for model, name, own in swapped:
                model.set_submodule(name, own)

    def _stand_ins(
        self, model: nn.Module, slices: Slices, made: Mapping[str, list[Difference]]
    ) -> dict[str, nn.Module]:
        """The stand-ins of one variant by layer."""
        parts: dict[str, nn.Module] = {}
        for name in self._linears:
            own = model.get_submodule(name)
            assert isinstance(own, nn.Linear)
            dims = slices.get(f"{name}.weight", {})
            layer = self.firsts.get(name) or self.seconds.get(name)
            cut = None if layer is None else cut_of(own, layer.module, rows=dims.get(0), columns=dims.get(1))
            if layer is None or cut is None:
                parts[name] = RowMajor(own)
            elif name in self.firsts:
                parts[name] = Columns(layer, cut, self.clock)
            else:
                difference = Difference(layer, cut, self.clock, made[name])
                parts[name] = difference if difference.saves else RowMajor(own)
                if difference.saves:
                    made[name].append(difference)
        for name, reader in self._sole_readers.items():
            if isinstance(parts[name], Columns) and isinstance(parts[reader], Difference):
                parts[name] = Unread(model.get_parameter(f"{name}.weight").shape[0])
        return parts


def _own_module(dense: nn.Module, layer: Layer) -> nn.Linear | None:
    """The module of a layer that is used once, as a plain linear layer."""
    if len(layer.calls) != 1 or layer.calls[0].owner != layer.name or layer.weight != f"{layer.name}.weight":
        return None
    module = dense.get_submodule(layer.name)
    return module if isinstance(module, nn.Linear) and type(module) is nn.Linear else None


def _keeper(layer: DenseLayer, *, with_inputs: bool) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    """A hook that keeps a layer's values, neurons as rows; values with further dimensions are left."""

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.dim() == 2 and output.dtype == torch.float32:
            layer.outputs.append(_as_rows(output))
            if with_inputs:
                ones = output.new_ones(1, len(output))
                layer.inputs.append(torch.cat([_as_rows(inputs[0]), ones]))

    return keep


def _as_rows(values: Tensor) -> Tensor:
    copied = torch.empty(values.shape[1], values.shape[0], dtype=values.dtype, device=values.device)
    return copied.copy_(values.T)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
