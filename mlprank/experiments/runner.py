"""Run the cells of an experiment: what they share is done once, every one is recorded, a failed one stops nothing."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlprank.artifact.checkpoint import sha256
from mlprank.artifact.record import versions
from mlprank.artifact.spec import construct
from mlprank.costs.metrics import ModelMetrics, count_nonzero, measure_latency_for, measure_model, ranks_of
from mlprank.datamodules import get_dataset
from mlprank.experiments.cells import GIVE, NOT_PRUNED, Trained, load_network, recipe_of
from mlprank.experiments.config import PUBLISHED, ExperimentConfig
from mlprank.experiments.records import Array, CellMetrics, CellParameters, CellRecord, LayerWidth, Outbox, RecordStore
from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.grids.progress import Watcher
from mlprank.grids.ray import ray_places, run_units
from mlprank.measures import get_measure
from mlprank.methods import get_method
from mlprank.pruning.pipeline import Pruning, prune
from mlprank.pruning.result import PruningResult
from mlprank.thesis import PublishedConditions
from mlprank.utils.errors import FAILURES
from mlprank.utils.modules import check_fit, evaluating, sole_tensor

CELL_ERRORS = (*FAILURES, OSError)
"""What a network, a measure or data of somebody's can raise; such a cell is recorded as failed."""
BATCH_SIZE = 64
"""As in `mlprank.prune_mlp`."""
_CHUNK = 512


@dataclass(frozen=True)
class TestData:
    """A data set: its test images (N, C, H, W) and labels (N,) in memory, and its module, ready for training too."""

    module: Any
    images: Tensor
    labels: Tensor

    def calibration(self, num_samples: int, *, seed: int) -> Any:
        """Return calibration batches, or the data module itself where it draws none."""
        draw = getattr(self.module, "calibration_dataloader", None)
        return self.module if draw is None else draw(num_samples, seed=seed)


@dataclass(frozen=True)
class Outcome:
    """What came out of a cell. Masks are True for kept neurons, times seconds."""

    metrics: CellMetrics
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)


def load_data(name: str, arguments: Mapping[str, Any], *, data_dir: str | None, device: str) -> TestData:
    """Read a data set and put its test images on a device as the network takes them."""
    cls: Any = get_dataset(name)
    known = inspect.signature(cls).parameters
    usual = {key: value for key, value in {"batch_size": BATCH_SIZE, "data_dir": data_dir}.items() if key in known}
    module = construct(cls, {**usual, **arguments}, named=name, remedy=GIVE.format("data_args"))
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    images, labels = (torch.cat(parts).to(device) for parts in zip(*module.test_dataloader(), strict=True))
    return TestData(module, images, labels)


