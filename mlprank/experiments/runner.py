"""From a configuration to cells, every combination once, and from cells to records; a failed one stops nothing."""

from __future__ import annotations

import functools
import glob
import inspect
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint, sha256
from mlprank.artifact.record import versions
from mlprank.artifact.spec import build_model, construct
from mlprank.compensation import COMPENSATIONS
from mlprank.costs.metrics import ModelMetrics, count_nonzero, measure_latency_for, measure_model, top_k_accuracy
from mlprank.datamodules import get_dataset
from mlprank.experiments.config import PUBLISHED, ExperimentConfig
from mlprank.experiments.records import DENSE, Array, CellMetrics, CellParameters, CellRecord, LayerWidth, RecordStore
from mlprank.graph.trace import trace
from mlprank.grids.progress import Progress
from mlprank.grids.ray import run_units
from mlprank.measures import MEASURES, get_measure
from mlprank.methods import METHODS, get_method
from mlprank.models import get_model, load_weights
from mlprank.pruning.pipeline import Pruning, prune
from mlprank.pruning.recipe import Recipe, make_recipe
from mlprank.pruning.result import PruningResult
from mlprank.thesis import PublishedConditions, PublishedPruning, find_trained
from mlprank.utils.errors import FAILURES, did_you_mean
from mlprank.utils.modules import check_fit
from mlprank.utils.registry import Registry

GIVE = "; give its arguments under {} in the config"
KINDS = ("measure", "method", "compensation")
NOT_PRUNED = "none"
"""Method, compensation and graph of the dense baseline."""


class Choice(NamedTuple):
    """A measure, method or compensation: its short name or dotted path, and the arguments that were given."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained network: class and data, by name or dotted path with arguments, and its file with its SHA-256."""

    model: str
    dataset: str
    model_args: Mapping[str, Any] | None
    path: str
    sha256: str
    data_args: Mapping[str, Any] = field(default_factory=dict)


def find_networks(config: ExperimentConfig) -> tuple[tuple[Trained, ...], list[str]]:
    """Look for the checkpoints of an experiment; say of networks without one what to do about it."""
    found: dict[tuple[str, str], Trained] = {}
    missing: list[str] = []
    for network in config.networks:
        model, _, dataset = network.partition("@")
        get_model(model)
        get_dataset(dataset)
        files: list[str] = []
        for pattern in config.checkpoints.get(network, ()):
            matched = [str(Path(path)) for path in sorted(glob.glob(str(pattern))) if Path(path).is_file()]
            if not matched:
                rule = f"no file is there by the name {pattern}; train one with mlprank fit"
                missing.append(f"{network}: checkpoints: {rule}")
            files += matched
        if network not in config.checkpoints:
            try:
                files = [str(find_trained(model, dataset, Path(config.checkpoint_root)))]
            except FileNotFoundError as error:
                missing.append(f"{network}: {error}")
        for path in files:
            arguments = config.model_args.get(network), path, sha256(path), config.data_args.get(network, {})
            found.setdefault((network, arguments[2]), Trained(model, dataset, *arguments))
    return tuple(found.values()), missing


def load_network(trained: Trained) -> nn.Module:
    """Build a network, as the config says or else its Lightning checkpoint, and load its weights."""
    if trained.model_args is None:
        hyper_parameters = read_checkpoint(trained.path).get("hyper_parameters")
        spec = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
        own = trained.model.rpartition(".")[2]
        if isinstance(spec, Mapping) and str(spec.get("class_path", "")).rpartition(".")[2] == own:
            return load_weights(trained.path, build_model(spec))
    cls: Any = get_model(trained.model)
    network = construct(cls, trained.model_args or {}, named=trained.model, remedy=GIVE.format("model_args"))
    return load_weights(trained.path, network)


