"""Everything that a report shows, gathered from results directories once, before anything is drawn; needs no torch."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mlprank.experiments import statistics as stats
from mlprank.experiments.records import RECORDS_NAME, CellRecord, read_records, read_scores
from mlprank.tuning.store import format_value
from mlprank.utils.charts import CostPoint, HeatMap, Look, ScoredLayer, looks_of, search_map, short_names

FRONT_NAME = "frontier.csv"
CONFIG_NAMES = ("config.yaml", "experiment.yaml")
WITHIN = 0.01
"""How much of the dense accuracy (absolute) the chosen network may lose."""


@dataclass(frozen=True)
class Point:
    """A measure at an amount, or the dense network: means over trainings, in fractions, bytes and seconds."""

    amount: float
    top1: stats.Estimate
    size_bytes: float
    num_parameters: float
    latency_s: float | None
    keys: tuple[str, ...] = ()

    def cost(self, kind: str) -> float | None:
        """Seconds ("latency") or bytes ("size"); None where it was not measured."""
        return self.latency_s if kind == "latency" else self.size_bytes


@dataclass(frozen=True)
class Curve:
    """One measure in one panel; `lost[layer][amount]` is the mean fraction of the layer's neurons that were pruned."""

    label: str
    points: tuple[Point, ...]
    lost: Mapping[str, Mapping[float, float]]

    def at(self, amount: float) -> Point | None:
        """The point at an amount, if there is one."""
        return next((point for point in self.points if point.amount == amount), None)


@dataclass(frozen=True)
class Panel:
    """One setting: the dense network and a curve for every measure."""

    setting: stats.Setting
    dense: Point
    curves: tuple[Curve, ...]

    @property
    def amounts(self) -> tuple[float, ...]:
        """All amounts that any curve has, ascending."""
        return tuple(sorted({point.amount for curve in self.curves for point in curve.points}))


@dataclass(frozen=True)
class Scores:
    """The scores of one cell: one measure on one network."""

    network: str
    label: str
    record: CellRecord
    layers: tuple[ScoredLayer, ...]


@dataclass(frozen=True)
class Search:
    """A grid search of `mlprank tune`: its map, and the trials, the best first, as text: options, accuracy, epoch."""

    directory: Path
    map: HeatMap
    trials: tuple[tuple[str, float | None, str], ...]


@dataclass(frozen=True)
class Shrunk:
    """A search of `mlprank shrink`: every network that was tried, by its bytes and its score, and the dense one.

    `percent` says whether scores are fractions that are read in percent.
    """

    directory: Path
    points: tuple[CostPoint, ...]
    dense: tuple[float, float]
    percent: bool

    @property
    def name(self) -> str:
        """The directory's name, with that of the directory above where it is a number."""
        name = self.directory.name
        return f"{self.directory.absolute().parent.name}/{name}" if name.isdecimal() else name


@dataclass(frozen=True)
class Content:
    """What the page, the tables and the pictures are made of."""

    records: tuple[CellRecord, ...]  # all cells, failed ones too
    owners: Mapping[str, Path]  # their directories by key
    panels: tuple[Panel, ...]
    looks: Mapping[str, Look]  # how each measure is drawn, by label
    comparisons: tuple[stats.Comparison, ...]  # within every setting
    claims: tuple[tuple[stats.Comparison, ...], ...]  # over settings
    smallest_effect: float  # the smallest difference of accuracy that counts, a fraction
    directories: tuple[Path, ...] = ()  # where results were looked for
    problems: tuple[tuple[Path, str], ...] = ()  # those that could not be read, with the reason
    configs: tuple[tuple[str, str], ...] = ()  # the experiments' files with their text
    scores: tuple[Scores, ...] = ()
    searches: tuple[Search, ...] = ()
    shrunk: tuple[Shrunk, ...] = ()


