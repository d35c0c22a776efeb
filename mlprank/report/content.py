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
WITHIN = 0.01
"""How much of the dense accuracy (absolute) the chosen network may lose."""


@dataclass(frozen=True)
class Point:
    """A measure at an amount, or the dense network: means over trainings."""

    amount: float
    top1: stats.Estimate
    costs: Mapping[str, float | None]  # "size" in bytes and "latency" in seconds, None where it was not measured
    num_parameters: float
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One measure in one panel: points by amount, ascending, and the mean share of neurons that every layer lost."""

    label: str
    points: dict[float, Point]
    lost: dict[str, dict[float, float]]  # by layer and amount


@dataclass(frozen=True)
class Panel:
    """One setting: the dense network and a curve for every measure."""

    setting: stats.Setting
    dense: Point
    curves: tuple[Curve, ...]
    title: str = ""  # network, method, and what else tells the setting from the others

    @property
    def amounts(self) -> tuple[float, ...]:
        """All amounts that any curve has, ascending."""
        return tuple(sorted({amount for curve in self.curves for amount in curve.points}))

    def is_good(self, point: Point) -> bool:
        """Whether a pruned network loses at most `WITHIN` of the dense accuracy."""
        return point.amount > 0.0 and self.dense.top1.mean - point.top1.mean <= WITHIN


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
    name: str  # the directory's, with that of the directory above where it is a number
    points: tuple[CostPoint, ...]
    dense: tuple[float, float]
    percent: bool


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
    directories: Sequence[Path] = ()  # where results were looked for
    problems: Sequence[tuple[Path, str]] = ()  # those that could not be read, with the reason
    configs: Sequence[tuple[str, str]] = ()  # the experiments' files with their text
    scores: Sequence[tuple[CellRecord, tuple[ScoredLayer, ...]]] = ()  # of one cell for every network and measure
    searches: Sequence[Search] = ()
    shrunk: Sequence[Shrunk] = ()

    @property
    def num_failed(self) -> int:
        """How many cells failed."""
        return sum(record.status == "failed" for record in self.records)


def content_of(results: Sequence[str | Path], **options: Any) -> Content:
    """Read results directories of experiments, grid searches and shrinks; a bad one is a problem, not the end.

    A cell that is in several directories counts once, the last one. The options are those of `content_of_records`.
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
            for path in (directory / "config.yaml", directory / "experiment.yaml"):
                configs += [(str(path), path.read_text("utf-8"))] if path.is_file() else []
        except (OSError, ValueError) as error:
            problems.append((directory, str(error)))
    if len(problems) == len(directories) and not (cells or searches or shrunk):
        raise FileNotFoundError("; ".join(text for _, text in problems))
    records = tuple(record for record, _ in cells.values())
    owners = {key: directory for key, (_, directory) in cells.items()}
    shown: dict[tuple[str, ...], CellRecord] = {}  # local, repaired and near the amount 0.5, where there is such a cell
    for record in sorted(stats.finished_cells(records), key=_distance):
        p = record.parameters
        if (owners[record.key] / "scores" / f"{record.key}.safetensors").is_file():
            shown.setdefault((p.model, p.dataset, stats.series_label(p)), record)
    for _, record in sorted(shown.items()):
        try:
            scores.append((record, _scored_layers(record, owners[record.key])))
        except (OSError, ValueError) as error:
            problems.append((owners[record.key], str(error)))
    content = content_of_records(records, owners, **options)
    content = replace(content, directories=directories, problems=problems, configs=configs)
    return replace(content, scores=scores, searches=searches, shrunk=shrunk)


def _distance(record: CellRecord) -> tuple[object, ...]:
    p = record.parameters
    how = p.method.lower() != "local", p.compensation != "least_squares"
    return *how, abs(p.amount - 0.5), p.compensation, p.calibration_seed, p.checkpoint, record.key


