"""The charts of a report: alone in the cards of the page, side by side in pictures for papers."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mlprank.experiments.statistics import Comparison, Setting, setting_of
from mlprank.report.content import (
    Content,
    Curve,
    Panel,
    best_at_middle,
    by_network,
    conditions_text,
    cost_points,
    lost_maps,
    subtitles,
)
from mlprank.report.findings import averaged_over
from mlprank.report.tables import Table, accuracy_table, percent, search_tables, setting_title, slug
from mlprank.utils import charts
from mlprank.utils.charts import CostPoint, Drawing, HeatMap, Look, alt, display_name

PICTURE_KINDS = ("accuracy", "differences", "latency", "size", "lost", "centralities", "tuning", "shrunk")
"""The pictures of a report, by the first word of their names."""
_UNITS: dict[str, tuple[str, tuple[tuple[float, str], ...]]] = {
    "latency": ("measured latency", ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))),
    "size": ("file size", ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))),
}
"""What a network costs: how it is called, and its units with what one of them is in seconds or bytes."""
_WIDTHS = {"accuracy": 380, "differences": 380, "lost": 260, "centralities": 300}
_VERDICTS = {"better": "ahead", "worse": "behind", "undecided": "no clear difference", "": "too few trainings"}


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
    about = subtitles(panel.setting for panel in content.panels)
    found: list[Figure] = []
    for claim in content.claims:
        draw = partial(draw_differences, claim, smallest_effect=content.smallest_effect)
        found.append(
            Figure("differences", "all settings", conditions_text(claim[0].settings[0]), averaged_over(claim[0]), draw)
        )
    for network, panels in by_network(content.panels).items():
        for panel in panels:
            title = setting_title(panel.setting, about).removeprefix(f"{network}, ")
            where, numbers = where_of(panel.setting), accuracy_table(panel, content.looks, title=network)
            draw = partial(draw_accuracy, panel, content.looks)
            best, note = best_at_middle(panel), ""
            if best is not None:
                label, at = best
                note = f"Highest mean at {100 * at.amount:g} %: {display_name(label)}, {percent(at.top1.mean)}"
            found.append(Figure("accuracy", network, title, note, draw, where, numbers))
            for labels, curve in lost_maps(panel):
                every = len(labels) == len(panel.curves) > 1
                measures = "every measure" if every else ", ".join(map(display_name, labels))
                found.append(Figure("lost", network, measures, title, partial(_draw_lost, curve), where))
        where = {name: where[name] for name in ("model", "dataset")}
        for cost in _UNITS:
            if points := cost_points(panels, cost=cost):
                num = len(charts.pareto_front(points))
                note = f"{num} of {len(points)} pruned networks are on the front"
                dense = [(value, p.dense.top1.mean) for p in panels if (value := p.dense.cost(cost)) is not None]
                draw = partial(_draw_front, points, dense, content.looks, cost)
                found.append(Figure(cost, network, network, note, draw, where))
        for label in content.looks:
            for scores in content.scores:
                if scores.network == network and scores.label == label and scores.layers:
                    p = scores.record.parameters
                    note = f"{p.method}, {100 * p.amount:g} %, {conditions_text(setting_of(p))}"
                    draw = partial(charts.draw_scores, scores.layers)
                    found.append(Figure("centralities", network, display_name(label), note, draw, where))
    for search, table in zip(content.searches, search_tables(content), strict=True):
        draw = partial(charts.draw_heat_map, search.map, search=True)
        name = str(search.directory)
        found.append(
            Figure("tuning", name, f"{search.map.title}: {search.map.value_title}, %", name, draw, numbers=table)
        )
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
    content: Content,
    directory: Path,
    *,
    kinds: Collection[str],
    formats: Collection[str],
    on_picture: Callable[[str], None] = lambda name: None,
) -> tuple[Path, ...]:
    """Draw the figures of some kinds into `directory`, those of a group side by side, as `<kind>_<group>.<format>`."""
    from altair.utils.schemapi import debug_mode

    files = []
    for (kind, group), found in groupby(figures_of(content), key=lambda figure: (figure.kind, figure.group)):
        if kind not in kinds:
            continue
        with debug_mode(False):  # the check of every part against the schema takes seconds; tests check the charts
            drawn = [
                figure.draw(
                    title=figure.title if kind != "lost" else f"{figure.title}: {figure.note}",
                    width=_WIDTHS.get(kind, 460),
                )
                for figure in found
            ]
            chart = charts.compose(drawn, columns=2 if len(drawn) in (2, 4) else 3)
        for ending in formats:
            path = directory / f"{kind}_{slug(group)}.{ending}"
            on_picture(path.name)
            files.append(charts.write_chart(chart, path))
    return tuple(files)


def draw_accuracy(panel: Panel, looks: Mapping[str, Look], *, title: str, width: int | None = None) -> Drawing:
    """Draw top-1 accuracy against the amount: a curve for every series with its interval as a band.

    Without a width it is interactive: the legend switches series, and the pointer tells all values at its amount.
    """
    legend = charts.switch() if width is None else None
    rows, table = _accuracy_rows(panel, looks)
    top = 100 * panel.dense.top1.mean
    low = min([top, *(row["low"] or row["top1"] for row in rows)])
    high = max([top, *(row["high"] or row["top1"] for row in rows)])
    right = min(10 * math.ceil(max((row["amount"] for row in rows), default=100) / 10), 100)
    span = [max(5 * math.floor((low - 1) / 5), 0), min(5 * math.ceil((high + 1) / 5), 100)]
    x = alt.X("amount:Q", title="neurons pruned, %", scale=alt.Scale(domain=[0, right], nice=False))
    y = alt.Y("top1:Q", title="top-1 accuracy, %", scale=alt.Scale(domain=span, nice=False, zero=False))
    base = charts.chart_of(rows).encode(x=x, color=charts.colors(looks))
    dense = charts.chart_of([{"top1": round(top, 2)}]).encode(y=alt.Y("top1:Q"))
    below = top > span[1] - 0.08 * (span[1] - span[0])
    layers = [
        base.transform_filter("isValid(datum.low)")
        .mark_area()
        .encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), opacity=charts.dimmed(legend, 0.14, 0.0)),
        dense.mark_rule(strokeDash=[2, 4], color=charts.QUIET),
        base.mark_line(strokeWidth=2.2).encode(y=y, strokeDash=charts.dashes(looks), opacity=charts.dimmed(legend)),
        base.transform_filter("datum.amount > 0")
        .mark_point(filled=True, size=62, opacity=1)
        .encode(y=y, shape=charts.shapes(looks), opacity=charts.dimmed(legend)),
        *charts.written(
            dense.encode(x=alt.XDatum(right)), f"dense {top:.1f} %",
            align="right", dx=-2, dy=11 if below else -8, color=charts.QUIET,
        ),
    ]  # fmt: skip
    if width is None:
        pointer = alt.selection_point(
            name="pointer", fields=["amount"], on="pointerover", clear="pointerout", empty=False
        )
        told = charts.chart_of(table)
        shown = [look.name for look in looks.values() if any(look.name in row for row in table)]
        tips = charts.tooltips("pruned, %:amount", *shown)
        layers += [
            told.mark_rule(strokeWidth=1.5, color=charts.QUIET).encode(
                x=x, opacity=charts.dimmed(pointer, 1.0, 0.0, empty=False)
            ),
            told.mark_rect(opacity=0, clip=True)
            .encode(x=alt.X("left:Q"), x2=alt.X2("right:Q"), tooltip=tips)
            .add_params(pointer),
        ]
    return Drawing(layers, title, width, 270, legend)


def _accuracy_rows(panel: Panel, looks: Mapping[str, Look]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the curves, which start at the dense network, and a row for every amount with all values as text."""
    top1 = charts.percentage(panel.dense.top1.mean)
    rows, table = [], {round(100 * amount, 6): dict[str, Any]() for amount in panel.amounts}
    for curve in panel.curves:
        name = looks[curve.label].name
        rows.append({"series": name, "amount": 0, "top1": top1, "low": top1, "high": top1})
        for point in curve.points:
            at, amount = point.top1, round(100 * point.amount, 6)
            table[amount][name] = f"{100 * at.mean:.2f} %"
            if at.low is not None and at.high is not None and at.high - at.low >= 1e-4:
                table[amount][name] += f" ({100 * at.low:.2f} to {100 * at.high:.2f})"
            values = {
                key: charts.percentage(value) for key, value in (("top1", at.mean), ("low", at.low), ("high", at.high))
            }
            rows += [{"series": name, "amount": amount} | values] if amount > 0 else []
    # The pointer tells the amount that it is nearest to: each row holds the place between its neighbours.
    amounts = [-math.inf, *table, math.inf]
    told = [
        row | {"amount": amount, "left": max((before + amount) / 2, 0), "right": min((amount + after) / 2, 100)}
        for before, (amount, row), after in zip(amounts, table.items(), amounts[2:], strict=False)
    ]
    return rows, told


