"""One checkpoint on the bench: loaded once with its data, traced once, and pruned in as many ways as there are cells."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import sha256
from mlprank.costs.metrics import count_flops, count_parameters, measure_latency, size_bytes
from mlprank.datamodules import get_dataset
from mlprank.experiments.cells import Trained, load_network, recipe_of
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import CellMetrics, CellParameters, CellRecord, LayerWidth
from mlprank.experiments.variants import Accuracy, MemoryTest, Variant
from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.pruning.pipeline import Pruning, prune
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.result import PruningResult

BATCH_SIZE = 64
"""As in `mlprank.prune_mlp`."""
_LATENCY_BUDGET_S = 0.006
_LATENCY_REPEATS = (5, 30)

_Sizes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class TestData:
    """A data set: its test images (N, C, H, W) and labels (N,) in memory, and its module, whose training images are being read."""

    module: Any
    images: Tensor
    labels: Tensor
    training: Future[None]

    def calibration(self, num_samples: int, *, seed: int) -> Any:
        """Return calibration batches, or the data module itself where it draws none."""
        self.training.result()
        draw = getattr(self.module, "calibration_dataloader", None)
        return self.module if draw is None else draw(num_samples, seed=seed)


@dataclass(frozen=True)
class Costs:
    """What a network costs: parameters, FLOPs of one image, bytes of the saved weights."""

    num_parameters: int
    flops: int
    size_bytes: int


@dataclass(frozen=True)
class Pruned:
    """A cell that has been pruned and waits for its test. Times are seconds."""

    cell: CellParameters
    variant: Variant
    after: Costs
    achieved: float
    layers: tuple[LayerWidth, ...]
    scores: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    timings: Mapping[str, float]


@dataclass
class Traces:
    """Graphs by class and sizes of the network: checkpoints of one network are read once."""

    graphs: dict[tuple[object, ...], Graph] = field(default_factory=dict)

    def of(self, network: nn.Module, example: Tensor) -> Graph:
        """Return the graph of a network, reading it where none of its kind has been."""
        kind = (type(network), str(getattr(network, "init_args", None)), _sizes(network))
        if kind not in self.graphs:
            self.graphs[kind] = trace(network, example)
        return self.graphs[kind]


def load_data(name: str, arguments: Mapping[str, Any], *, data_dir: str | None, device: str) -> TestData:
    """Read a data set and put its test images on a device as the network takes them.

    Args:
        name: Its name, or the dotted path of a LightningDataModule.
        arguments: Of its class.
        data_dir: Where its files are, for classes that ask.
        device: Where the test images go.

    Raises:
        FileNotFoundError: If its files are not there.
        ValueError: If one is damaged, or an argument does not fit.
    """
    cls: Any = get_dataset(name)
    known = inspect.signature(cls).parameters
    usual = {key: value for key, value in {"batch_size": BATCH_SIZE, "data_dir": data_dir}.items() if key in known}
    try:
        inspect.signature(cls).bind(**{**usual, **arguments})
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be built: {error}; give its arguments under data_args in the config"
        ) from error
    module = cls(**{**usual, **arguments})
    module.prepare_data()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training images")
    training = pool.submit(module.setup, "fit")
    pool.shutdown(wait=False)
    module.setup("test")
    batches = list(module.test_dataloader())
    images = torch.cat([images for images, _ in batches]).to(device)
    return TestData(module, images, torch.cat([labels for _, labels in batches]).to(device), training)


class Workbench:
    """A trained network with its data; prunes and tests.

    Args:
        trained: The checkpoint.
        data: Its data set.
        traces: Graphs that are known already.
        device: Where to work.
        latency: Whether to measure latencies.

    Raises:
        ValueError: If the checkpoint is damaged, of another network or of another data set.
    """

    def __init__(self, trained: Trained, data: TestData, *, traces: Traces, device: str, latency: bool) -> None:
        self.trained, self.data, self.latency = trained, data, latency
        self.network = load_network(trained).to(device)
        example = data.images[:BATCH_SIZE]
        self.graph = traces.of(self.network, example)
        self.test = MemoryTest(self.network, data.images, data.labels)
        self.before = Costs(
            num_parameters=count_parameters(self.network),
            flops=count_flops(self.network, example[:1]),
            size_bytes=size_bytes(self.network),
        )
        weights = [self.network.get_parameter(layer.weight) for layer in self.graph.layers]
        self._each_once = self.before.flops == 2 * sum(weight.numel() for weight in weights)
        self._pruning: tuple[object, Pruning] | None = None
        self._scores: dict[object, dict[str, Tensor]] = {}
        self._counts: dict[object, Costs] = {}
        self._latencies: dict[_Sizes, tuple[float, float]] = {}

    def dense_metrics(self) -> CellMetrics:
        """Return the baseline's metrics."""
        layers = [LayerWidth(name=y.name, width=y.out_features, kept=y.out_features) for y in self.graph.layers]
        [latency] = self._latencies_of([self.network])
        return self._metrics(self.before, self.test.dense, achieved=0.0, layers=tuple(layers), latency=latency)

    def calibrate(self, cell: CellParameters) -> None:
        """Make ready for the cells of one graph and calibration draw; what was measured for another is dropped.

        Raises:
            ValueError: If the network cannot be pruned, or its activations are not finite.
        """
        kind = (cell.graph, cell.calibration_samples, cell.calibration_seed)
        if self._pruning is None or self._pruning[0] != kind:
            loader = self.data.calibration(cell.calibration_samples, seed=cell.calibration_seed)
            self._scores.clear()
            self._pruning = kind, Pruning(self.network, loader, recipe_of(cell), traced=self.graph)

    def prune(self, cell: CellParameters) -> Pruned:
        """Prune in the way of a cell; `calibrate` comes first.

        Raises:
            ValueError: As `mlprank.prune`.
        """
        assert self._pruning is not None
        pruning = self._pruning[1]
        recipe = recipe_of(cell)
        started = time.perf_counter()
        scores = self._scored(pruning, cell, recipe)
        scored = time.perf_counter()
        result = pruning.run(recipe, scores=scores)
        return Pruned(
            cell=cell,
            variant=Variant(result.model, result.slices),
            after=self._counted(result),
            achieved=result.achieved,
            layers=_layers(result),
            scores=result.scores,
            kept=result.masks,
            timings={"score_s": scored - started, "prune_s": time.perf_counter() - scored},
        )

    def measure(self, tested: Sequence[tuple[Pruned, Accuracy]]) -> list[CellMetrics]:
        """Return the metrics of cells that were tested together; their latencies are measured here."""
        latencies = self._latencies_of([pruned.variant.model for pruned, _ in tested])
        return [
            self._metrics(pruned.after, accuracy, achieved=pruned.achieved, layers=pruned.layers, latency=latency)
            for (pruned, accuracy), latency in zip(tested, latencies, strict=True)
        ]

    def _scored(self, pruning: Pruning, cell: CellParameters, recipe: Recipe) -> dict[str, Tensor] | None:
        """The dense network's scores, computed once a measure; None where they depend on more than measure and calibration."""
        if recipe.scores_by_amount or recipe.scores_on_pruned:
            return None
        key = (cell.measure, str(sorted(cell.measure_args.items())))
        if key not in self._scores:
            self._scores[key] = pruning.scores(recipe, amounts={})
        return self._scores[key]

    def _counted(self, result: PruningResult) -> Costs:
        """Parameters, FLOPs and bytes of a pruned network, which follow from its sizes."""
        sizes = _sizes(result.model)
        if sizes not in self._counts:
            weights = [result.model.get_parameter(layer.weight) for layer in self.graph.layers]
            flops = 2 * sum(weight.numel() for weight in weights)
            self._counts[sizes] = Costs(
                num_parameters=count_parameters(result.model),
                flops=flops if self._each_once else count_flops(result.model, result.example),
                size_bytes=size_bytes(result.model),
            )
        return self._counts[sizes]

    def _metrics(
        self,
        after: Costs,
        accuracy: Accuracy,
        *,
        achieved: float,
        layers: tuple[LayerWidth, ...],
        latency: tuple[float | None, float | None],
    ) -> CellMetrics:
        dense, before = self.test.dense, self.before
        return CellMetrics(
            top1=accuracy.top1 / accuracy.num_images,
            top5=accuracy.top5 / accuracy.num_images,
            dense_top1=dense.top1 / dense.num_images,
            dense_top5=dense.top5 / dense.num_images,
            achieved_amount=achieved,
            num_parameters_before=before.num_parameters,
            num_parameters_after=after.num_parameters,
            flops_before=before.flops,
            flops_after=after.flops,
            size_bytes_before=before.size_bytes,
            size_bytes_after=after.size_bytes,
            latency_s_before=latency[0],
            latency_s_after=latency[1],
            layers=layers,
        )

    def _latencies_of(self, networks: Sequence[nn.Module]) -> list[tuple[float | None, float | None]]:
        """Seconds of a batch, dense and pruned; all networks and the dense one take turns, and each size is timed once."""
        if not self.latency:
            return [(None, None)] * len(networks)
        new = {sizes: network for network in networks if (sizes := _sizes(network)) not in self._latencies}
        if new:
            models = {"dense": self.network, **{str(n): network for n, network in enumerate(new.values())}}
            example = self.data.images[:BATCH_SIZE]
            once = sum(latency.median_s for latency in measure_latency(models, example, repeats=1, warmup=1).values())
            least, most = _LATENCY_REPEATS
            repeats = max(least, min(most, int(_LATENCY_BUDGET_S * len(models) / once)))
            timed = measure_latency(models, example, repeats=repeats, warmup=0)
            before = timed["dense"].median_s
            self._latencies |= {sizes: (before, timed[str(n)].median_s) for n, sizes in enumerate(new)}
        return [self._latencies[_sizes(network)] for network in networks]