def content_of(
    results: Sequence[str | Path],
    *,
    baselines: Sequence[str] | None = None,
    smallest_effect: float = stats.SMALLEST_EFFECT,
) -> Content:
    """Read results directories of experiments, grid searches and shrinks; a bad one is a problem, not the end.

    A cell that is in several directories counts once, the last one. The arguments are those of `write_report`.
    """
    if not results:
        raise ValueError("report: give at least one results directory")
    cells: dict[str, tuple[CellRecord, Path]] = {}
    directories, searches, shrunk, problems, scores, configs = [], [], [], [], [], []
    for source in map(Path, results):
        directory = source.parent if source.name == RECORDS_NAME else source
        directories.append(directory)
        try:
            if (directory / "metrics.csv").is_file():
                raise ValueError(
                    f"{directory} is a run of `mlprank fit`, whose numbers are in its metrics.csv; a report takes the "
                    "directories of `mlprank experiment`, `tune` and `shrink`"
                )
            if (directory / "grid.json").is_file():
                searches.append(read_search(directory))
            elif (directory / FRONT_NAME).is_file():
                shrunk.append(read_front(directory))
            else:
                cells |= {record.key: (record, directory) for record in read_records(source)}
            for path in (directory / name for name in CONFIG_NAMES):
                configs += [(str(path), path.read_text("utf-8"))] if path.is_file() else []
        except (OSError, ValueError) as error:
            problems.append((directory, str(error)))
    if len(problems) == len(directories) and not (cells or searches or shrunk):
        raise FileNotFoundError("; ".join(text for _, text in problems))
    records = tuple(record for record, _ in cells.values())
    owners = {key: directory for key, (_, directory) in cells.items()}
    for record in _one_of_each(records, owners):
        try:
            scores.append(_scores_of(record, owners[record.key]))
        except (OSError, ValueError) as error:
            problems.append((owners[record.key], str(error)))
    return content_of_records(
        records,
        owners,
        baselines=baselines,
        smallest_effect=smallest_effect,
        directories=tuple(directories),
        problems=tuple(problems),
        configs=tuple(configs),
        scores=tuple(scores),
        searches=tuple(searches),
        shrunk=tuple(shrunk),
    )


def content_of_records(
    records: Sequence[CellRecord],
    owners: Mapping[str, Path],
    *,
    baselines: Sequence[str] | None = None,
    smallest_effect: float = stats.SMALLEST_EFFECT,
    **found: Any,
) -> Content:
    """What records alone give, as `content_of`; `owners` are their directories by key, `found` all other fields."""
    return Content(
        records=tuple(records),
        owners=owners,
        panels=panels_of(records),
        looks=looks_of(stats.series_label(record.parameters) for record in stats.finished_cells(records)),
        comparisons=stats.compare(records, baselines=baselines, smallest_effect=smallest_effect),
        claims=stats.claims(records, baselines=baselines, smallest_effect=smallest_effect),
        smallest_effect=smallest_effect,
        **found,
    )


def panels_of(records: Iterable[CellRecord]) -> tuple[Panel, ...]:
    """Group finished cells into panels, sorted by setting."""
    panels = []
    groups = stats.grouped(stats.finished_cells(records), lambda record: stats.setting_of(record.parameters))
    for setting, cells in sorted(groups.items(), key=lambda entry: entry[0]):
        curves = stats.grouped(cells, lambda cell: stats.series_label(cell.parameters))
        top1 = fmean(stats.by_training(cells, [stats.metrics_of(cell).dense_top1 for cell in cells]))
        dense = replace(_point(0.0, cells, "before"), top1=stats.Estimate(top1, None, None, (top1,)), keys=())
        panels.append(Panel(setting, dense, tuple(_curve(label, curves[label]) for label in looks_of(curves))))
    return tuple(panels)


def by_network(panels: Sequence[Panel]) -> dict[str, list[Panel]]:
    """Panels by network, in order."""
    return stats.grouped(panels, lambda panel: panel.setting.network)


def conditions_text(setting: stats.Setting) -> str:
    """Compensation and conditions in words: `constant compensation, chain graph, 64 calibration images`."""
    said = {"graph": "{} graph", "protect_output": "output protected", "calibration_samples": "{} calibration images"}
    parts = [
        "output pruned too"
        if (name, value) == ("protect_output", "false")
        else said.get(name, f"{name} {{}}").format(value)
        for name, value in setting.conditions
    ]
    return ", ".join([f"{setting.compensation} compensation".replace("_", " "), *parts])


def subtitles(settings: Iterable[stats.Setting]) -> dict[stats.Setting, str]:
    """What tells a setting from others beside network and method: only what varies between them."""
    words = {setting: conditions_text(setting).split(", ") for setting in settings}
    common = set.intersection(*map(set, words.values())) if words else set()
    return {setting: ", ".join(word for word in found if word not in common) for setting, found in words.items()}


