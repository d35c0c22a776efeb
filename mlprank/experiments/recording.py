"""Records written while the next cells are computed: a thread of its own waits for the disk."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from mlprank.experiments.records import CellMetrics, CellParameters, CellRecord, current_versions
from mlprank.experiments.store import RecordStore


class Listener(Protocol):
    """Is told how an experiment goes."""

    def started(self, cells: Sequence[CellParameters]) -> None:
        """These cells are worked on now."""

    def ended(self, record: CellRecord) -> None:
        """This cell is on the disk; called by the thread that wrote it."""


class Recorder:
    """Writes records in order. Leaving it waits until all are on the disk.

    Args:
        store: Where they go.
        listener: Is told of every record.
        device: Where the cells run.
    """

    def __init__(self, store: RecordStore, listener: Listener, *, device: str) -> None:
        self._store, self._listener = store, listener
        self._machine = describe_machine(device)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="records")
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise_if_failed(self._waiting)

    def record(
        self,
        cell: CellParameters,
        *,
        metrics: CellMetrics | None = None,
        error: str | None = None,
        timings: Mapping[str, float] | None = None,
        scores: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Hand over one cell.

        Raises:
            OSError: If an earlier one could not be written.
        """
        record = CellRecord(
            parameters=cell,
            status="ok" if error is None else "failed",
            metrics=metrics,
            error=error,
            timings=timings or {},
            versions=current_versions(),
            machine=self._machine,
        )
        done = [future for future in self._waiting if future.done()]
        self._waiting = [future for future in self._waiting if not future.done()]
        self._raise_if_failed(done)
        self._waiting.append(self._pool.submit(self._write, record, _arrays(scores), _arrays(kept)))

    def _write(self, record: CellRecord, scores: dict[str, Any] | None, kept: dict[str, Any] | None) -> None:
        self._store.append(record, scores=scores, kept=kept)
        self._listener.ended(record)

    @staticmethod
    def _raise_if_failed(futures: Sequence[Future[None]]) -> None:
        for future in futures:
            future.result()


def describe_machine(device: str) -> dict[str, str]:
    """Say where cells run: the processor or accelerator, and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": name, "threads": str(torch.get_num_threads())}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _arrays(tensors: Mapping[str, Tensor] | None) -> dict[str, Any] | None:
    return None if tensors is None else {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
