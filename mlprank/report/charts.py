"""The charts of a report: alone in the cards of the page, side by side in pictures for papers."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from mlprank.experiments.statistics import Comparison, Setting, grouped, series_label, setting_of
from mlprank.report.content import Content, Panel, conditions_text, cost_points, lost_maps
from mlprank.report.findings import Table, accuracy_table, averaged_over, best_at_middle, percent, search_tables, slug
from mlprank.utils import charts
from mlprank.utils.charts import CostPoint, Drawing, Look, by_series, dimmed, display_name, layer, number, percentage

PICTURE_KINDS = ("accuracy", "differences", "latency", "size", "lost", "centralities", "tuning", "shrunk")
"""The pictures of a report, by the first word of their names."""
_UNITS: dict[str, tuple[str, tuple[tuple[float, str], ...]]] = {
    "latency": ("measured latency", ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))),
    "size": ("file size", ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))),
}
"""What a network costs: how it is called, and its units with what one of them is in seconds or bytes."""
_WIDTHS = {"accuracy": 380, "differences": 380, "lost": 260, "centralities": 300}
_VERDICTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "better": ("ahead", charts.GOOD),
    "worse": ("behind", charts.BAD),
    "undecided": ("no clear difference", charts.QUIET),
    "": ("too few trainings", charts.DIM),
}
_POINTER = {
    "name": "pointer",
    "select": {"type": "point", "fields": ["amount"], "on": "pointerover", "clear": "pointerout"},
    "views": ["pointed"],
}


@dataclass(frozen=True)
class Figure:
    """One panel of the report, alone on the page, and beside those of its kind and group in a picture."""

    kind: str  # of PICTURE_KINDS
    group: str  # its network, or the directory of its search
    title: str  # within its group
    note: str  # a line under the title
    draw: Callable[..., Drawing]  # under a title, at a width in pixels or, without one, as wide as what holds it
    where: Mapping[str, str] = field(default_factory=dict)  # what the page's filters compare
    numbers: Table | None = None


def figures_of(content: Content) -> list[Figure]:
    """Every figure, by kind and group."""
    found: list[Figure] = []
    for claim in content.claims:
        draw = partial(draw_differences, claim, smallest_effect=content.smallest_effect)
        title, note = conditions_text(claim[0].settings[0]), averaged_over(claim[0])
        found.append(Figure("differences", "all settings", title, note, draw))
    for network, panels in grouped(content.panels, lambda panel: panel.setting.network).items():
        for panel in panels:
            title = panel.title.removeprefix(f"{network}, ")
            where, numbers = where_of(panel.setting), accuracy_table(panel, content.looks)
            draw = partial(draw_accuracy, panel, content.looks)
            note = ""
            if best := best_at_middle(panel):
                label, at = best
                note = f"Highest mean at {100 * at.amount:g} %: {display_name(label)}, {percent(at.top1.mean)}"
            found.append(Figure("accuracy", network, title, note, draw, where, numbers))
            for labels, table in lost_maps(panel):
                every = len(labels) == len(panel.curves) > 1
                measures = "every measure" if every else ", ".join(map(display_name, labels))
                found.append(Figure("lost", network, measures, title, partial(charts.draw_heat_map, table), where))
        where = {name: where[name] for name in ("model", "dataset")}
        for cost in _UNITS:
            if points := cost_points(panels, cost=cost):
                num = len(charts.pareto_front(points))
                note = f"{num} of {len(points)} pruned networks are on the front"
                dense = [(value, p.dense.top1.mean) for p in panels if (value := p.dense.costs[cost]) is not None]
                draw = partial(_draw_front, points, dense, content.looks, cost)
                found.append(Figure(cost, network, network, note, draw, where))
        order = list(content.looks)
        for record, layers in sorted(content.scores, key=lambda e: order.index(series_label(e[0].parameters))):
            p = record.parameters
            if layers and setting_of(p).network == network:
                note = f"{p.method}, {100 * p.amount:g} %, {conditions_text(setting_of(p))}"
                draw = partial(charts.draw_scores, layers)
                found.append(Figure("centralities", network, display_name(series_label(p)), note, draw, where))
    for search, trials in zip(content.searches, search_tables(content), strict=True):
        draw = partial(charts.draw_heat_map, search.map, search=True)
        name, title = str(search.directory), f"{search.directory.name}: {search.map.value_title}, %"
        found.append(Figure("tuning", name, title, name, draw, numbers=trials))
    for shrunk in content.shrunk:
        name, looks = str(shrunk.directory), charts.looks_of(["shrink"])
        draw = partial(_draw_front, shrunk.points, [shrunk.dense], looks, "size", score="score", percent=shrunk.percent)
        found.append(Figure("shrunk", name, shrunk.name, name, draw))
    return sorted(found, key=lambda figure: PICTURE_KINDS.index(figure.kind))


def where_of(setting: Setting) -> dict[str, str]:
    """What the page's filters compare, by name."""
    conditions = conditions_text(setting)
    return {"model": setting.model, "dataset": setting.dataset, "method": setting.method, "conditions": conditions}