def draw_differences(
    comparisons: Sequence[Comparison], *, smallest_effect: float, title: str, width: int | None = None
) -> Drawing:
    """Draw the leads over single baselines with their intervals; the grey zone, a fraction, is too small to count."""
    rows = [
        {
            "baseline": display_name(c.baseline),
            "mean": charts.percentage(c.accuracy.mean),
            "low": charts.percentage(c.accuracy.low),
            "high": charts.percentage(c.accuracy.high),
            "verdict": _VERDICTS[c.verdict],
        }
        for c in comparisons
        if c.baseline
    ]
    tones = dict(zip(_VERDICTS.values(), (charts.GOOD, charts.BAD, charts.QUIET, charts.DIM), strict=True))
    tones = {name: tone for name, tone in tones.items() if any(row["verdict"] == name for row in rows)}
    color = alt.Color("verdict:N", title=None, scale=alt.Scale(domain=list(tones), range=list(tones.values())))
    base = charts.chart_of(rows).encode(y=alt.Y("baseline:N", title=None, sort=None), color=color)
    zone = charts.chart_of([{"low": -100 * smallest_effect, "high": 100 * smallest_effect}])
    ends = {"x": alt.X("low:Q"), "x2": alt.X2("high:Q")}
    layers = [
        zone.mark_rect(color=charts.FAINT).encode(**ends),
        charts.chart_of([{"zero": 0}]).mark_rule(color=charts.LINE).encode(x=alt.X("zero:Q")),
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(**ends),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=alt.X("mean:Q", title="lead in top-1 accuracy, points", scale=alt.Scale(padding=10)),
            tooltip=charts.tooltips("against:baseline", "points:mean", "from:low", "to:high", "verdict"),
        ),
    ]
    return Drawing(layers, title, width, 26 * len(rows))


