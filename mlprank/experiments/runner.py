"""Run the cells of an experiment: what they share is done once, every finished cell is recorded, a failed one stops nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from mlprank.experiments import published
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.grid import NOT_PRUNED
from mlprank.experiments.networks import Trained
from mlprank.experiments.recording import Listener, Recorder
from mlprank.experiments.records import DENSE, CellParameters
from mlprank.experiments.store import RecordStore
from mlprank.experiments.testing import Accuracy
from mlprank.experiments.workbench import Pruned, TestData, Traces, Workbench, load_data

CELL_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    ImportError,
    MemoryError,
    OSError,
)
"""What a network, a measure or data of somebody's can raise; such a cell is recorded as failed."""

_MAX_WAITING_BYTES = 1 << 29


class Runner:
    """Runs what is not finished yet.

    Args:
        config: The experiment.
        networks: The checkpoints that are there.
        store: Where records go.
        listener: Who is told.
    """

    def __init__(
        self, config: ExperimentConfig, networks: Iterable[Trained], store: RecordStore, listener: Listener
    ) -> None:
        self.config, self.store, self.listener = config, store, listener
        self._networks = {(trained.model, trained.dataset, trained.sha256): trained for trained in networks}
        self._traces = Traces()
        self._data: dict[str, TestData] = {}

    def run(self, cells: Iterable[CellParameters]) -> None:
        """Run cells, those of one checkpoint standing together, and record every one.

        Raises:
            OSError: If a record cannot be written.
        """
        finished = self.store.finished
        pending = [cell for cell in cells if cell.key not in finished]
        with Recorder(self.store, self.listener, device=self.config.device) as self._recorder:
            for key, found in groupby(pending, key=lambda cell: (cell.model, cell.dataset, cell.checkpoint_sha256)):
                self._run_checkpoint(self._networks[key], list(found))

    def _run_checkpoint(self, trained: Trained, cells: list[CellParameters]) -> None:
        self.listener.started(cells[:1])
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
        if trained.dataset not in self._data:
            self._data[trained.dataset] = load_data(trained.dataset, data_dir=self.config.data_dir, device=device)
        data = self._data[trained.dataset]
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
            self.listener.started([cell])
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
        self.listener.started(cells)
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