def _sizes(network: nn.Module) -> _Sizes:
    """The shapes of everything that a network holds, which its costs follow from."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())


def _layers(result: PruningResult) -> tuple[LayerWidth, ...]:
    """What every layer's mask keeps."""
    return tuple(
        LayerWidth(
            name=name, width=len(scores), kept=int(result.masks[name].sum()) if name in result.masks else len(scores)
        )
        for name, scores in result.scores.items()
    )


def rebuild(record: CellRecord, config: ExperimentConfig, *, kept: Mapping[str, Any]) -> PruningResult:
    """Prune once more as a finished cell was pruned, so that its network can be written.

    Args:
        record: The cell.
        config: The experiment that it belongs to, for the data and the network's arguments.
        kept: The masks that were recorded with its scores, True for kept neurons.

    Raises:
        FileNotFoundError: If the checkpoint or the data are not there.
        ValueError: If the checkpoint has changed since, or other neurons are kept than were recorded.
    """
    p = record.parameters
    if not Path(p.checkpoint).is_file():
        raise FileNotFoundError(
            f"cell {record.key}: its checkpoint {p.checkpoint} is not there; run from where it was run"
        )
    if (found := sha256(p.checkpoint)) != p.checkpoint_sha256:
        raise ValueError(f"cell {record.key}: {p.checkpoint} has changed since (sha256 {found[:16]}…); restore it")
    network = f"{p.model}@{p.dataset}"
    data_args = config.data_args.get(network, {})
    trained = Trained(p.model, p.dataset, config.model_args.get(network), p.checkpoint, p.checkpoint_sha256, data_args)
    data = load_data(p.dataset, data_args, data_dir=config.data_dir, device="cpu")
    calibration = data.calibration(p.calibration_samples, seed=p.calibration_seed)
    result = prune(load_network(trained), calibration, recipe_of(p))
    differ = [name for name, mask in result.masks.items() if name in kept and mask.tolist() != list(kept[name])]
    if differ:
        raise ValueError(
            f"cell {record.key}: layer {differ[0]!r} would keep other neurons than were recorded; use the versions that recorded it "
            f"(torch {record.versions.torch}, mlprank {record.versions.mlprank})"
        )
    return result
