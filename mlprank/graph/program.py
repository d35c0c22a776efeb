"""A traced network as a function of its weights: the same program runs dense, masked or half pruned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from mlprank.graph.operations import is_in_place
from mlprank.utils.errors import first_line

Observer = Callable[[str, Tensor], None]


def _nothing(name: str, value: Tensor) -> None:
    """Look away."""


class _FinishedError(Exception):
    """Everything that was to be observed has been."""


class _Watcher(fx.Interpreter):
    """Runs the program and shows the watched values: reads when an operation reads them, outputs when they are made.

    Reads are shown at the moment of reading, so that an operation that later overwrites its input in place changes nothing.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        *,
        read: Mapping[str, str],
        made: Collection[str],
        on_read: Observer,
        on_made: Observer,
    ) -> None:
        super().__init__(module)
        self.read, self.made, self.on_read, self.on_made = read, made, on_read, on_made
        watched = [node for node in module.graph.nodes if node.name in made or node.name in read]
        self.last = watched[-1] if watched else None
        self.seen: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        source = self.read.get(n.name)
        if source is not None and source not in self.seen:
            self.seen.add(source)
            (value,) = self.fetch_args_kwargs_from_env(n)[0][:1]
            self.on_read(source, value)
        result = super().run_node(n)
        if n.name in self.made:
            self.on_made(n.name, result)
        if n is self.last:
            raise _FinishedError
        return result


@dataclass(frozen=True)
class Program:
    """A traced network.

    Attributes:
        exported: What `torch.export` gave.
        tensors: The state dict's name for every placeholder that is a parameter or a buffer.
        reads: For every linear operation the value that it reads, in forward order.
    """

    exported: ExportedProgram
    tensors: Mapping[str, str]
    reads: Mapping[str, str]

    @cached_property
    def _overwrites(self) -> bool:
        return any(is_in_place(node.target) for node in self.exported.graph.nodes)

    def observe(
        self,
        state: Mapping[str, Tensor],
        batch: Tensor,
        *,
        sources: Collection[str] = (),
        on_read: Observer = _nothing,
        made: Collection[str] = (),
        on_made: Observer = _nothing,
    ) -> None:
        """Run the program on a batch as far as needed and show values on the way.

        Args:
            state: The weights to run with, by the names of the state dict; left as they are.
            batch: Inputs, shape (N, ...); left as they are.
            sources: Values to show when a linear layer first reads them.
            on_read: Called with the name and the value of those; it must not keep or change the value.
            made: Values to show when they are made.
            on_made: Called with the name and the value of those, likewise.

        Raises:
            ValueError: If the program cannot run this batch.
        """
        read = {node: source for node, source in self.reads.items() if source in sources}
        watcher = _Watcher(
            self.exported.graph_module, read=read, made=frozenset(made), on_read=on_read, on_made=on_made
        )
        if watcher.last is None:
            return
        if self._overwrites:
            batch = batch.clone()
            buffers = set(self.exported.graph_signature.inputs_to_buffers.values())
            state = {name: tensor.clone() if name in buffers else tensor for name, tensor in state.items()}
        placeholders = [node.name for node in self.exported.graph.nodes if node.op == "placeholder"]
        arguments = [self._argument(name, state, batch) for name in placeholders]
        try:
            with torch.no_grad():
                watcher.run(*arguments, enable_io_processing=False)
        except _FinishedError:
            return
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"calibration: the traced network cannot run a batch of shape {tuple(batch.shape)} ({first_line(error)});"
                " give batches of one shape, and write the forward for any batch size"
            ) from error

    def _argument(self, placeholder: str, state: Mapping[str, Tensor], batch: Tensor) -> Any:
        if placeholder in self.tensors:
            return state[self.tensors[placeholder]]
        constants = self.exported.graph_signature.inputs_to_lifted_tensor_constants
        return self.exported.constants[constants[placeholder]] if placeholder in constants else batch