def _scored_layers(record: CellRecord, directory: Path) -> tuple[ScoredLayer, ...]:
    """A cell's scores and masks, layer by layer from input to output."""
    scores, kept = read_scores(directory, record.key) or ({}, {})
    order = [layer.name for layer in stats.metrics_of(record).layers]
    names = sorted(scores, key=lambda name: order.index(name) if name in order else len(order))
    numbers = {name: np.nan_to_num(scores[name].astype(float)).tolist() for name in names if scores[name].size}
    return tuple(ScoredLayer(name, tuple(own), tuple(map(bool, kept.get(name, ())))) for name, own in numbers.items())


def content_of_records(records: Sequence[CellRecord], owners: Mapping[str, Path], **rules: Any) -> Content:
    """What records alone give; `owners` are their directories by key, the others are rules of `stats.compare`."""
    effect = rules.setdefault("smallest_effect", stats.SMALLEST_EFFECT)
    compared, claims = stats.compare(records, **rules), stats.claims(records, **rules)
    looks = looks_of(stats.series_label(record.parameters) for record in stats.finished_cells(records))
    return Content(tuple(records), owners, panels_of(records), looks, compared, claims, effect)


def panels_of(records: Iterable[CellRecord]) -> tuple[Panel, ...]:
    """Group finished cells into panels, sorted by setting."""
    panels = []
    groups = stats.grouped(stats.finished_cells(records), lambda record: stats.setting_of(record.parameters))
    about = subtitles(groups)
    for setting, cells in sorted(groups.items(), key=lambda entry: entry[0]):
        by_measure = stats.grouped(cells, lambda cell: stats.series_label(cell.parameters))
        top1 = fmean(stats.by_training(cells, [stats.metrics_of(cell).dense_top1 for cell in cells]))
        dense = replace(_point(0.0, cells, "before"), top1=stats.Estimate(top1, None, None, (top1,)), keys=())
        curves = []
        for label in looks_of(by_measure):
            curve = Curve(label, {}, {})
            by_amount = stats.grouped(by_measure[label], lambda cell: round(cell.parameters.amount, 9))
            for amount, found in sorted(by_amount.items()):
                curve.points[amount] = _point(amount, found, "after")
                layers = stats.grouped((y for c in found for y in stats.metrics_of(c).layers), lambda layer: layer.name)
                for name, widths in layers.items():
                    shares = [1.0 - layer.kept / layer.width if layer.width else 0.0 for layer in widths]
                    curve.lost.setdefault(name, {})[amount] = fmean(shares)
            curves.append(curve)
        title = ", ".join(filter(None, [setting.network, f"{setting.method} method", about[setting]]))
        panels.append(Panel(setting, dense, tuple(curves), title))
    return tuple(panels)


def _point(amount: float, cells: Sequence[CellRecord], when: str) -> Point:
    """Means over cells of what networks cost before or after pruning, and of the accuracy after it."""

    def mean(name: str) -> float | None:
        found = [value for m in metrics if (value := getattr(m, f"{name}_{when}")) is not None]
        return fmean(found) if found else None

    metrics = [stats.metrics_of(cell) for cell in cells]
    top1 = stats.accuracy_interval(stats.by_training(cells, [m.top1 for m in metrics]))
    costs = {"size": mean("size_bytes"), "latency": mean("latency_s")}
    return Point(amount, top1, costs, mean("num_parameters") or 0.0, tuple(cell.key for cell in cells))


def conditions_text(setting: stats.Setting) -> str:
    """Compensation and conditions in words: `constant compensation, chain graph, 64 calibration images`."""
    said = {"graph": "{} graph", "protect_output": "output protected", "calibration_samples": "{} calibration images"}
    parts = [f"{setting.compensation} compensation".replace("_", " ")]
    for name, value in setting.conditions:
        pruned = (name, value) == ("protect_output", "false")
        parts.append("output pruned too" if pruned else said.get(name, f"{name} {{}}").format(value))
    return ", ".join(parts)


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
        how = panel.setting.method + f", {panel.setting.compensation.replace('_', ' ')}" * several
        for curve in panel.curves:
            for point in curve.points.values():
                value = point.costs[cost]
                if value is not None and point.amount > 0.0:
                    note = f"{100 * point.amount:g} %, {how}"
                    found.append(CostPoint(curve.label, value, point.top1.mean, note, panel.is_good(point)))
    if {point.cost for point in found} <= {panel.dense.costs[cost] for panel in panels}:
        return ()
    found.sort(key=lambda point: (point.cost, -point.top1))
    chosen = next((point for point in found if point.chosen), None)
    return tuple(replace(point, chosen=point is chosen) for point in found)


