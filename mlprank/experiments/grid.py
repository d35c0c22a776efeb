"""From a configuration and trained networks to cells: every combination once, checked before the first one runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from mlprank.compensation import get_compensation
from mlprank.experiments.config import ExperimentConfig, nearest
from mlprank.experiments.networks import Trained
from mlprank.experiments.records import DENSE, CellParameters
from mlprank.measures import MEASURES, get_measure
from mlprank.methods import METHODS, get_method

NOT_PRUNED = "none"
"""Method, compensation and graph of the dense baseline."""


@dataclass(frozen=True)
class Choice:
    """A measure or a method: its short name and the arguments that were given."""

    name: str
    arguments: Mapping[str, Any]


def measures_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the measures of an experiment under their short names.

    Raises:
        ValueError: If a name is unknown (the nearest is named), an argument does not fit, or arguments are given for a measure that is
            not in the grid.
        TypeError: If an argument has the wrong type.
    """
    chosen = [_choice("measure", given) for given in config.measures]
    names = {choice.name for choice in chosen}
    extra: dict[str, Mapping[str, Any]] = {}
    for given, arguments in config.measure_args.items():
        name = _choice("measure", given).name
        if name not in names:
            raise ValueError(
                f"measure_args: {given!r} is not in the grid{nearest(given, names)}; its measures are {', '.join(sorted(names))}"
            )
        extra[name] = arguments
    merged = [Choice(choice.name, {**extra.get(choice.name, {}), **choice.arguments}) for choice in chosen]
    for choice in merged:
        get_measure(choice.name, **choice.arguments)
    return _unique(merged)


def methods_of(config: ExperimentConfig) -> tuple[Choice, ...]:
    """Return the methods of an experiment under their short names; the thesis's "Global" compares scores as they are.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or an argument does not fit.
    """
    chosen = [_choice("method", given) for given in config.methods]
    for choice in chosen:
        get_method(choice.name, **choice.arguments)
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
    for compensation in config.compensations:
        get_compensation(compensation)
    cells: dict[str, CellParameters] = {}
    for trained in networks:
        dense = dense_cell(trained)
        cells[dense.key] = dense
        for graph, seed, compensation, protected, measure, method, amount in product(
            config.graphs,
            config.calibration_seeds,
            config.compensations,
            config.protect_output,
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
                compensation=compensation,
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


def _choice(kind: str, given: str | Mapping[str, Any]) -> Choice:
    """Read a name or a description; a name of the thesis becomes the short one with the arguments that it stands for."""
    if not isinstance(given, str | Mapping):
        raise TypeError(f"{kind} {given!r} is neither a name nor a mapping with one")
    registry = MEASURES if kind == "measure" else METHODS
    name, arguments = registry.read(given)
    if not isinstance(name, str):
        raise ValueError(f"{kind} {name.__name__} of another package: register it under a name and give that")
    registry.build(name, registry[name], arguments)
    return Choice(name, arguments)


def _seeded(measure: Choice, seed: int) -> dict[str, Any]:
    """A measure that draws takes the calibration's seed where it was given none, so that seeds make replicates of it."""
    arguments = dict(measure.arguments)
    if "seed" in inspect.signature(MEASURES[measure.name]).parameters:
        arguments.setdefault("seed", seed)
    return arguments


def _unique(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    found: list[Choice] = []
    for choice in choices:
        if choice not in found:
            found.append(choice)
    return tuple(found)
