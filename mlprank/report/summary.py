"""What was found, in sentences and numbers computed from the records."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlprank.experiments.records import CellRecord
from mlprank.experiments.statistics import (
    Comparison,
    Interval,
    compare,
    find_reference,
    finished_cells,
    retention_advantage,
)
from mlprank.report.accuracy_chart import percent
from mlprank.report.data import Panel, Point
from mlprank.report.grids import Grid
from mlprank.report.palette import display_name

WITHIN = 0.01
"""How much of the dense accuracy (absolute) the smallest good network may lose."""


@dataclass(frozen=True)
class Tile:
    """One number with its name and a note."""

    value: str
    name: str
    note: str


@dataclass(frozen=True)
class Summary:
    """The title, the finding as sentences, and the tiles under it."""

    title: str
    finding: tuple[str, ...]
    tiles: tuple[Tile, ...]


def summary_of(records: Sequence[CellRecord], panels: Sequence[Panel], *, grids: Sequence[Grid] = ()) -> Summary:
    """Say what the records show.

    Args:
        records: All cells, failed ones too.
        panels: The panels of the finished ones.
        grids: Grid searches.
    """
    done = finished_cells(records)
    failed = sum(record.status == "failed" for record in records)
    finding = [*_advantage(records), *_best(panels), *_smallest(panels)]
    finding += [sentence for grid in grids for sentence in _best_run(grid)]
    if not done and not grids:
        finding.append("No cell finished, so there is nothing to compare.")
    if failed:
        finding.append(f"{_count(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} not in any number here.")
    title = _title(panels) if records or not grids else grids[0].title
    return Summary(title, tuple(finding), _tiles(records, panels, len(done), failed))


def points_text(interval: Interval) -> str:
    """A difference of fractions in points with its sign: `+2.3 ± 0.4`."""
    digits = 1 if abs(interval.mean) >= 0.01 else 2
    mean = f"{100 * interval.mean:+.{digits}f}".replace("-", "−")
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.{digits}f}"


def _title(panels: Sequence[Panel]) -> str:
    networks = sorted({panel.setting.network for panel in panels})
    if not networks:
        return "Pruning experiment"
    if len(networks) == 1:
        return f"Pruning {networks[0]}"
    datasets = sorted({panel.setting.dataset for panel in panels})
    if len(datasets) == 1:
        models = sorted({panel.setting.model for panel in panels})
        return f"Pruning {', '.join(models[:-1])} and {models[-1]} on {datasets[0]}"
    return f"Pruning {len(networks)} networks on {len(datasets)} data sets"


def _advantage(records: Sequence[CellRecord]) -> list[str]:
    reference, advantage = find_reference(records), retention_advantage(records)
    if reference is None or advantage is None:
        return []
    overall = [comparison for comparison in compare(records) if comparison.amount is None]
    wins, losses = sum(c.wins for c in overall), sum(c.losses for c in overall)
    pairs = wins + losses + sum(c.ties for c in overall)
    points = abs(100 * advantage.mean)
    side = "more" if advantage.mean >= 0 else "less"
    others = (
        f"the average of the other {len(overall)} measures" if len(overall) > 1 else display_name(overall[0].baseline)
    )
    sure = ""
    if advantage.half_width is not None:
        sure = f" (95 % interval {100 * advantage.low:+.1f} to {100 * advantage.high:+.1f})".replace("-", "−")
        if advantage.low <= 0 <= advantage.high:
            sure += ", which is no clear difference"
    name = display_name(reference)
    return [
        f"{name} keeps {points:.1f} points {side} of the dense accuracy than {others}{sure}; "
        f"it wins {wins} of {_count(pairs, 'paired comparison')} and loses {losses}.",
        *_by_baseline(name, overall),
    ]


def _by_baseline(name: str, overall: Sequence[Comparison]) -> list[str]:
    parts = []
    for verdict, side in (("better", "ahead of"), ("worse", "behind")):
        found = [display_name(c.baseline) for c in overall if c.verdict == verdict]
        if found:
            parts.append(f"clearly {side} {_joined(found)}")
    return [f"Over all amounts {name} is {' and '.join(parts)}."] if parts and len(overall) > 1 else []


def _best_run(grid: Grid) -> list[str]:
    if grid.best is None:
        return [f"{grid.title}: every run failed."]
    row, column = grid.best
    value = grid.values[row][column]
    assert value is not None
    return [
        f"{grid.title}: the best run reaches {percent(value)} with {grid.row_title} {grid.row_labels[row]} and "
        f"{grid.col_title} {grid.col_labels[column]}."
    ]


def _best(panels: Sequence[Panel]) -> list[str]:
    """The most accurate measure at the amount nearest a half, in the panel where the dense network is best."""
    if not panels:
        return []
    panel, label, point = max(
        ((panel, curve.label, point) for panel in panels for curve in panel.curves for point in curve.points),
        key=lambda entry: (-abs(entry[2].amount - 0.5), entry[0].dense_top1, entry[2].top1.mean),
    )
    return [
        f"With {100 * point.amount:g} % of the neurons taken out, {display_name(label)} ({panel.setting.method}) is the "
        f"most accurate on {panel.setting.network}: {percent(point.top1.mean)}, against {percent(panel.dense_top1)} dense."
    ]


def smallest_good(panels: Sequence[Panel]) -> tuple[Panel, str, Point] | None:
    """The network with the fewest parameters, as a share of its dense one, that loses at most `WITHIN`."""
    good = [
        (point.num_parameters / panel.dense_parameters, panel, curve.label, point)
        for panel in panels
        for curve in panel.curves
        for point in curve.points
        if panel.dense_parameters and panel.dense_top1 - point.top1.mean <= WITHIN and point.amount > 0.0
    ]
    return min(good, key=lambda entry: (entry[0], -entry[3].top1.mean))[1:] if good else None


def _smallest(panels: Sequence[Panel]) -> list[str]:
    found = smallest_good(panels)
    if found is None:
        return []
    panel, label, point = found
    share = point.num_parameters / panel.dense_parameters
    return [
        f"The smallest network within {100 * WITHIN:g} point of its dense accuracy has {percent(share, digits=0)} of "
        f"the parameters: {panel.setting.network} by {display_name(label)} ({panel.setting.method}) "
        f"at {100 * point.amount:g} %."
    ]


def _tiles(records: Sequence[CellRecord], panels: Sequence[Panel], done: int, failed: int) -> tuple[Tile, ...]:
    seeds = {record.parameters.calibration_seed for record in finished_cells(records)}
    checkpoints = {record.parameters.checkpoint_sha256 for record in finished_cells(records)}
    note = f"{_count(len(checkpoints), 'checkpoint')}, {_count(len(seeds), 'calibration seed')}"
    if not records:
        return ()
    tiles = [Tile(f"{done}", "cells finished", note + (f", {failed} failed" if failed else ""))]
    advantage, overall = retention_advantage(records), [c for c in compare(records) if c.amount is None]
    if advantage is not None:
        tiles.append(Tile(points_text(advantage), "points of retention", "weighted PageRank against the others, 95 %"))
        wins, pairs = sum(c.wins for c in overall), sum(c.wins + c.ties + c.losses for c in overall)
        tiles.append(Tile(percent(wins / pairs, digits=0), "paired wins", f"{wins} of {pairs} comparisons"))
    found = smallest_good(panels)
    if found is not None:
        panel, label, point = found
        times = panel.dense_parameters / point.num_parameters
        lost = f"{point.top1.mean - panel.dense_top1:+.1%}".replace("-", "−").replace("%", " points")
        tiles.append(Tile(f"{times:.1f} ×", "fewer parameters", f"{display_name(label)}, {lost} top-1"))
    return tuple(tiles)


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
