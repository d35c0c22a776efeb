"""Run the cells of an experiment: what they share is done once, every finished cell is recorded, a failed one stops nothing."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from mlprank.experiments import published
from mlprank.experiments.cells import NOT_PRUNED, Trained
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, CellMetrics, CellParameters, CellRecord, current_versions
from mlprank.experiments.store import Outbox, RecordStore
from mlprank.experiments.variants import Accuracy
from mlprank.experiments.workbench import Pruned, TestData, Traces, Workbench, load_data
from mlprank.grids.engine import FAILURES, Silent, Watcher
from mlprank.grids.ray import ray_places, run_units

CELL_ERRORS = (*FAILURES, OSError)
"""What a network, a measure or data of somebody's can raise; such a cell is recorded as failed."""

_MAX_WAITING_BYTES = 1 << 29


class Runner:
    """Runs what is not finished yet.

    Args:
        config: The experiment.
        networks: The checkpoints that are there.
        store: Where records go.
        watcher: Who is told.
    """

    def __init__(
        self, config: ExperimentConfig, networks: Iterable[Trained], store: RecordStore | Outbox, watcher: Watcher
    ) -> None:
        self.config, self.store, self.watcher = config, store, watcher
        self._networks = {(trained.model, trained.dataset, trained.sha256): trained for trained in networks}
        self._traces = Traces()
        self._data: dict[object, TestData] = {}

    def share(self, other: Runner) -> None:
        """Take over data and graphs that another runner of the same experiment has read."""
        self._traces, self._data = other._traces, other._data

    def run(self, cells: Iterable[CellParameters]) -> None:
        """Run cells, those of one checkpoint standing together, and record every one.

        Raises:
            OSError: If a record cannot be written.
        """
        pending = [cell for cell in cells if not self.store.is_finished(cell.key)]
        with Recorder(self.store, self.watcher, device=self.config.device) as self._recorder:
            for key, found in groupby(pending, key=lambda cell: (cell.model, cell.dataset, cell.checkpoint_sha256)):
                self._run_checkpoint(self._networks[key], list(found))

    def _run_checkpoint(self, trained: Trained, cells: list[CellParameters]) -> None:
        self.watcher.started(cells[:1])
        try:
            bench = self._bench(trained)
        except CELL_ERRORS as error:
            self._fail(cells, error)
            return
        for _, found in groupby(cells, key=lambda cell: (cell.graph, cell.calibration_samples, cell.calibration_seed)):
            drawn = list(found)
            if drawn[0].graph == NOT_PRUNED:
                self._run_dense(bench, drawn)
                continue
            if drawn[0].graph == published.GRAPH:
                self._run_published(bench, drawn)
                continue
            try:
                bench.calibrate(drawn[0])
            except CELL_ERRORS as error:
                self._fail(drawn, error)
                continue
            for _, together in groupby(drawn, key=lambda cell: (cell.compensation, cell.protect_output, cell.measure)):
                self._run_together(bench, list(together))

    def _bench(self, trained: Trained) -> Workbench:
        device = self.config.device
        key = trained.dataset, str(sorted(trained.data_args.items()))
        if key not in self._data:
            self._data[key] = load_data(
                trained.dataset, trained.data_args, data_dir=self.config.data_dir, device=device
            )
        data = self._data[key]
        return Workbench(trained, data, traces=self._traces, device=device, latency=self.config.latency)

    def _run_dense(self, bench: Workbench, cells: Iterable[CellParameters]) -> None:
        for cell in cells:
            assert cell.measure == DENSE
            self._recorder.record(cell, metrics=bench.dense_metrics())

    def _run_published(self, bench: Workbench, cells: Sequence[CellParameters]) -> None:
        """Prune and test under the published conditions, one cell after the other."""
        try:
            conditions = published.PublishedBench(
                bench.network, bench.data.module, num_samples=cells[0].calibration_samples, flops=bench.before.flops
            )
        except CELL_ERRORS as error:
            self._fail(cells, error)
            return
        for cell in cells:
            self.watcher.started([cell])
            try:
                found = conditions.run(cell)
            except CELL_ERRORS as error:
                self._fail([cell], error)
            else:
                self._recorder.record(
                    cell, metrics=found.metrics, timings=found.timings, scores=found.scores, kept=found.kept
                )

    def _run_together(self, bench: Workbench, cells: Sequence[CellParameters]) -> None:
        """Prune in every way, then test all that came out together."""
        self.watcher.started(cells)
        for group in _within_memory(self._pruned(bench, cells)):
            started = time.perf_counter()
            accuracies = bench.test.accuracies([pruned.variant for pruned in group])
            share = (time.perf_counter() - started) / len(group)
            tested: list[tuple[Pruned, Accuracy]] = []
            for pruned, accuracy in zip(group, accuracies, strict=True):
                if isinstance(accuracy, ValueError):
                    self._fail([pruned.cell], accuracy)
                else:
                    tested.append((pruned, accuracy))
            for (pruned, _), metrics in zip(tested, bench.measure(tested), strict=True):
                timings = {**pruned.timings, "evaluate_s": share}
                self._recorder.record(
                    pruned.cell, metrics=metrics, timings=timings, scores=pruned.scores, kept=pruned.kept
                )

    def _pruned(self, bench: Workbench, cells: Iterable[CellParameters]) -> Iterator[Pruned]:
        for cell in cells:
            try:
                pruned = bench.prune(cell)
            except CELL_ERRORS as error:
                self._fail([cell], error)
            else:
                yield pruned

    def _fail(self, cells: Iterable[CellParameters], error: BaseException) -> None:
        for cell in cells:
            self._recorder.record(cell, error=f"{type(error).__name__}: {error}")