def write_pictures(
    content: Content, directory: Path, *, kinds: Collection[str], formats: Collection[str]
) -> tuple[Path, ...]:
    """Draw the figures of some kinds into `directory`, those of a group side by side, as `<kind>_<group>.<format>`."""
    files = []
    chosen = (figure for figure in figures_of(content) if figure.kind in kinds)
    for (kind, group), found in groupby(chosen, key=lambda figure: (figure.kind, figure.group)):
        drawn = []
        for figure in found:
            title = f"{figure.title}: {figure.note}" if kind == "lost" else figure.title
            drawn.append(figure.draw(title=title, width=_WIDTHS.get(kind, 460)))
        chart = charts.specification(drawn, columns=2 if len(drawn) in (2, 4) else 3)
        files += [charts.write_chart(chart, directory / f"{kind}_{slug(group)}.{ending}") for ending in formats]
    return tuple(files)


def draw_accuracy(panel: Panel, looks: Mapping[str, Look], *, title: str, width: int | None = None) -> Drawing:
    """Draw top-1 accuracy against the amount: a curve for every series with its interval as a band.

    Without a width it is interactive: the legend switches series, and the pointer tells all values at its amount.
    """
    dense, rows, told = percentage(panel.dense.top1.mean), [], dict[float, dict[str, Any]]()
    for curve in panel.curves:
        name = looks[curve.label].name
        rows.append({"series": name, "amount": 0, "top1": dense, "low": dense, "high": dense})
        for point in (point for point in curve.points.values() if point.amount > 0):
            at, said = point.top1, f"{100 * point.top1.mean:.2f} %"
            if at.low is not None and at.high is not None and at.high - at.low >= 1e-4:
                said += f" ({100 * at.low:.2f} to {100 * at.high:.2f})"
            values = {"top1": percentage(at.mean), "low": percentage(at.low), "high": percentage(at.high)}
            amount = round(100 * point.amount, 6)
            rows.append({"series": name, "amount": amount, **values})
            told.setdefault(amount, {})[name] = said
    low = min([dense, *(row["low"] or row["top1"] for row in rows)])
    high = max([dense, *(row["high"] or row["top1"] for row in rows)])
    right = min(10 * math.ceil(max((row["amount"] for row in rows), default=100) / 10), 100)
    span = [max(5 * math.floor((low - 1) / 5), 0), min(5 * math.ceil((high + 1) / 5), 100)]
    x = number("amount", title="neurons pruned, %", scale={"domain": [0, right], "nice": False})
    y = number("top1", title="top-1 accuracy, %", scale={"domain": span, "nice": False, "zero": False})
    at_dense, place = {"y": number("top1")}, {"x": x, "color": by_series(looks, "color")}
    opacity, dot = {"value": 1.0} if width else dimmed(), {"filled": True, "size": 62, "opacity": 1}
    below = dense > span[1] - 0.08 * (span[1] - span[0])
    text = {"align": "right", "dx": -2, "dy": 11 if below else -8, "color": charts.QUIET}
    ends = {"y": number("low"), "y2": {"field": "high"}, "opacity": {"value": 0.14} if width else dimmed(0.14, 0.0)}
    line = [{"top1": round(dense, 2)}]
    dashes, shapes = by_series(looks, "strokeDash"), by_series(looks, "shape")
    layers = [
        layer(rows, "area", {}, where="isValid(datum.low)", **ends, **place),
        layer(line, "rule", {"strokeDash": [2, 4], "color": charts.QUIET}, **at_dense),
        layer(rows, "line", {"strokeWidth": 2.2}, y=y, strokeDash=dashes, opacity=opacity, **place),
        layer(rows, "point", dot, where="datum.amount > 0", y=y, shape=shapes, opacity=opacity, **place),
        *charts.written(line, f"dense {dense:.1f} %", text, x={"datum": right}, **at_dense),
    ]
    if width:
        return {"layer": layers, "title": title, "width": width, "height": 270}
    layers[0]["name"] = "switched"
    # The pointer tells the amount that it is nearest to: each row holds the place between its neighbours.
    amounts = [-math.inf, *sorted(told), math.inf]
    table = [
        told[at] | {"amount": at, "left": max((before + at) / 2, 0), "right": min((at + after) / 2, 100)}
        for before, at, after in zip(amounts, amounts[1:], amounts[2:], strict=False)
    ]
    names = {row["series"] for row in rows}
    tips = charts.tooltips("pruned, %:amount", *(look.name for look in looks.values() if look.name in names))
    nearest = {"x": number("left"), "x2": {"field": "right"}, "tooltip": tips}
    rule, at_pointer = {"strokeWidth": 1.5, "color": charts.QUIET}, dimmed(1.0, 0.0, by="pointer", empty=False)
    layers += [
        layer(table, "rule", rule, x=x, opacity=at_pointer),
        layer(table, "rect", {"opacity": 0, "clip": True}, **nearest) | {"name": "pointed"},
    ]
    return {"layer": layers, "title": title, "width": None, "height": 270, "params": [charts.SWITCH, _POINTER]}


