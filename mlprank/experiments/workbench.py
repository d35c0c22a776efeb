"""One checkpoint on the bench: loaded once with its data, traced once, pruned in as many ways as there are cells."""

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlprank.artifact.checkpoint import sha256
from mlprank.costs.metrics import ModelMetrics, count_nonzero, measure_latency_for, measure_model, ranks_of
from mlprank.datamodules import get_dataset
from mlprank.experiments.cells import NOT_PRUNED, Trained, build, load_network, recipe_of
from mlprank.experiments.config import PUBLISHED, ExperimentConfig
from mlprank.experiments.records import CellMetrics, CellParameters, CellRecord, LayerWidth
from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.measures import get_measure
from mlprank.methods import get_method
from mlprank.pruning.pipeline import Pruning, prune
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.result import PruningResult
from mlprank.thesis import PublishedConditions
from mlprank.utils.modules import check_fit, evaluating, sole_tensor

BATCH_SIZE = 64
"""As in `mlprank.prune_mlp`."""
_CHUNK = 2560

_Sizes = tuple[tuple[str, tuple[int, ...]], ...]


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
    module = build(name, cls, {**usual, **arguments}, key="data_args")
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    images, labels = (torch.cat(parts).to(device) for parts in zip(*module.test_dataloader(), strict=True))
    return TestData(module, images, labels)


class Workbench:
    """A trained network with its data; prunes and tests.

    `graphs` are those that are known already, by class and sizes of the network; a new one is added.
    """

    def __init__(
        self, trained: Trained, data: TestData, *, graphs: dict[object, Graph], device: str, latency: bool
    ) -> None:
        self.data, self.latency = data, latency
        self.network = load_network(trained).to(device)
        example = data.images[:BATCH_SIZE]
        check_fit(self.network, example[:2], who="experiment")
        self.dense = accuracies(self.network, data.images, data.labels)
        kind = (type(self.network), str(getattr(self.network, "init_args", None)), _sizes(self.network))
        if kind not in graphs:
            graphs[kind] = trace(self.network, example)
        self.graph = graphs[kind]
        self._scores: dict[object, dict[str, Tensor]] = {}
        self._costs: dict[_Sizes, ModelMetrics] = {}
        self._latencies: dict[_Sizes, tuple[float, float]] = {}
        self.before = self._costs_of(self.network)
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
            layers = tuple(
                LayerWidth(name=y.name, width=y.out_features, kept=y.out_features) for y in self.graph.layers
            )
            return Outcome(self._metrics(self.network, self.dense, achieved=0.0, layers=layers))
        if isinstance(self._drawn, PublishedConditions):
            return self._run_published(self._drawn, cell)
        assert self._drawn is not None
        started = time.perf_counter()
        recipe = recipe_of(cell)
        scores = self._scored(self._drawn, cell, recipe)
        scored = time.perf_counter()
        result = self._drawn.run(recipe, scores=scores)
        pruned = time.perf_counter()
        top = accuracies(result.model, self.data.images, self.data.labels)
        tested = time.perf_counter()
        widths = {name: result.masks.get(name, torch.ones(len(found))) for name, found in result.scores.items()}
        metrics = self._metrics(result.model, top, achieved=result.achieved, layers=_layers(widths))
        timings = {"score_s": scored - started, "prune_s": pruned - scored, "evaluate_s": tested - pruned}
        return Outcome(metrics, result.scores, result.masks, timings)

    def _run_published(self, conditions: PublishedConditions, cell: CellParameters) -> Outcome:
        """Nothing is removed, as published: parameters and FLOPs after pruning are those that are not zero."""
        started = time.perf_counter()
        measure, method = get_measure(cell.measure, **cell.measure_args), get_method(cell.method, **cell.method_args)
        pruned = conditions.prune(amount=cell.amount, measure=measure, method=method)
        ended = time.perf_counter()
        found = conditions.accuracies(pruned.network)
        timings = {"prune_s": ended - started, "evaluate_s": time.perf_counter() - ended}
        total = sum(map(len, pruned.masks.values()))
        zeros = sum(int((pruned.network.get_parameter(f"{name}.weight") == 0).sum()) for name in pruned.masks)
        metrics = self._metrics(
            self.network,
            (found[1], found[5]),
            dense=(self._published_dense[1], self._published_dense[5]),
            after=replace(
                self.before, num_parameters=count_nonzero(pruned.network), flops=self.before.flops - 2 * zeros
            ),
            achieved=sum(int((~mask).sum()) for mask in pruned.masks.values()) / total if total else 0.0,
            layers=_layers(pruned.masks),
            latency=False,
        )
        return Outcome(metrics, pruned.scores, pruned.masks, timings)

    def _scored(self, pruning: Pruning, cell: CellParameters, recipe: Recipe) -> dict[str, Tensor] | None:
        """The dense network's scores, computed once a measure; None where they depend on more than measure and draw."""
        if recipe.scores_by_amount or recipe.scores_on_pruned:
            return None
        key = (cell.measure, str(sorted(cell.measure_args.items())))
        if key not in self._scores:
            self._scores[key] = pruning.scores(recipe, amounts={})
        return self._scores[key]

    def _costs_of(self, network: nn.Module) -> ModelMetrics:
        """Parameters, FLOPs and bytes, which follow from the sizes."""
        sizes = _sizes(network)
        if sizes not in self._costs:
            self._costs[sizes] = measure_model(network, self.data.images[:1])
        return self._costs[sizes]

    def _latencies_of(self, network: nn.Module) -> tuple[float, float]:
        """Seconds of a batch, dense and pruned, which take turns; every size is timed once."""
        sizes, models = _sizes(network), {"dense": self.network, "pruned": network}
        if sizes not in self._latencies:
            example = self.data.images[:BATCH_SIZE]
            timed = measure_latency_for(models, example, seconds=0.012, least=5, most=30)
            self._latencies[sizes] = timed["dense"].median_s, timed["pruned"].median_s
        return self._latencies[sizes]

    def _metrics(
        self,
        network: nn.Module,
        top: tuple[float, float],
        *,
        achieved: float,
        layers: tuple[LayerWidth, ...],
        dense: tuple[float, float] | None = None,
        after: ModelMetrics | None = None,
        latency: bool = True,
    ) -> CellMetrics:
        dense, after, before = dense or self.dense, after or self._costs_of(network), self.before
        timed = self._latencies_of(network) if latency and self.latency else (None, None)
        return CellMetrics(
            top1=top[0],
            top5=top[1],
            dense_top1=dense[0],
            dense_top5=dense[1],
            achieved_amount=achieved,
            num_parameters_before=before.num_parameters,
            num_parameters_after=after.num_parameters,
            flops_before=before.flops,
            flops_after=after.flops,
            size_bytes_before=before.size_bytes,
            size_bytes_after=after.size_bytes,
            latency_s_before=timed[0],
            latency_s_after=timed[1],
            layers=layers,
        )


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


def _sizes(network: nn.Module) -> _Sizes:
    """The shapes of everything that a network holds, which its costs follow from."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())


def _layers(masks: Mapping[str, Tensor]) -> tuple[LayerWidth, ...]:
    return tuple(LayerWidth(name=name, width=len(mask), kept=int(mask.sum())) for name, mask in masks.items())


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
            f"recorded it (torch {record.versions.torch}, mlprank {record.versions.mlprank})"
        )
    return result
