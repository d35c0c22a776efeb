"""From records to what is drawn: panels of curves, fronts, what every layer lost. Frozen, no drawing here."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from mlprank.experiments.records import CellMetrics, CellParameters, CellRecord
from mlprank.experiments.statistics import Interval, finished_cells, interval_over_replicates, replicates, series_label
from mlprank.report.palette import styles_of


@dataclass(frozen=True, order=True)
class Setting:
    """What the cells of one panel share."""

    model: str
    dataset: str
    method: str
    compensation: str
    graph: str
    protect_output: bool
    calibration_samples: int

    @property
    def network(self) -> str:
        """Model and data set, as one title."""
        return f"{self.model} on {self.dataset}"


@dataclass(frozen=True)
class Point:
    """One measure at one amount, over replicates. Fractions, bytes and seconds."""

    amount: float
    top1: Interval
    top5: Interval
    retention: Interval
    achieved: float
    size_bytes: float
    num_parameters: float
    flops: float
    latency_s: Interval | None


@dataclass(frozen=True)
class Curve:
    """One measure in one panel; `lost[layer][amount]` is the mean fraction of the layer's neurons taken out."""

    label: str
    points: tuple[Point, ...]
    lost: Mapping[str, Mapping[float, float]]

    def at(self, amount: float) -> Point | None:
        """The point at an amount, if there is one."""
        return next((point for point in self.points if point.amount == amount), None)


@dataclass(frozen=True)
class Panel:
    """One setting: the dense network and a curve a measure."""

    setting: Setting
    dense_top1: float
    dense_size_bytes: float
    dense_parameters: float
    dense_latency_s: float | None
    curves: tuple[Curve, ...]

    @property
    def amounts(self) -> tuple[float, ...]:
        """All amounts that any curve has, ascending."""
        return tuple(sorted({point.amount for curve in self.curves for point in curve.points}))


@dataclass(frozen=True)
class FrontPoint:
    """One pruned network of a trade-off: its cost, its accuracy, and whether nothing is better in both."""

    panel: Panel
    label: str
    point: Point
    cost: float
    on_front: bool


def setting_of(parameters: CellParameters) -> Setting:
    """The panel that a cell belongs to."""
    p = parameters
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(p.method_args.items()))
    method = f"{p.method}, {arguments}" if arguments else p.method
    return Setting(p.model, p.dataset, method, p.compensation, p.graph, p.protect_output, p.calibration_samples)


def panels_of(records: Iterable[CellRecord]) -> tuple[Panel, ...]:
    """Group finished cells into panels, sorted by setting."""
    groups: dict[Setting, list[CellRecord]] = defaultdict(list)
    for record in finished_cells(records):
        groups[setting_of(record.parameters)].append(record)
    return tuple(_panel(setting, groups[setting]) for setting in sorted(groups))


def subtitles(panels: Sequence[Panel]) -> dict[Setting, str]:
    """What tells a panel from others beside network and method: only what varies between them."""
    said: dict[str, Callable[[Setting], str]] = {
        "compensation": lambda s: f"{s.compensation} compensation",
        "graph": lambda s: f"{s.graph} graph",
        "protect_output": lambda s: "output protected" if s.protect_output else "output pruned too",
        "calibration_samples": lambda s: f"{s.calibration_samples} calibration images",
    }
    varied = [name for name in said if len({getattr(panel.setting, name) for panel in panels}) > 1]
    return {panel.setting: ", ".join(said[name](panel.setting) for name in varied) for panel in panels}


def by_network(panels: Sequence[Panel]) -> dict[str, tuple[Panel, ...]]:
    """Panels by network, in order."""
    groups: dict[str, list[Panel]] = defaultdict(list)
    for panel in panels:
        groups[panel.setting.network].append(panel)
    return {network: tuple(found) for network, found in groups.items()}


def front_of(panels: Sequence[Panel], *, cost: str) -> tuple[FrontPoint, ...]:
    """Every pruned network of one network's panels with its cost; the Pareto front is marked.

    Args:
        panels: Panels of one network.
        cost: "latency" (seconds, measured) or "size" (bytes). Points without a measured latency are left out.

    Returns:
        Sorted by cost. A point is on the front if no other is at least as cheap and at least as accurate, and
        better in one of the two.
    """
    found: list[tuple[float, Panel, str, Point]] = []
    for panel in panels:
        for curve in panel.curves:
            for point in curve.points:
                value = point.size_bytes if cost == "size" else point.latency_s.mean if point.latency_s else None
                if value is not None:
                    found.append((value, panel, curve.label, point))
    found.sort(key=lambda entry: (entry[0], -entry[3].top1.mean))
    marked: list[FrontPoint] = []
    best, best_cost = -math.inf, math.nan
    for value, panel, label, point in found:
        tie = point.top1.mean == best and value == best_cost
        on_front = point.top1.mean > best or tie
        if on_front and not tie:
            best, best_cost = point.top1.mean, value
        marked.append(FrontPoint(panel, label, point, value, on_front))
    return tuple(marked)