def draw_differences(
    comparisons: Sequence[Comparison], *, smallest_effect: float, title: str, width: int | None = None
) -> Drawing:
    """Draw the leads over single baselines with their intervals; the grey zone, a fraction, is too small to count."""
    rows = []
    for c in (c for c in comparisons if c.baseline):
        lead = {name: percentage(getattr(c.accuracy, name)) for name in ("mean", "low", "high")}
        rows.append({"baseline": display_name(c.baseline), **lead, "verdict": _VERDICTS[c.verdict][0]})
    tones = {name: tone for name, tone in _VERDICTS.values() if any(row["verdict"] == name for row in rows)}
    scale = {"domain": list(tones), "range": list(tones.values())}
    color = {"field": "verdict", "type": "nominal", "title": None, "scale": scale}
    place: dict[str, Any] = {"y": {"field": "baseline", "type": "nominal", "title": None, "sort": None}, "color": color}
    zone = [{"low": -100 * smallest_effect, "high": 100 * smallest_effect}]
    ends = {"x": number("low"), "x2": {"field": "high"}}
    mean = number("mean", title="lead in top-1 accuracy, points", scale={"padding": 10})
    tips = charts.tooltips("against:baseline", "points:mean", "from:low", "to:high", "verdict")
    layers = [
        layer(zone, "rect", {"color": charts.FAINT}, **ends),
        layer([{"zero": 0}], "rule", {"color": charts.LINE}, x=number("zero")),
        layer(rows, "rule", {"strokeWidth": 2}, where="isValid(datum.low)", **ends, **place),
        layer(rows, "point", {"filled": True, "size": 80, "opacity": 1}, x=mean, tooltip=tips, **place),
    ]
    return {"layer": layers, "title": title, "width": width, "height": 26 * len(rows)}


def _draw_front(
    points: Sequence[CostPoint], dense: Sequence[tuple[float, float]], looks: Mapping[str, Look], cost: str, **look: Any
) -> Drawing:
    """Draw accuracy against cost, in the largest unit that fits; the dense network is the mean of several."""
    whole = [fmean(part) for part in zip(*dense, strict=True)]
    name, units = _UNITS[cost]
    largest = max([point.cost for point in points] + whole[:1])
    divisor, unit = next((unit for unit in units if largest >= unit[0]), units[-1])
    scaled = [replace(point, cost=point.cost / divisor) for point in points]
    at = (whole[0] / divisor, whole[1]) if whole else None
    return charts.draw_front(scaled, looks, cost=f"{name}, {unit}", dense=at, **look)