def measures_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the measures of an experiment under their short names."""
    chosen = choices(MEASURES, config.measures)
    names = {choice.name for choice in chosen}
    extra: dict[str, Mapping[str, Any]] = {}
    for given, arguments in config.measure_args.items():
        [choice] = choices(MEASURES, [given])
        if choice.name not in names:
            raise ValueError(
                f"measure_args: {given!r} is not in the grid{did_you_mean(given, names)}; its measures are "
                f"{', '.join(sorted(names))}"
            )
        extra[choice.name] = arguments
    return choices(MEASURES, [{"name": y.name, **extra.get(y.name, {}), **y.arguments} for y in chosen])


def cells_of(config: ExperimentConfig, networks: Iterable[Trained]) -> tuple[CellParameters, ...]:
    """Return every cell of the grid, the dense baseline of every checkpoint first.

    Cells that share work stand together: checkpoint, then graph and calibration seed, then measure.
    """
    axes: dict[str, Any] = {
        "graph": config.graphs,
        "calibration_seed": config.calibration_seeds,
        "compensation": choices(COMPENSATIONS, config.compensations),
        "protect_output": config.protect_output,
        "recipe_args": [dict(zip(config.recipe, values, strict=True)) for values in product(*config.recipe.values())],
        "measure": measures_of(config),
        "method": choices(METHODS, config.methods),  # the thesis's "Global" compares scores as they are
        "amount": [float(amount) for amount in config.amounts],
    }
    for fields in axes["recipe_args"]:
        make_recipe(None, fields)
    cells: list[CellParameters] = []
    for trained in networks:
        of: dict[str, Any] = {"model": trained.model, "dataset": trained.dataset}
        of |= {"checkpoint": trained.path, "checkpoint_sha256": trained.sha256}
        nothing: dict[str, Any] = dict.fromkeys(("method", "compensation", "graph"), NOT_PRUNED)
        nothing |= {"amount": 0.0, "protect_output": True, "calibration_samples": 0, "calibration_seed": 0}
        cells.append(CellParameters(measure=DENSE, **nothing, **of))
        for values in product(*axes.values()):
            given = dict(zip(axes, values, strict=True)) | {"calibration_samples": config.calibration_samples}
            for kind in KINDS:
                given[kind], given[f"{kind}_args"] = given[kind]
            named, _ = MEASURES.read(given["measure"])
            measure = MEASURES.get(named, named)
            if isinstance(measure, type) and "seed" in inspect.signature(measure).parameters:  # seeds make replicates
                given["measure_args"] = {"seed": given["calibration_seed"], **given["measure_args"]}
            cells.append(CellParameters(**of, **given))
    return tuple({cell.key: cell for cell in cells}.values())


def recipe_of(cell: CellParameters) -> Recipe:
    """Return how a cell is pruned."""
    parts = {kind: {"name": getattr(cell, kind), **getattr(cell, f"{kind}_args")} for kind in KINDS}
    drawn = {"num_samples": cell.calibration_samples, "seed": cell.calibration_seed}
    same = {name: getattr(cell, name) for name in ("amount", "graph", "protect_output")}
    return make_recipe(None, {**parts, **same, **drawn, **cell.recipe_args})


def choices(registry: Registry[Any], many: Iterable[object]) -> tuple[Choice, ...]:
    """Read names and descriptions, each once; a name of the thesis becomes the short one with its arguments."""
    found: list[Choice] = []
    for given in many:
        if not isinstance(given, str | Mapping):
            raise TypeError(f"{registry.kind} {given!r} is neither a name nor a mapping with one")
        named, arguments = registry.read(given)
        choice = Choice(named if isinstance(named, str) else f"{named.__module__}.{named.__qualname__}", arguments)
        registry.find({"name": choice.name, **arguments})
        if choice not in found:
            found.append(choice)
    return tuple(found)


CELL_ERRORS = (*FAILURES, OSError)
"""What a network, a measure or data of somebody's can raise; such a cell is recorded as failed."""
BATCH_SIZE = 64
"""As in `mlprank.prune_mlp`."""
_CHUNK = 512
Arrays = dict[str, Array] | None
"""By layer: scores, or masks, True for kept neurons; None for a failed or a dense network."""
Costs = tuple[ModelMetrics, ModelMetrics]
Pruned = PruningResult | PublishedPruning | None
Ended = tuple[CellRecord, Arrays, Arrays]
Outcome = tuple[Mapping[str, Any], Arrays, Arrays]
"""What came out of a cell: fields of its record, scores and masks."""