def front_steps(front: Sequence[FrontPoint]) -> list[tuple[float, float]]:
    """The Pareto front as corners of a staircase: (cost, top-1)."""
    corners = [(entry.cost, entry.point.top1.mean) for entry in front if entry.on_front]
    steps = corners[:1]
    for (_, low), (cost, high) in pairwise(corners):
        steps += [(cost, low), (cost, high)]
    return steps


def lost_tables(panel: Panel) -> list[tuple[tuple[str, ...], Curve]]:
    """Curves with what they lost, those that lost the same in every layer joined: (labels, one of the curves)."""
    tables: dict[str, list[Curve]] = defaultdict(list)
    for curve in panel.curves:
        plain = {name: {a: round(v, 6) for a, v in lost.items()} for name, lost in curve.lost.items()}
        tables[json.dumps(plain, sort_keys=True)].append(curve)
    return [(tuple(curve.label for curve in curves), curves[0]) for curves in tables.values()]


def short_names(names: Sequence[str]) -> list[str]:
    """Layer names without a long common beginning: `linear_relu_stack.0` becomes `…0`; short ones stay whole."""
    shared = list(names[0].split(".")[:-1]) if len(names) > 1 else []
    while shared and not all(name.startswith(".".join(shared) + ".") for name in names):
        shared.pop()
    start = sum(len(part) + 1 for part in shared)
    return [f"…{name[start:]}" for name in names] if start > 5 else list(names)


def _panel(setting: Setting, cells: Sequence[CellRecord]) -> Panel:
    groups: dict[str, list[_Replicate]] = defaultdict(list)
    for cell, name in zip(cells, replicates(cells), strict=True):
        groups[series_label(cell.parameters)].append(_Replicate(name, cell.parameters.amount, _metrics(cell)))
    metrics = [_metrics(cell) for cell in cells]
    latencies = [m.latency_s_before for m in metrics if m.latency_s_before is not None]
    return Panel(
        setting=setting,
        dense_top1=_mean(m.dense_top1 for m in metrics),
        dense_size_bytes=_mean(m.size_bytes_before for m in metrics),
        dense_parameters=_mean(m.num_parameters_before for m in metrics),
        dense_latency_s=_mean(latencies) if latencies else None,
        curves=tuple(_curve(label, groups[label]) for label in styles_of(groups)),
    )


class _Replicate(NamedTuple):
    """One value of a curve: the trained network or calibration draw that it is of, its amount, and what was measured."""

    name: str
    amount: float
    metrics: CellMetrics


def _curve(label: str, cells: Sequence[_Replicate]) -> Curve:
    groups: dict[float, list[_Replicate]] = defaultdict(list)
    for cell in cells:
        groups[round(cell.amount, 9)].append(cell)
    lost: dict[str, dict[float, float]] = {}
    for amount in sorted(groups):
        shares: dict[str, list[float]] = defaultdict(list)
        for cell in groups[amount]:
            for layer in cell.metrics.layers:
                shares[layer.name].append(1.0 - layer.kept / layer.width if layer.width else 0.0)
        for name, values in shares.items():
            lost.setdefault(name, {})[amount] = _mean(values)
    return Curve(label, tuple(_point(amount, groups[amount]) for amount in sorted(groups)), lost)


def _point(amount: float, cells: Sequence[_Replicate]) -> Point:
    names, metrics = [cell.name for cell in cells], [cell.metrics for cell in cells]
    timed = [(cell.name, cell.metrics.latency_s_after) for cell in cells if cell.metrics.latency_s_after is not None]
    return Point(
        amount=amount,
        top1=interval_over_replicates(names, [m.top1 for m in metrics]),
        top5=interval_over_replicates(names, [m.top5 for m in metrics]),
        retention=interval_over_replicates(names, [m.retention for m in metrics]),
        achieved=_mean(m.achieved_amount for m in metrics),
        size_bytes=_mean(m.size_bytes_after for m in metrics),
        num_parameters=_mean(m.num_parameters_after for m in metrics),
        flops=_mean(m.flops_after for m in metrics),
        latency_s=interval_over_replicates(*zip(*timed, strict=True)) if timed else None,
    )


def _metrics(cell: CellRecord) -> CellMetrics:
    assert cell.metrics is not None
    return cell.metrics


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