class Workbench:
    """A trained network with its data, traced once; prunes and tests.

    `graphs` are those that are known already, by class and sizes of the network; a new one is added.
    """

    def __init__(
        self, trained: Trained, data: TestData, *, graphs: dict[object, Graph], device: str, latency: bool
    ) -> None:
        self.data, self.latency, self.example = data, latency, data.images[:BATCH_SIZE]
        self.network = load_network(trained).to(device)
        check_fit(self.network, self.example[:2], who="experiment")
        kind = (type(self.network), str(getattr(self.network, "init_args", None)), _sizes(self.network))
        if kind not in graphs:
            graphs[kind] = trace(self.network, self.example)
        self.graph = graphs[kind]
        self._first, self._known = self.graph.layers[0].name, list[Tensor]()
        first = dict(self.network.named_modules()).get(self._first)
        shared = first if type(first) is nn.Linear else nn.Module()
        keeping = shared.register_forward_hook(lambda _, inputs, output: self._known.append(output.clone()))
        self.dense = accuracies(self.network, data.images, data.labels)
        keeping.remove()
        self.before = measure_model(self.network, self.example[:1])
        self._scores: dict[object, dict[str, Tensor]] = {}
        self._costs: dict[object, tuple[ModelMetrics, ModelMetrics]] = {}
        self._drawn: Pruning | PublishedConditions | None = None

    def calibrate(self, cell: CellParameters) -> None:
        """Make ready for the cells of one graph and calibration draw; what was measured for another is dropped."""
        self._scores.clear()
        if cell.graph == PUBLISHED:
            # Under the published conditions the dense network is tested with batch norms in training mode, too.
            self._drawn = PublishedConditions(self.network, self.data.module, batch_size=cell.calibration_samples)
            self._published_dense = self._drawn.accuracies(self._drawn.network)
        elif cell.graph != NOT_PRUNED:
            loader = self.data.calibration(cell.calibration_samples, seed=cell.calibration_seed)
            self._drawn = Pruning(self.network, loader, recipe_of(cell), traced=self.graph)

    def run(self, cell: CellParameters) -> Outcome:
        """Prune in the way of a cell and test; `calibrate` comes first."""
        if cell.graph == NOT_PRUNED:
            whole = {layer.name: torch.ones(layer.out_features) for layer in self.graph.layers}
            return Outcome(_metrics(self.dense, self.dense, self._measured(self.network), whole, achieved=0.0))
        if isinstance(self._drawn, PublishedConditions):
            return self._run_published(self._drawn, cell)
        assert self._drawn is not None
        started = time.perf_counter()
        recipe = recipe_of(cell)
        scores = None  # where they depend on more than measure and draw
        if not (recipe.scores_by_amount or recipe.scores_on_pruned):
            key = (cell.measure, str(sorted(cell.measure_args.items())))
            if key not in self._scores:
                self._scores[key] = self._drawn.scores(recipe, amounts={})
            scores = self._scores[key]
        scored = time.perf_counter()
        result = self._drawn.run(recipe, scores=scores)
        pruned = time.perf_counter()
        top = self.test(result)
        tested = time.perf_counter()
        masks = {name: result.masks.get(name, torch.ones(len(found))) for name, found in result.scores.items()}
        metrics = _metrics(top, self.dense, self._measured(result.model), masks, achieved=result.achieved)
        timings = {"score_s": scored - started, "prune_s": pruned - scored, "evaluate_s": tested - pruned}
        return Outcome(metrics, result.scores, result.masks, timings)

    def test(self, result: PruningResult) -> tuple[float, float]:
        """Test a narrow network; what a first layer computes that lost rows alone is looked up in the dense one's."""
        images, labels = self.data.images, self.data.labels
        mask = result.masks.get(self._first)
        if not self._known or mask is None:
            return accuracies(result.model, images, labels)
        kept = mask.nonzero().flatten().to(images.device)
        dense, first = (network.get_submodule(self._first) for network in (self.network, result.model))
        rows = [(part, getattr(dense, name)) for name, part in first.named_parameters()]
        if not all(torch.equal(part, whole[kept]) for part, whole in rows):
            return accuracies(result.model, images, labels)
        result.model.set_submodule(self._first, _Known(batch.index_select(-1, kept) for batch in self._known))
        try:
            return accuracies(result.model, images, labels)
        finally:
            result.model.set_submodule(self._first, first)

    def _run_published(self, conditions: PublishedConditions, cell: CellParameters) -> Outcome:
        """Nothing is removed, as published: parameters and FLOPs after pruning are those that are not zero."""
        started = time.perf_counter()
        measure, method = get_measure(cell.measure, **cell.measure_args), get_method(cell.method, **cell.method_args)
        pruned = conditions.prune(amount=cell.amount, measure=measure, method=method)
        ended = time.perf_counter()
        top, dense = conditions.accuracies(pruned.network), self._published_dense
        timings = {"prune_s": ended - started, "evaluate_s": time.perf_counter() - ended}
        zeros = sum(int((pruned.network.get_parameter(f"{name}.weight") == 0).sum()) for name in pruned.masks)
        left, flops = count_nonzero(pruned.network), self.before.flops - 2 * zeros
        costs = self.before, replace(self.before, num_parameters=left, flops=flops)
        total = sum(map(len, pruned.masks.values()))
        achieved = sum(int((~mask).sum()) for mask in pruned.masks.values()) / total if total else 0.0
        metrics = _metrics((top[1], top[5]), (dense[1], dense[5]), costs, pruned.masks, achieved=achieved)
        return Outcome(metrics, pruned.scores, pruned.masks, timings)

    def _measured(self, network: nn.Module) -> tuple[ModelMetrics, ModelMetrics]:
        """What the dense and a pruned network cost, timed in turns; measured once for all networks of its sizes."""
        sizes = _sizes(network)
        if sizes not in self._costs:
            before, after = self.before, measure_model(network, self.example[:1])
            if self.latency:
                models = {"dense": self.network, "pruned": network}
                timed = measure_latency_for(models, self.example, seconds=0.012, least=5, most=30)
                before = replace(before, latency_s=timed["dense"].median_s)
                after = replace(after, latency_s=timed["pruned"].median_s)
            self._costs[sizes] = before, after
        return self._costs[sizes]


