"""Run the cells of an experiment: what they share is done once, every one is recorded, a failed one stops nothing."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

from mlprank.experiments.cells import Trained
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import CellParameters, CellRecord, current_versions
from mlprank.experiments.store import Array, Outbox, RecordStore
from mlprank.experiments.workbench import Outcome, TestData, Workbench, load_data
from mlprank.graph.records import Graph
from mlprank.grids.progress import FAILURES, Watcher
from mlprank.grids.ray import ray_places, run_units

CELL_ERRORS = (*FAILURES, OSError)
"""What a network, a measure or data of somebody's can raise; such a cell is recorded as failed."""


class Runner:
    """Runs what is not finished yet."""

    def __init__(
        self, config: ExperimentConfig, networks: Iterable[Trained], store: RecordStore | Outbox, watcher: Watcher
    ) -> None:
        self.config, self.store, self.watcher = config, store, watcher
        self._networks = {(trained.model, trained.dataset, trained.sha256): trained for trained in networks}
        self._graphs: dict[object, Graph] = {}
        self._data: dict[object, TestData] = {}

    def share(self, other: Runner) -> None:
        """Take over data and graphs that another runner of the same experiment has read."""
        self._graphs, self._data = other._graphs, other._data

    def run(self, cells: Iterable[CellParameters]) -> None:
        """Run cells, those of one checkpoint standing together, and record every one."""
        pending = [cell for cell in cells if not self.store.is_finished(cell.key)]
        for key, found in groupby(pending, key=lambda cell: (cell.model, cell.dataset, cell.checkpoint_sha256)):
            together = list(found)
            try:
                bench = self._bench(self._networks[key])
            except CELL_ERRORS as error:
                self._record(together, error)
                continue
            for _, drawn in groupby(together, key=_drawn):
                self._run_drawn(bench, list(drawn))

    def _bench(self, trained: Trained) -> Workbench:
        key, device = (trained.dataset, str(sorted(trained.data_args.items()))), self.config.device
        if key not in self._data:
            data_dir = self.config.data_dir
            self._data[key] = load_data(trained.dataset, trained.data_args, data_dir=data_dir, device=device)
        latency = self.config.latency
        return Workbench(trained, self._data[key], graphs=self._graphs, device=device, latency=latency)

    def _run_drawn(self, bench: Workbench, cells: list[CellParameters]) -> None:
        try:
            bench.calibrate(cells[0])
        except CELL_ERRORS as error:
            self._record(cells, error)
            return
        for cell in cells:
            self.watcher.started([cell])
            found: Outcome | BaseException
            try:
                found = bench.run(cell)
            except CELL_ERRORS as error:
                found = error
            self._record([cell], found)

    def _record(self, cells: Iterable[CellParameters], found: Outcome | BaseException) -> None:
        """Record what came out, or why nothing did."""
        done = found if isinstance(found, Outcome) else None
        scores, kept = (None, None) if done is None else (_arrays(done.scores), _arrays(done.kept))
        for cell in cells:
            record = CellRecord(
                parameters=cell,
                status="ok" if done else "failed",
                metrics=done.metrics if done else None,
                error=None if done else f"{type(found).__name__}: {found}",
                timings=done.timings if done else {},
                versions=current_versions(),
                machine=describe_machine(self.config.device),
            )
            self.store.append(record, scores=scores, kept=kept)
            tell(self.watcher, record)


@dataclass(frozen=True)
class Unit:
    """What one actor of Ray runs at a time: cells of one checkpoint, calibration draw and measure."""

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
    """Run what is not finished yet on all devices of this machine or of a cluster.

    All nodes see the results directory under the same path.
    """
    trained = {(found.model, found.dataset, found.sha256): found for found in networks}
    pending = [cell for cell in cells if not store.is_finished(cell.key)]
    option = "{}_per_cell"
    with ray_places(config.address, cpus=config.cpus_per_cell, gpus=config.gpus_per_cell, option=option) as places:
        there = dataclasses.replace(config, device="cuda" if places.gpus else config.device)
        directory = str(store.directory.resolve())
        groups = (tuple(found) for _, found in groupby(pending, key=lambda cell: (_drawn(cell), cell.measure)))
        units = [
            Unit(there, directory, trained[group[0].model, group[0].dataset, group[0].checkpoint_sha256], group)
            for group in groups
        ]
        watcher.note(f"ray: {len(units)} units of work on {places.slots} places")

        def look() -> None:
            for record in store.absorb():
                tell(watcher, record)

        run_units(units, worker=f"{__name__}:UnitRunner", places=places, look=look)


class UnitRunner:
    """What an actor of Ray runs units with; data, and graphs of networks, stay for the next unit."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def run(self, unit: Unit) -> None:
        """Run the cells of a unit that have no record yet."""
        before, outbox = self._runner, Outbox(unit.directory)
        self._runner = Runner(unit.config, [unit.trained], outbox, Watcher())
        if before is not None and before.config == unit.config:
            self._runner.share(before)
        self._runner.run(unit.cells)


def tell(watcher: Watcher, record: CellRecord) -> None:
    """Tell a watcher of a record that is on the disk."""
    if record.status == "ok":
        watcher.finished(record.parameters, record)
    else:
        watcher.failed(record.parameters, str(record.error))


def _drawn(cell: CellParameters) -> tuple[object, ...]:
    """What cells share that are pruned from one calibration."""
    return cell.checkpoint_sha256, cell.model, cell.dataset, cell.graph, cell.calibration_samples, cell.calibration_seed


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array] | None:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} or None


@functools.cache
def describe_machine(device: str) -> dict[str, str]:
    """Say where cells run: the processor or accelerator, and the number of threads."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        try:
            with open("/proc/cpuinfo", encoding="utf-8") as file:
                name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        except (OSError, StopIteration):
            name = platform.processor() or platform.machine()
    return {"device": name, "threads": str(torch.get_num_threads())}
