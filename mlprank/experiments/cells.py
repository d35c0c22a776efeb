"""From a configuration to trained networks and cells: every combination once, checked before the first one runs."""

from __future__ import annotations

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
from mlprank.artifact.spec import build_model
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

NOT_PRUNED = "none"
"""Method, compensation and graph of the dense baseline."""


@dataclass(frozen=True)
class Choice:
    """A measure, method or compensation: its short name or dotted path, and the arguments that were given."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained network: its class and its data, by name or dotted path with arguments, and its file with the SHA-256 of it."""

    model: str
    dataset: str
    model_args: Mapping[str, Any] | None
    path: str
    sha256: str
    data_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Missing:
    """A network of the grid without a checkpoint, and what to do about it."""

    network: str
    remedy: str


def find_networks(config: ExperimentConfig) -> tuple[tuple[Trained, ...], tuple[Missing, ...]]:
    """Look for the checkpoints of an experiment.

    Args:
        config: The experiment.

    Returns:
        The checkpoints that are there, each content once, and the networks that have none.

    Raises:
        ValueError: If a model or a data set is unknown; the nearest known one is named.
        OSError: If a file cannot be read.
    """
    found: dict[tuple[str, str], Trained] = {}
    missing: list[Missing] = []
    for network in config.networks:
        model, _, dataset = network.partition("@")
        get_model(model)
        get_dataset(dataset)
        for path in _files(config, network, missing):
            arguments = config.model_args.get(network), str(path), sha256(path), config.data_args.get(network, {})
            trained = Trained(model, dataset, *arguments)
            found.setdefault((network, trained.sha256), trained)
    return tuple(found.values()), tuple(missing)


def load_network(trained: Trained) -> nn.Module:
    """Build a network and load its weights.

    Args:
        trained: Which; without `model_args` it is built from what the checkpoint of `mlprank fit` says, else from its defaults.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: If the file is damaged, of another network, or the arguments do not fit.
    """
    if trained.model_args is not None:
        network = _built(trained.model, trained.model_args)
    else:
        spec = _recorded(read_checkpoint(trained.path), trained.model)
        network = _built(trained.model, {}) if spec is None else build_model(spec)
    return load_weights(trained.path, network)


def _files(config: ExperimentConfig, network: str, missing: list[Missing]) -> list[Path]:
    """The checkpoint files of a network that are there; what is not goes to `missing`."""
    given = config.checkpoints.get(network)
    if given is None:
        model, _, dataset = network.partition("@")
        try:
            return [find_trained(model, dataset, Path(config.checkpoint_root))]
        except FileNotFoundError as error:
            missing.append(Missing(network, str(error)))
            return []
    files: list[Path] = []
    for pattern in given:
        matched = [Path(path) for path in sorted(glob.glob(str(pattern))) if Path(path).is_file()]
        if not matched:
            missing.append(
                Missing(network, f"checkpoints: no file is there by the name {pattern}; train one with mlprank fit")
            )
        files += matched
    return files


def _built(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    cls = get_model(model)
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{model} cannot be built from {dict(arguments)}: {error}; give its arguments under model_args in the config"
        ) from error
    return cls(**arguments)


def _recorded(checkpoint: Mapping[str, Any], model: str) -> Mapping[str, Any] | None:
    """How the network of a Lightning checkpoint was built, where it says so and is of the class."""
    hyper_parameters = checkpoint.get("hyper_parameters")
    spec = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
    if isinstance(spec, Mapping) and str(spec.get("class_path", "")).rpartition(".")[2] == model.rpartition(".")[2]:
        return spec
    return None


def measures_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the measures of an experiment under their short names.

    Raises:
        ValueError: If a name is unknown (the nearest is named), an argument does not fit, or arguments are given for a measure that is
            not in the grid.
        TypeError: If an argument has the wrong type.
    """
    chosen = [_choice(MEASURES, given) for given in config.measures]
    names = {choice.name for choice in chosen}
    extra: dict[str, Mapping[str, Any]] = {}
    for given, arguments in config.measure_args.items():
        name = _choice(MEASURES, given).name
        if name not in names:
            raise ValueError(
                f"measure_args: {given!r} is not in the grid{did_you_mean(given, names)}; its measures are {', '.join(sorted(names))}"
            )
        extra[name] = arguments
    merged = [Choice(choice.name, {**extra.get(choice.name, {}), **choice.arguments}) for choice in chosen]
    for choice in merged:
        MEASURES.find({"name": choice.name, **choice.arguments})
    return _unique(merged)


def methods_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the methods of an experiment under their short names; the thesis's "Global" compares scores as they are.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or an argument does not fit.
    """
    chosen = [_choice(METHODS, given) for given in config.methods]
    return _unique(chosen)


def cells_of(config: ExperimentConfig, networks: Iterable[Trained]) -> tuple[CellParameters, ...]:
    """Return every cell of the grid, the dense baseline of every checkpoint first.

    Cells that share work stand together: checkpoint, then graph and calibration seed, then measure.

    Args:
        config: The experiment.
        networks: The checkpoints that are there.

    Raises:
        ValueError: As `measures_of` and `methods_of`, or if a compensation is unknown.
    """
    measures, methods = measures_of(config), methods_of(config)
    compensations = _unique(_choice(COMPENSATIONS, given) for given in config.compensations)
    further = [dict(zip(config.recipe, values, strict=True)) for values in product(*config.recipe.values())]
    for fields in further:
        make_recipe(None, fields)
    cells: dict[str, CellParameters] = {}
    for trained in networks:
        dense = dense_cell(trained)
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
                model=trained.model,
                dataset=trained.dataset,
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
                checkpoint=trained.path,
                checkpoint_sha256=trained.sha256,
            )
            cells[cell.key] = cell
    return tuple(cells.values())


def dense_cell(trained: Trained) -> CellParameters:
    """Return the baseline of a checkpoint: nothing is scored, nothing removed."""
    return CellParameters(
        model=trained.model,
        dataset=trained.dataset,
        measure=DENSE,
        method=NOT_PRUNED,
        amount=0.0,
        compensation=NOT_PRUNED,
        graph=NOT_PRUNED,
        protect_output=True,
        calibration_samples=0,
        calibration_seed=0,
        checkpoint=trained.path,
        checkpoint_sha256=trained.sha256,
    )


def recipe_of(cell: CellParameters) -> Recipe:
    """Return how a cell is pruned.

    Raises:
        ValueError: If a name is unknown or a value out of range.
    """
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


def _choice(registry: Registry, given: object) -> Choice:
    """Read a name or a description; a name of the thesis becomes the short one with the arguments that it stands for."""
    if not isinstance(given, str | Mapping):
        raise TypeError(f"{registry.kind} {given!r} is neither a name nor a mapping with one")
    named, arguments = registry.read(given)
    name = named if isinstance(named, str) else f"{named.__module__}.{named.__qualname__}"
    registry.find({"name": name, **arguments})
    return Choice(name, arguments)


def _seeded(measure: Choice, seed: int) -> dict[str, Any]:
    """A measure that draws takes the calibration's seed where it was given none, so that seeds make replicates of it."""
    arguments = dict(measure.arguments)
    found, _ = MEASURES.read(measure.name)
    cls = MEASURES[found] if isinstance(found, str) else found
    if isinstance(cls, type) and "seed" in inspect.signature(cls).parameters:
        arguments.setdefault("seed", seed)
    return arguments


def _unique(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    found: list[Choice] = []
    for choice in choices:
        if choice not in found:
            found.append(choice)
    return tuple(found)