class _Known(nn.Module):
    """Stands for a layer whose outputs are known, batch by batch."""

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._outputs = iter(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return next(self._outputs)


def _metrics(
    top: tuple[float, float],
    dense: tuple[float, float],
    costs: tuple[ModelMetrics, ModelMetrics],
    masks: Mapping[str, Tensor],
    *,
    achieved: float,
) -> CellMetrics:
    counted: dict[str, Any] = {
        f"{name}_{when}": getattr(metrics, name)
        for when, metrics in zip(("before", "after"), costs, strict=True)
        for name in ("num_parameters", "flops", "size_bytes", "latency_s")
    }
    layers = tuple(LayerWidth(name=name, width=len(mask), kept=int(mask.sum())) for name, mask in masks.items())
    accuracy: dict[str, Any] = {"top1": top[0], "top5": top[1], "dense_top1": dense[0], "dense_top5": dense[1]}
    return CellMetrics(**accuracy, achieved_amount=achieved, **counted, layers=layers)


def _sizes(network: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shapes of everything that a network holds, which its costs follow from."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())


def accuracies(network: nn.Module, images: Float[Tensor, "n ..."], labels: Int[Tensor, " n"]) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy, fractions, on images in memory; of equal logits the lower class comes first."""
    ranks = []
    with evaluating(network), torch.inference_mode():
        for batch, wanted in zip(*(torch.split(part, _CHUNK) for part in (images, labels)), strict=True):
            logits = sole_tensor(network(batch), who="experiment")
            if not logits.isfinite().all():
                raise ValueError("the network gives logits that are not finite; look at its weights and at the amount")
            if int(wanted.max()) >= logits.shape[1]:
                raise ValueError(
                    f"label {int(wanted.max())} is not a class of a network with {logits.shape[1]} outputs; is the "
                    "checkpoint one for another data set?"
                )
            ranks.append(ranks_of(wanted, logits))
    found = torch.cat(ranks)
    top1, top5 = ((found < k).double().mean().item() for k in (1, 5))
    return top1, top5


class Runner:
    """Runs what is not finished yet."""

    def __init__(
        self,
        config: ExperimentConfig,
        networks: Iterable[Trained],
        store: Outbox,
        watcher: Watcher,
        *,
        kept: tuple[dict[object, Graph], dict[object, TestData]] | None = None,
    ) -> None:
        self.config, self.store, self.watcher = config, store, watcher
        self._networks = {(trained.model, trained.dataset, trained.sha256): trained for trained in networks}
        self._graphs, self._data = kept or ({}, {})

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
                versions=dict(versions()),
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
    """What an actor of Ray runs the units of one experiment with; data and graphs stay for the next unit."""

    def __init__(self) -> None:
        self._kept: tuple[dict[object, Graph], dict[object, TestData]] = {}, {}

    def run(self, unit: Unit) -> None:
        """Run the cells of a unit that have no record yet."""
        Runner(unit.config, [unit.trained], Outbox(unit.directory), Watcher(), kept=self._kept).run(unit.cells)


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


def rebuild(record: CellRecord, config: ExperimentConfig, *, kept: Mapping[str, Any]) -> PruningResult:
    """Prune once more as a finished cell was pruned, so that its network can be written.

    `kept` are the masks that were recorded with its scores.
    """
    p, place = record.parameters, f"cell {record.key}"
    if not Path(p.checkpoint).is_file():
        raise FileNotFoundError(f"{place}: its checkpoint {p.checkpoint} is not there; run from where it was run")
    if (found := sha256(p.checkpoint)) != p.checkpoint_sha256:
        raise ValueError(f"{place}: {p.checkpoint} has changed since (sha256 {found[:16]}…); restore it")
    network = f"{p.model}@{p.dataset}"
    data_args = config.data_args.get(network, {})
    trained = Trained(p.model, p.dataset, config.model_args.get(network), p.checkpoint, p.checkpoint_sha256, data_args)
    data = load_data(p.dataset, data_args, data_dir=config.data_dir, device="cpu")
    calibration = data.calibration(p.calibration_samples, seed=p.calibration_seed)
    result = prune(load_network(trained), calibration, recipe_of(p))
    differ = [name for name, mask in result.masks.items() if name in kept and mask.tolist() != list(kept[name])]
    if differ:
        raise ValueError(
            f"{place}: layer {differ[0]!r} would keep other neurons than were recorded; use the versions that "
            f"recorded it (torch {record.versions['torch']}, mlprank {record.versions['mlprank']})"
        )
    return result
