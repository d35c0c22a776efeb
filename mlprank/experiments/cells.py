"""From a configuration to trained networks and cells: every combination once, checked before the first one runs."""

import dataclasses
import glob
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from mlprank.artifact.checkpoint import read_checkpoint, sha256
from mlprank.artifact.spec import build_model, construct
from mlprank.compensation import COMPENSATIONS
from mlprank.datamodules import get_dataset
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, CellParameters
from mlprank.measures import MEASURES
from mlprank.methods import METHODS
from mlprank.models import get_model, load_weights
from mlprank.pruning.recipe import Recipe, make_recipe
from mlprank.thesis import find_trained
from mlprank.utils.errors import did_you_mean
from mlprank.utils.registry import Registry

GIVE = "; give its arguments under {} in the config"
NOT_PRUNED = "none"
"""Method, compensation and graph of the dense baseline."""
_NOT_PRUNED: dict[str, Any] = {
    **dict.fromkeys(("method", "compensation", "graph"), NOT_PRUNED),
    "amount": 0.0,
    "protect_output": True,
    "calibration_samples": 0,
    "calibration_seed": 0,
}


@dataclass(frozen=True)
class Choice:
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
    data_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
            remedy = f"checkpoints: no file is there by the name {pattern}; train one with mlprank fit"
            missing += [] if matched else [f"{network}: {remedy}"]
            files += matched
        if network not in config.checkpoints:
            try:
                files = [str(find_trained(model, dataset, Path(config.checkpoint_root)))]
            except FileNotFoundError as error:
                missing.append(f"{network}: {error}")
        for path in files:
            arguments = config.model_args.get(network), path, sha256(path), config.data_args.get(network, {})
            trained = Trained(model, dataset, *arguments)
            found.setdefault((network, trained.sha256), trained)
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
    chosen = _choices(MEASURES, config.measures)
    names = {choice.name for choice in chosen}
    extra: dict[str, Mapping[str, Any]] = {}
    for given, arguments in config.measure_args.items():
        [choice] = _choices(MEASURES, [given])
        if choice.name not in names:
            raise ValueError(
                f"measure_args: {given!r} is not in the grid{did_you_mean(given, names)}; its measures are "
                f"{', '.join(sorted(names))}"
            )
        extra[choice.name] = arguments
    return _choices(MEASURES, [{"name": y.name, **extra.get(y.name, {}), **y.arguments} for y in chosen])


def methods_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the methods of an experiment under short names; the thesis's "Global" compares scores as they are."""
    return _choices(METHODS, config.methods)


def cells_of(config: ExperimentConfig, networks: Iterable[Trained]) -> tuple[CellParameters, ...]:
    """Return every cell of the grid, the dense baseline of every checkpoint first.

    Cells that share work stand together: checkpoint, then graph and calibration seed, then measure.
    """
    measures, methods = measures_of(config), methods_of(config)
    compensations = _choices(COMPENSATIONS, config.compensations)
    further = [dict(zip(config.recipe, values, strict=True)) for values in product(*config.recipe.values())]
    for fields in further:
        make_recipe(None, fields)
    cells: dict[str, CellParameters] = {}
    for trained in networks:
        of: dict[str, Any] = {"model": trained.model, "dataset": trained.dataset}
        of |= {"checkpoint": trained.path, "checkpoint_sha256": trained.sha256}
        dense = CellParameters(measure=DENSE, **_NOT_PRUNED, **of)
        cells[dense.key] = dense
        for graph, seed, compensation, protected, fields, measure, method, amount in product(
            config.graphs,
            config.calibration_seeds,
            compensations,
            config.protect_output,
            further,
            measures,
            methods,
            config.amounts,
        ):
            cell = CellParameters(
                **of,
                measure=measure.name,
                measure_args=_seeded(measure, seed),
                method=method.name,
                method_args=method.arguments,
                amount=float(amount),
                compensation=compensation.name,
                compensation_args=compensation.arguments,
                recipe_args=fields,
                graph=graph,
                protect_output=protected,
                calibration_samples=config.calibration_samples,
                calibration_seed=seed,
            )
            cells[cell.key] = cell
    return tuple(cells.values())


def recipe_of(cell: CellParameters) -> Recipe:
    """Return how a cell is pruned."""
    return make_recipe(
        None,
        {
            "amount": cell.amount,
            "measure": {"name": cell.measure, **cell.measure_args},
            "method": {"name": cell.method, **cell.method_args},
            "compensation": {"name": cell.compensation, **cell.compensation_args},
            "graph": cell.graph,
            "protect_output": cell.protect_output,
            "num_samples": cell.calibration_samples,
            "seed": cell.calibration_seed,
            **cell.recipe_args,
        },
    )


def _choices(registry: Registry[Any], many: Iterable[object]) -> tuple[Choice, ...]:
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


def _seeded(measure: Choice, seed: int) -> dict[str, Any]:
    """A measure that draws takes the calibration's seed where it has none, so that seeds make replicates."""
    arguments = dict(measure.arguments)
    found, _ = MEASURES.read(measure.name)
    cls = MEASURES[found] if isinstance(found, str) else found
    if isinstance(cls, type) and "seed" in inspect.signature(cls).parameters:
        arguments.setdefault("seed", seed)
    return arguments