def _within_memory(pruned: Iterator[Pruned]) -> Iterator[list[Pruned]]:
    """Groups of pruned networks that are small enough to be kept at the same time."""
    group: list[Pruned] = []
    num_bytes = 0
    for each in pruned:
        group.append(each)
        num_bytes += each.after.size_bytes
        if num_bytes > _MAX_WAITING_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


@dataclass(frozen=True)
class Unit:
    """What one actor of Ray runs at a time: cells of one checkpoint and calibration draw."""

    config: ExperimentConfig
    directory: str
    trained: Trained
    cells: tuple[CellParameters, ...]


def run_on_ray(
    config: ExperimentConfig,
    networks: Iterable[Trained],
    store: RecordStore,
    watcher: Watcher,
    cells: Iterable[CellParameters],
) -> None:
    """Run what is not finished yet on all devices of this machine or of a cluster, which see the results directory under the same path.

    Args:
        config: The experiment.
        networks: The checkpoints that are there.
        store: Where records go.
        watcher: Who is told.
        cells: The cells, those of one checkpoint standing together.
    """
    trained = {(found.model, found.dataset, found.sha256): found for found in networks}
    pending = [cell for cell in cells if not store.is_finished(cell.key)]
    groups = [list(found) for _, found in groupby(pending, key=lambda cell: (*_drawn(cell), cell.measure))]
    with ray_places(
        config.address, cpus=config.cpus_per_cell, gpus=config.gpus_per_cell, option="{}_per_cell"
    ) as places:
        device = "cuda" if places.gpus else config.device
        units = [
            Unit(
                dataclasses.replace(config, device=device),
                str(store.directory.resolve()),
                trained[group[0].model, group[0].dataset, group[0].checkpoint_sha256],
                tuple(group),
            )
            for group in groups
        ]
        watcher.note(f"ray: {len(units)} units of work on {places.slots} places")
        run_units(units, worker=f"{__name__}:UnitRunner", places=places, look=lambda: _absorb(store, watcher))


class UnitRunner:
    """What an actor of Ray runs units with; data, and graphs of networks, stay for the next unit."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def run(self, unit: Unit) -> None:
        """Run the cells of a unit that have no record yet."""
        before, outbox = self._runner, Outbox(unit.directory)
        self._runner = Runner(unit.config, [unit.trained], outbox, Silent())
        if before is not None and before.config == unit.config:
            self._runner.share(before)
        self._runner.run(unit.cells)


def _absorb(store: RecordStore, watcher: Watcher) -> None:
    for record in store.absorb():
        tell(watcher, record)


def tell(watcher: Watcher, record: CellRecord) -> None:
    """Tell a watcher of a record that is on the disk."""
    if record.status == "ok":
        watcher.finished(record.parameters, record)
    else:
        watcher.failed(record.parameters, str(record.error))


def _drawn(cell: CellParameters) -> tuple[object, ...]:
    """What cells share that are pruned from one calibration."""
    return cell.model, cell.dataset, cell.checkpoint_sha256, cell.graph, cell.calibration_samples, cell.calibration_seed


class Recorder:
    """Writes records in order. Leaving it waits until all are on the disk.

    Args:
        store: Where they go.
        watcher: Is told of every record, by the thread that wrote it.
        device: Where the cells run.
    """

    def __init__(self, store: RecordStore | Outbox, watcher: Watcher, *, device: str) -> None:
        self._store, self._watcher = store, watcher
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
        tell(self._watcher, record)

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