def _draw_front(
    points: Sequence[CostPoint], dense: Sequence[tuple[float, float]], looks: Mapping[str, Look], cost: str, **look: Any
) -> Drawing:
    """Draw accuracy against cost, in the largest unit that fits; the dense network is the mean of several."""
    whole = [sum(part) / len(dense) for part in zip(*dense, strict=True)]
    name, units = _UNITS[cost]
    largest = max([point.cost for point in points] + whole[:1])
    divisor, unit = next((unit for unit in units if largest >= unit[0]), units[-1])
    scaled = [replace(point, cost=point.cost / divisor) for point in points]
    at = (whole[0] / divisor, whole[1]) if whole else None
    return charts.draw_front(scaled, looks, cost=f"{name}, {unit}", dense=at, **look)


def _draw_lost(curve: Curve, **look: Any) -> Drawing:
    amounts = sorted({amount for lost in curve.lost.values() for amount in lost})
    table = HeatMap(
        title="",
        rows=tuple(charts.short_names(list(curve.lost))),
        columns=tuple(f"{100 * amount:g}" for amount in amounts),
        values=tuple(tuple(lost.get(amount) for amount in amounts) for lost in curve.lost.values()),
        column_title="requested amount, %",
        value_title="pruned",
    )
    return charts.draw_heat_map(table, **look)