def cost_points(panels: Sequence[Panel], *, cost: str) -> tuple[CostPoint, ...]:
    """Every pruned network of one network's panels with its "latency" (seconds) or "size" (bytes), the cheapest first.

    The cheapest that loses at most `WITHIN` of its dense accuracy is the chosen one. Nothing where no cost differs from
    the dense network's, as under the published conditions, where nothing is removed.
    """
    several = len({panel.setting.compensation for panel in panels}) > 1
    found = []
    for panel in panels:
        words = [panel.setting.method, *([panel.setting.compensation.replace("_", " ")] if several else [])]
        for curve in panel.curves:
            for point in curve.points:
                value = point.cost(cost)
                if value is not None and point.amount > 0.0:
                    note = ", ".join([f"{100 * point.amount:g} %", *words])
                    good = panel.dense.top1.mean - point.top1.mean <= WITHIN
                    found.append(CostPoint(curve.label, value, point.top1.mean, note, good))
    if {point.cost for point in found} <= {panel.dense.cost(cost) for panel in panels}:
        return ()
    found.sort(key=lambda point: (point.cost, -point.top1))
    chosen = next((place for place, point in enumerate(found) if point.chosen), None)
    return tuple(replace(point, chosen=place == chosen) for place, point in enumerate(found))


def smallest_good(panels: Sequence[Panel]) -> tuple[Panel, str, Point] | None:
    """The network with the fewest parameters, as a share of its dense one, that loses at most `WITHIN`."""
    good = [
        (point.num_parameters / panel.dense.num_parameters, panel, curve.label, point)
        for panel in panels
        for curve in panel.curves
        for point in curve.points
        if panel.dense.num_parameters and panel.dense.top1.mean - point.top1.mean <= WITHIN and point.amount > 0.0
    ]
    return min(good, key=lambda entry: (entry[0], -entry[3].top1.mean))[1:] if good else None


def best_at_middle(panel: Panel) -> tuple[str, Point] | None:
    """The highest mean at the amount nearest a half, of several measures that have enough trainings."""
    amounts = [amount for amount in panel.amounts if amount > 0.0]
    middle = min(amounts, key=lambda amount: (abs(amount - 0.5), amount), default=0.0)
    found = [(curve.label, point) for curve in panel.curves if middle and (point := curve.at(middle)) is not None]
    if len(found) < 2 or min(point.top1.num for _, point in found) < stats.MIN_TRAININGS:
        return None
    return max(found, key=lambda entry: (entry[1].top1.mean, entry[0]))


def lost_maps(panel: Panel) -> list[tuple[tuple[str, ...], Curve]]:
    """Curves with what they lost, those that lost the same in every layer joined: (labels, one of the curves)."""

    def table(curve: Curve) -> str:
        plain = {name: {a: round(v, 6) for a, v in lost.items()} for name, lost in curve.lost.items()}
        return json.dumps(plain, sort_keys=True)

    return [
        (tuple(curve.label for curve in curves), curves[0]) for curves in stats.grouped(panel.curves, table).values()
    ]


def read_search(directory: Path) -> Search:
    """Read what `mlprank tune` leaves: a file for every trial that ended or failed."""
    found: list[tuple[dict[str, Any], float | None, str]] = []
    for path in sorted(directory.glob("trials/*/result.json")) + sorted(directory.glob("trials/*/failed.json")):
        try:
            plain = json.loads(path.read_text("utf-8"))
            point = dict(plain["point"])
            score = plain.get("val_top1")
            note = plain["error"] if "error" in plain else f"epoch {plain['best_epoch'] + 1}"
            if score is not None and not 0.0 <= float(score) <= 1.0:
                raise ValueError(f"val_top1 must be in [0, 1], got {score}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); delete it and run the same tune command again") from error
        found.append((point, score, note if score is not None or "error" in plain else "diverged"))
    if not found:
        raise ValueError(f"{directory}: no trial has ended; run the same tune command to go on")
    values = {
        name: list(dict.fromkeys(map(format_value, sorted((point.get(name) for point, _, _ in found), key=_rank))))
        for name in found[0][0]
    }
    varied = {name: texts for name, texts in values.items() if len(texts) > 1} or values
    trials = [({name: format_value(point.get(name)) for name in varied}, score) for point, score, _ in found]
    names = dict(zip(varied, short_names(list(varied)), strict=True))
    ranked = sorted(found, key=lambda trial: -math.inf if trial[1] is None else trial[1], reverse=True)
    rows = tuple(
        (", ".join(f"{names[name]} {format_value(point.get(name))}" for name in varied), score, note)
        for point, score, note in ranked
    )
    return Search(directory, search_map(directory.name, varied, trials, score="validation accuracy"), rows)