class TestData(NamedTuple):
    """A data set: its module, ready for training too, and its test images (N, C, H, W) and labels (N,) in memory."""

    module: Any
    images: Tensor
    labels: Tensor


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
    """A trained network with its data, traced once."""

    def __init__(self, trained: Trained, data: TestData, *, device: str, latency: bool) -> None:
        self.data, self.latency, self.example = data, latency, data.images[:BATCH_SIZE]
        self.network = load_network(trained).to(device)
        check_fit(self.network, self.example[:2], who="experiment")
        self.graph = trace(self.network, self.example)
        self._first, self._known = self.graph.layers[0].name, list[Tensor]()
        first = dict(self.network.named_modules()).get(self._first)
        shared = first if type(first) is nn.Linear else nn.Module()
        keeping = shared.register_forward_hook(lambda _, inputs, output: self._known.append(output.clone()))
        self.dense = accuracies(self.network, data.images, data.labels)
        keeping.remove()
        self.before = measure_model(self.network, self.example[:1])
        self._scores: dict[object, dict[str, Tensor]] = {}
        self._costs: dict[object, Costs] = {}
        self._drawn: Pruning | PublishedConditions | None = None

    def calibrate(self, cell: CellParameters) -> None:
        """Make ready for the cells of one graph and calibration draw; what was measured for another is dropped."""
        self._scores.clear()
        if cell.graph == PUBLISHED:
            # Under the published conditions the dense network is tested with batch norms in training mode, too.
            self._drawn = PublishedConditions(self.network, self.data.module, batch_size=cell.calibration_samples)
            self._published_dense = self._drawn.accuracies(self._drawn.network)
        elif cell.graph != NOT_PRUNED:
            self._drawn = Pruning(self.network, self.data.module, recipe_of(cell), traced=self.graph)

    def run(self, cell: CellParameters) -> Outcome:
        """Prune in the way of a cell and test; `calibrate` comes first."""
        if cell.graph == NOT_PRUNED:
            return self._outcome((*self.dense, *self.dense), self._measured(self.network), None, {})
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
        timings = {"score_s": scored - started, "prune_s": pruned - scored, "evaluate_s": time.perf_counter() - pruned}
        return self._outcome((*top, *self.dense), self._measured(result.model), result, timings)

    def test(self, result: PruningResult) -> tuple[float, float]:
        """Test a narrow network; what a first layer computes that lost rows alone is looked up in the dense one's."""
        images, labels = self.data.images, self.data.labels
        mask = result.masks.get(self._first)
        if self._known and mask is not None:
            kept = mask.nonzero().flatten().to(images.device)
            dense, first = (network.get_submodule(self._first) for network in (self.network, result.model))
            if all(torch.equal(part, getattr(dense, name)[kept]) for name, part in first.named_parameters()):
                outputs = (batch.index_select(-1, kept) for batch in self._known)
                first.__dict__["forward"] = lambda inputs: next(outputs)
                try:
                    return accuracies(result.model, images, labels)
                finally:
                    del first.__dict__["forward"]
        return accuracies(result.model, images, labels)

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
        return self._outcome((top[1], top[5], dense[1], dense[5]), costs, pruned, timings)

    def _outcome(self, top: Sequence[float], costs: Costs, pruned: Pruned, timings: Mapping[str, float]) -> Outcome:
        """`top` are top-1 and top-5 accuracy, then those of the dense network."""
        scores, masks = ({}, {}) if pruned is None else (pruned.scores, pruned.masks)
        counted: dict[str, Any] = {
            f"{name}_{when}": getattr(metrics, name)
            for when, metrics in zip(("before", "after"), costs, strict=True)
            for name in ("num_parameters", "flops", "size_bytes", "latency_s")
        }
        widths = {name: len(found) for name, found in scores.items()}
        widths = widths or {layer.name: layer.out_features for layer in self.graph.layers}
        kept = widths | {name: int(mask.sum()) for name, mask in masks.items()}
        layers = tuple(LayerWidth(name=name, width=width, kept=kept[name]) for name, width in widths.items())
        total = sum(map(len, masks.values()))
        achieved = sum(len(mask) - kept[name] for name, mask in masks.items()) / total if total else 0.0
        accuracy: dict[str, Any] = dict(zip(("top1", "top5", "dense_top1", "dense_top5"), top, strict=True))
        metrics = CellMetrics(**accuracy, achieved_amount=achieved, **counted, layers=layers)
        arrays = [{name: each.cpu().numpy() for name, each in many.items()} or None for many in (scores, masks)]
        return {"status": "ok", "metrics": metrics, "timings": timings}, arrays[0], arrays[1]

    def _measured(self, network: nn.Module) -> Costs:
        """What the dense and a pruned network cost, timed in turns; measured once for all networks of its sizes."""
        sizes = tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
        if sizes not in self._costs:
            before, after = self.before, measure_model(network, self.example[:1])
            if self.latency:
                models = {"dense": self.network, "pruned": network}
                timed = measure_latency_for(models, self.example, seconds=0.012, least=5, most=30)
                before = replace(before, latency_s=timed["dense"].median_s)
                after = replace(after, latency_s=timed["pruned"].median_s)
            self._costs[sizes] = before, after
        return self._costs[sizes]