def lost_maps(panel: Panel) -> list[tuple[list[str], HeatMap]]:
    """What measures lost in every layer at every amount, by their labels; those that lost the same share a map."""

    def lost(curve: Curve) -> frozenset[tuple[str, float, float]]:
        return frozenset((name, a, round(v, 6)) for name, found in curve.lost.items() for a, v in found.items())

    maps = []
    for curves in stats.grouped(panel.curves, lost).values():
        layers = curves[0].lost
        amounts = sorted({amount for found in layers.values() for amount in found})
        names = zip(short_names(list(layers)), layers.values(), strict=True)
        values = {(name, f"{100 * amount:g}"): found.get(amount) for name, found in names for amount in amounts}
        table = HeatMap(values, column_title="requested amount, %", value_title="pruned")
        maps.append(([curve.label for curve in curves], table))
    return maps


def read_search(directory: Path) -> Search:
    """Read what `mlprank tune` leaves: a file for every trial that ended or failed."""
    found: list[tuple[dict[str, Any], float | None, str]] = []
    for path in sorted(directory.glob("trials/*/result.json")) + sorted(directory.glob("trials/*/failed.json")):
        try:
            plain = json.loads(path.read_text("utf-8"))
            score = plain.get("val_top1")
            note = plain["error"] if "error" in plain else f"epoch {plain['best_epoch'] + 1}"
            if score is not None and not 0.0 <= float(score) <= 1.0:
                raise ValueError(f"val_top1 must be in [0, 1], got {score}")
            found.append((dict(plain["point"]), score, note if score is not None or "error" in plain else "diverged"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); delete it and run the same tune command again") from error
    if not found:
        raise ValueError(f"{directory}: no trial has ended; run the same tune command to go on")
    values = {}
    for name in found[0][0]:  # numbers by size, then the rest by its text
        given = [point.get(name) for point, _, _ in found]
        given.sort(key=lambda v: (0, v, "") if type(v) in (int, float) else (1, 0.0, format_value(v)))
        values[name] = list(dict.fromkeys(map(format_value, given)))
    varied = {name: texts for name, texts in values.items() if len(texts) > 1} or values
    names, trials, rows = short_names(list(varied)), [], []
    for point, score, note in found:
        texts = {name: format_value(point.get(name)) for name in varied}
        trials.append((texts, score))
        rows.append((", ".join(map(" ".join, zip(names, texts.values(), strict=True))), score, note))
    rows.sort(key=lambda row: -math.inf if row[1] is None else row[1], reverse=True)
    return Search(directory, search_map(varied, trials, score="validation accuracy"), tuple(rows))


def read_front(directory: Path) -> Shrunk:
    """Read the table that `mlprank shrink` leaves; the dense network is its first row."""
    path, found = directory / FRONT_NAME, []
    try:
        for row in csv.DictReader(path.read_text("utf-8").splitlines()):
            note, chosen = f"{100 * float(row['amount']):.3g} % removed", row["chosen"] == "True"
            found.append(CostPoint("shrink", int(row["bytes"]), float(row["score"]), note, chosen))
        if not all(point.cost > 0 and math.isfinite(point.top1) for point in found):
            raise ValueError("sizes must be positive and scores finite")
        dense, *tried = found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); run the same shrink command again") from error
    percent, name = all(0.0 <= point.top1 <= 1.0 for point in found), directory.name
    name = f"{directory.absolute().parent.name}/{name}" if name.isdecimal() else name
    return Shrunk(directory, name, tuple(sorted(tried, key=lambda p: p.cost)), (dense.cost, dense.top1), percent)