def read_front(directory: Path) -> Shrunk:
    """Read the table that `mlprank shrink` leaves; the dense network is its first row."""
    path = directory / FRONT_NAME
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = [
                CostPoint(
                    "shrink",
                    int(row["bytes"]),
                    float(row["score"]),
                    f"{100 * float(row['amount']):.3g} % removed",
                    row["chosen"] == "True",
                )
                for row in csv.DictReader(file)
            ]
        if not all(point.cost > 0 and math.isfinite(point.top1) for point in found):
            raise ValueError("sizes must be positive and scores finite")
        dense, *tried = found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); run the same shrink command again") from error
    percent = all(0.0 <= point.top1 <= 1.0 for point in found)
    return Shrunk(directory, tuple(sorted(tried, key=lambda p: p.cost)), (dense.cost, dense.top1), percent)


def _rank(value: Any) -> tuple[bool, float, str]:
    """What an option's values are sorted by: numbers by size, then the rest by its text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else 0.0, format_value(value)


def _one_of_each(records: Sequence[CellRecord], owners: Mapping[str, Path]) -> list[CellRecord]:
    """One cell with scores for every network and measure: local, repaired and near the amount 0.5 where it can be."""
    chosen: dict[tuple[str, str, str], tuple[tuple[object, ...], CellRecord]] = {}
    for record in stats.finished_cells(records):
        if not (owners[record.key] / "scores" / f"{record.key}.safetensors").is_file():
            continue
        p = record.parameters
        how = p.method.lower() != "local", p.compensation != "least_squares"
        rank = (*how, abs(p.amount - 0.5), p.compensation, p.calibration_seed, p.checkpoint, record.key)
        place = (p.model, p.dataset, stats.series_label(p))
        if place not in chosen or rank < chosen[place][0]:
            chosen[place] = (rank, record)
    return [record for _, (_, record) in sorted(chosen.items(), key=lambda entry: entry[0])]


def _scores_of(record: CellRecord, directory: Path) -> Scores:
    found = read_scores(directory, record.key)
    assert found is not None
    scores, kept = found
    layers_in_order = stats.metrics_of(record).layers  # from input to output
    order = {layer.name: place for place, layer in enumerate(layers_in_order)}
    layers = tuple(
        ScoredLayer(
            name,
            tuple(np.nan_to_num(scores[name].astype(float)).tolist()),
            tuple(kept[name].tolist()) if name in kept else (),
        )
        for name in sorted(scores, key=lambda name: order.get(name, len(order)))
        if scores[name].size
    )
    p = record.parameters
    return Scores(stats.setting_of(p).network, stats.series_label(p), record, layers)


def _curve(label: str, cells: Sequence[CellRecord]) -> Curve:
    groups = stats.grouped(cells, lambda cell: round(cell.parameters.amount, 9))
    lost: dict[str, dict[float, float]] = {}
    for amount in sorted(groups):
        layers = (layer for cell in groups[amount] for layer in stats.metrics_of(cell).layers)
        for name, found in stats.grouped(layers, lambda layer: layer.name).items():
            shares = [1.0 - layer.kept / layer.width if layer.width else 0.0 for layer in found]
            lost.setdefault(name, {})[amount] = fmean(shares)
    return Curve(label, tuple(_point(amount, groups[amount], "after") for amount in sorted(groups)), lost)


def _point(amount: float, cells: Sequence[CellRecord], when: str) -> Point:
    """Means over cells of what networks cost before or after pruning, and of the accuracy after it."""

    def mean(name: str) -> float | None:
        found = [value for m in metrics if (value := getattr(m, f"{name}_{when}")) is not None]
        return fmean(found) if found else None

    metrics = [stats.metrics_of(cell) for cell in cells]
    top1 = stats.accuracy_interval(stats.by_training(cells, [m.top1 for m in metrics]))
    keys = tuple(cell.key for cell in cells)
    return Point(amount, top1, mean("size_bytes") or 0.0, mean("num_parameters") or 0.0, mean("latency_s"), keys)