def accuracies(network: nn.Module, images: Float[Tensor, "n ..."], labels: Int[Tensor, " n"]) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy, fractions, on images in memory; logits that are not finite are refused."""

    def check(_: nn.Module, inputs: object, logits: Tensor) -> None:
        if not logits.isfinite().all():
            raise ValueError("the network gives logits that are not finite; look at its weights and at the amount")

    checking = network.register_forward_hook(check)
    try:
        found = top_k_accuracy(network, zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True))
    finally:
        checking.remove()
    return found[1], found[5]


def run_cells(
    config: ExperimentConfig,
    networks: Iterable[Trained],
    store: RecordStore,
    progress: Progress,
    cells: Iterable[CellParameters],
) -> None:
    """Run the cells that are not finished yet, here or on all devices of this machine or of a cluster; record each."""
    pending = [cell for cell in cells if cell.key not in store.finished]

    def record(ran: Sequence[CellParameters], ended: Iterable[Ended]) -> None:
        for new, scores, kept in ended:
            store.append(new, scores=scores, kept=kept)
            if new.status == "ok":
                progress.finished(new.parameters, new)
            else:
                progress.failed(new.parameters, str(new.error))

    def units(slots: int, gpu: bool) -> list[tuple[tuple[CellParameters, ...], Callable[[], list[Ended]]]]:
        run = functools.partial(_run_unit, replace(config, device="cuda" if gpu else config.device), tuple(networks))
        groups = (tuple(found) for _, found in groupby(pending, key=lambda cell: (_drawn(cell), cell.measure)))
        return [(group, functools.partial(run, group)) for group in groups]

    if config.engine == "local":
        record(pending, _run(config, networks, pending, started=progress.started, data={}))
    else:
        placed: dict[str, Any] = {"address": config.address, "cpus": config.cpus_per_cell, "gpus": config.gpus_per_cell}
        run_units(units, record, progress, option="{}_per_cell", **placed)


_DATA: dict[object, TestData] = {}
"""What a process of Ray's has read; it stays for its next units."""


def _run_unit(config: ExperimentConfig, networks: Iterable[Trained], cells: Iterable[CellParameters]) -> list[Ended]:
    return list(_run(config, networks, cells, started=lambda cells: None, data=_DATA))


def _run(
    config: ExperimentConfig,
    networks: Iterable[Trained],
    cells: Iterable[CellParameters],
    *,
    started: Callable[[list[CellParameters]], None],
    data: dict[object, TestData],
) -> Iterator[Ended]:
    """Run cells, those of one checkpoint and draw standing together, with `data` read before; new ones are added."""
    by_key = {(trained.model, trained.dataset, trained.sha256): trained for trained in networks}

    def bench_of(trained: Trained) -> Workbench:
        place = trained.dataset, str(sorted(trained.data_args.items()))
        if place not in data:
            data[place] = load_data(trained.dataset, trained.data_args, data_dir=config.data_dir, device=config.device)
        return Workbench(trained, data[place], device=config.device, latency=config.latency)

    for key, found in groupby(cells, key=lambda cell: (cell.model, cell.dataset, cell.checkpoint_sha256)):
        bench = _attempted(bench_of, by_key[key])
        for _, group in groupby(found, key=_drawn):
            drawn = list(group)
            ready = bench if isinstance(bench, Exception) else _attempted(bench.calibrate, drawn[0])
            for cell in drawn:
                started([cell])
                ended = ready if isinstance(ready, Exception) else _attempted(bench.run, cell)
                if isinstance(ended, Exception):
                    ended = {"status": "failed", "error": f"{type(ended).__name__}: {ended}"}, None, None
                fields, scores, kept = ended
                machine = describe_machine(config.device)
                yield CellRecord(parameters=cell, versions=dict(versions()), machine=machine, **fields), scores, kept


def _attempted(function: Callable[[Any], Any], argument: Any) -> Any:
    """What a function gives, or the error that makes its cells fail."""
    try:
        return function(argument)
    except CELL_ERRORS as error:
        return error


def _drawn(cell: CellParameters) -> tuple[object, ...]:
    """What cells share that are pruned from one calibration."""
    return cell.checkpoint_sha256, cell.model, cell.dataset, cell.graph, cell.calibration_samples, cell.calibration_seed


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
    """Prune once more as a cell was pruned whose masks `kept` were recorded, so that its network can be written."""
    p, place = record.parameters, f"cell {record.key}"
    if not Path(p.checkpoint).is_file():
        raise FileNotFoundError(f"{place}: its checkpoint {p.checkpoint} is not there; run from where it was run")
    if (found := sha256(p.checkpoint)) != p.checkpoint_sha256:
        raise ValueError(f"{place}: {p.checkpoint} has changed since (sha256 {found[:16]}…); restore it")
    network = f"{p.model}@{p.dataset}"
    data_args = config.data_args.get(network, {})
    trained = Trained(p.model, p.dataset, config.model_args.get(network), p.checkpoint, p.checkpoint_sha256, data_args)
    data = load_data(p.dataset, data_args, data_dir=config.data_dir, device="cpu")
    result = prune(load_network(trained), data.module, recipe_of(p))
    if differ := [name for name, mask in result.masks.items() if name in kept and mask.tolist() != list(kept[name])]:
        raise ValueError(
            f"{place}: layer {differ[0]!r} would keep other neurons than were recorded; use the versions that "
            f"recorded it (torch {record.versions['torch']}, mlprank {record.versions['mlprank']})"
        )
    return result
