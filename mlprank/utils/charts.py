"""Every chart of this project, defined once, in Altair: interactive in a page or a notebook; PNG, SVG and PDF for papers.

What is drawn comes in as plain records. One definition serves light and dark ground: each colour is an expression of the chart's parameter
`dark`, which `write_chart` and the report's page set. Altair takes a second to import, so functions import it where they need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlprank.utils.files import whole_file

if TYPE_CHECKING:
    import altair as alt

Chart: TypeAlias = "alt.LayerChart | alt.FacetChart | alt.ConcatChart"

FORMATS = ("png", "svg", "pdf")
VERDICTS = ("better", "undecided", "worse")
_NAMES = {"weighted_pagerank": "Weighted PageRank", "modified_pagerank": "Modified PageRank"}
_CROSS = "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z"
# Okabe and Ito 2008, Color Universal Design, with lighter tints of the same hues for dark ground; grey stands for `random`.
_LOOKS: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
    ("#0072B2", "#4AA3EA", "circle", ()),
    ("#D55E00", "#F58A4B", "diamond", ()),
    ("#56B4E9", "#A9DCFB", "square", (7, 3)),
    ("#CC79A7", "#E7A3CB", "triangle-down", (2, 3)),
    ("#E69F00", "#F4BC45", "triangle-up", (9, 3, 2, 3)),
    ("#009E73", "#37CBA0", "cross", (5, 2)),
    ("#6E7781", "#98A2AE", _CROSS, (1, 3)),
    ("#9A8700", "#F0E442", "triangle-right", (12, 3)),
    ("#5B3A8C", "#B79BEA", "triangle-left", (3, 2, 1, 2)),
)
_FIXED = ("weighted_pagerank", "reconstruction", "modified_pagerank", "wanda", "norm", "activation", "random")
_NUM_STEPS = 80
_ROW = 44


def _either(light: str, dark: str) -> Any:
    return {"expr": f"dark ? '{dark}' : '{light}'"}


GROUND, INK = _either("#ffffff", "#171e26"), _either("#16202b", "#e8edf2")
QUIET, FAINT, LINE = _either("#5a6775", "#9aa7b4"), _either("#e4e7eb", "#27313c"), _either("#c9d0d7", "#3b4754")
KEPT, PRUNED = _either("#0072B2", "#4AA3EA"), _either("#E7B08A", "#8A4B22")
GOOD, BAD = _either("#0072B2", "#4AA3EA"), _either("#D55E00", "#F58A4B")
DIM = _either("#aab4be", "#66727f")
PALE, STRONG = _either("#eef4fa", "#1d2833"), _either("#08355f", "#b5dcff")


@dataclass(frozen=True)
class Look:
    """How a series looks in every chart; told apart without colour too.

    Attributes:
        name: What a person reads.
        light: Colour on light ground.
        dark: Colour on dark ground.
        shape: Vega's name of the marker, or an SVG path.
        dash: Lengths of strokes and gaps, empty for a whole line.
    """

    name: str
    light: str
    dark: str
    shape: str
    dash: tuple[int, ...]


@dataclass(frozen=True)
class AccuracyPoint:
    """One series at one amount; fractions. `low` and `high` are None where there is no interval."""

    series: str
    amount: float
    top1: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AccuracyPanel:
    """One setting of an accuracy chart: the dense network's accuracy and the points."""

    title: str
    dense: float
    points: tuple[AccuracyPoint, ...]


@dataclass(frozen=True)
class CostPoint:
    """One pruned network with its cost, in the unit of the chart, and its accuracy, a fraction.

    Attributes:
        series: Its measure, or whatever made it.
        cost: What it costs.
        top1: Accuracy.
        note: Amount and setting, for the pointer.
        on_front: Whether no network is both cheaper and more accurate.
        chosen: Whether this is the network that the chart names.
    """

    series: str
    cost: float
    top1: float
    note: str = ""
    on_front: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A table of fractions in [0, 1]; None where there is no value. `best` is the outlined row and column."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_title: str = ""
    column_title: str = ""
    value_title: str = "value"
    best: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ValueError(
                f"heat map {self.title!r}: values must have {len(self.rows)} rows of {len(self.columns)} numbers, "
                f"one for every label, got rows of {[len(row) for row in self.values]}"
            )


@dataclass(frozen=True)
class ScoredLayer:
    """One layer's scores, shape (n_out,), and which neurons were kept; without `kept` all are."""

    name: str
    scores: tuple[float, ...]
    kept: tuple[bool, ...] = ()


@dataclass(frozen=True)
class ScoresPanel:
    """The layers of one pruning, from the input to the output."""

    title: str
    layers: tuple[ScoredLayer, ...]


@dataclass(frozen=True)
class Difference:
    """The lead over one baseline, as a fraction, with its interval (None where there is none) and verdict, one of `VERDICTS` or ""."""

    baseline: str
    mean: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class DifferencePanel:
    """The leads of one setting."""

    title: str
    differences: tuple[Difference, ...]


def display_name(label: str) -> str:
    """What a person reads for a series label.

    >>> display_name("norm(p=2)"), display_name("weighted_pagerank"), display_name("my.package.Katz")
    ('Norm (p=2)', 'Weighted PageRank', 'Katz')
    """
    measure, bracket, arguments = label.partition("(")
    name = _NAMES.get(measure) or measure.rpartition(".")[2].replace("_", " ")
    return name[:1].upper() + name[1:] + (f" ({arguments}" if bracket else "")


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """One look for every series label, in the order of the legend; a known measure always looks the same.

    Args:
        labels: Series labels; more than nine share colours, with another dash.

    Returns:
        By label.

    >>> looks_of(["norm", "weighted_pagerank"])["norm"].light
    '#E69F00'
    """
    rank = {measure: place for place, measure in enumerate(_FIXED)}
    ordered = sorted(set(labels), key=lambda label: (rank.get(label.partition("(")[0], 99), len(label), label))
    chosen = {label: rank[label] for label in ordered if label in rank}
    spare = [place for place in range(len(_LOOKS)) if place not in chosen.values()]
    for label in ordered:
        if label in chosen:
            continue
        wanted = rank.get(label.partition("(")[0])  # norm(p=2) looks like norm where there is no plain norm
        place = wanted if wanted in spare else spare[0] if spare else max(chosen.values()) + 1
        chosen[label] = max(place, len(_LOOKS)) if not spare else place
        if place in spare:
            spare.remove(place)
    return {label: _look(label, chosen[label]) for label in ordered}


def _look(label: str, place: int) -> Look:
    light, dark, shape, dash = _LOOKS[place % len(_LOOKS)]
    around = place // len(_LOOKS)
    return Look(display_name(label), light, dark, shape, (*dash, 3 + around, 2 * around) if around else dash)


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten dotted layer names to the fewest last words that tell them apart and do not begin with a number.

    >>> short_names(["net.stack.0", "net.stack.2"]), short_names(["enc.0.fc", "enc.1.fc"]), short_names(["fc1"])
    (['stack.0', 'stack.2'], ['enc.0.fc', 'enc.1.fc'], ['fc1'])
    """
    words = [name.split(".") for name in names]
    shortened = []
    for own in words:
        length = 1
        while length < len(own) and (
            own[-length].isdigit() or sum(other[-length:] == own[-length:] for other in words) > 1
        ):
            length += 1
        shortened.append(".".join(own[-length:]))
    return shortened


def accuracy_chart(panels: Sequence[AccuracyPanel], looks: Mapping[str, Look], *, width: int | None = 380) -> Chart:
    """Draw top-1 accuracy against the amount: a curve for every series with its interval as a band.

    Args:
        panels: Settings, drawn side by side.
        looks: From `looks_of`.
        width: Pixels of a panel; None fills what holds the chart (one panel only).

    Returns:
        A chart whose legend switches series and which tells all values at the pointer.
    """
    import altair as alt

    chosen = _switched() if len(panels) == 1 else None  # Vega-Lite gives each side-by-side chart a selection of its own
    names = [look.name for look in looks.values()]
    color = alt.Color("series:N", title=None, scale=_colors(looks))
    shape = alt.Shape("series:N", title=None, scale=alt.Scale(domain=names, range=[k.shape for k in looks.values()]))
    dash = alt.StrokeDash(
        "series:N",
        title=None,
        scale=alt.Scale(domain=names, range=[list(look.dash) or [1, 0] for look in looks.values()]),
    )
    drawn = []
    for number, panel in enumerate(panels):
        rows, table = _accuracy_rows(panel, looks)
        pointer = alt.selection_point(
            name=f"pointer_{number}", fields=["amount"], on="pointerover", clear="pointerout", empty=False
        )
        low = min([100 * panel.dense, *(row["low"] or row["top1"] for row in rows)])
        high = max([100 * panel.dense, *(row["high"] or row["top1"] for row in rows)])
        right = min(10 * math.ceil(max((row["amount"] for row in rows), default=100) / 10), 100)
        x = alt.X("amount:Q", title="neurons pruned, %", scale=alt.Scale(domain=[0, right], nice=False))
        span = [max(5 * math.floor((low - 1) / 5), 0), min(5 * math.ceil((high + 1) / 5), 100)]
        y = alt.Y("top1:Q", title="top-1 accuracy, %", scale=alt.Scale(domain=span, nice=False, zero=False))
        base = _chart(rows).encode(x=x, color=color)
        shown = base.transform_filter("datum.amount > 0")
        dense = _chart([{"top1": round(100 * panel.dense, 2)}])
        below = 100 * panel.dense > span[1] - 0.08 * (span[1] - span[0])
        layers = [
            base.transform_filter("isValid(datum.low)")
            .mark_area()
            .encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"), opacity=_dimmed(chosen, 0.14, 0.0)),
            dense.mark_rule(strokeDash=[2, 4], color=QUIET).encode(y=alt.Y("top1:Q")),
            base.mark_line(strokeWidth=2.2).encode(y=y, strokeDash=dash, opacity=_dimmed(chosen)),
            shown.mark_point(filled=True, size=62, opacity=1).encode(
                y=y, shape=shape, opacity=_dimmed(chosen)
            ),
            *_written(
                dense.encode(y=alt.Y("top1:Q"), x=alt.XDatum(right)), f"dense {100 * panel.dense:.1f} %",
                align="right", dx=-2, dy=11 if below else -8, color=QUIET,
            ),
            _chart(table)
            .mark_rule(strokeWidth=1.5, color=QUIET)
            .encode(x=x, opacity=_dimmed(pointer, 1.0, 0.0, empty=False)),
            _chart(table)
            .mark_rect(opacity=0, clip=True)
            .encode(
                x=alt.X("left:Q"),
                x2=alt.X2("right:Q"),
                tooltip=_tips("pruned, %:amount", *(name for name in names if any(name in row for row in table))),
            )
            .add_params(pointer),
        ]  # fmt: skip
        size = {"title": panel.title, "width": width or "container", "height": 270}
        drawn.append((size, layers))
    return _together(drawn, columns=2 if len(drawn) in (2, 4) else 3, chosen=chosen)


def _accuracy_rows(
    panel: AccuracyPanel, looks: Mapping[str, Look]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the curves, which start at the dense network, and a row for every amount with all values as text."""
    rows, table = [], dict[float, dict[str, Any]]()
    for label in dict.fromkeys(point.series for point in panel.points):
        dense = round(100 * panel.dense, 3)
        rows.append({"series": looks[label].name, "amount": 0, "top1": dense, "low": dense, "high": dense})
    for point in sorted(panel.points, key=lambda point: point.amount):
        name = looks[point.series].name
        amount = round(100 * point.amount, 6)
        said = f"{100 * point.top1:.2f} %"
        if point.low is not None and point.high is not None:
            said += f" ({100 * point.low:.2f} to {100 * point.high:.2f})"
        table.setdefault(amount, {"amount": amount})[name] = said
        if point.amount > 0:
            ends = {"low": _percent(point.low), "high": _percent(point.high)}
            rows.append({"series": name, "amount": amount, "top1": _percent(point.top1)} | ends)
    # The pointer tells the amount that it is nearest to: each row holds the place between its neighbours.
    amounts = [-math.inf, *table, math.inf]
    for before, (amount, row), after in zip(amounts, table.items(), amounts[2:], strict=False):
        row |= {"left": max((before + amount) / 2, 0), "right": min((amount + after) / 2, 100)}
    return rows, list(table.values())


def front_chart(
    points: Sequence[CostPoint],
    looks: Mapping[str, Look],
    *,
    title: str,
    cost: str,
    dense: tuple[float, float] | None = None,
    within: float = 0.1,
    width: int | None = 460,
    score: str = "top-1 accuracy",
    percent: bool = True,
) -> Chart:
    """Draw accuracy against cost with the Pareto front; the picture shows the part that is within reach of the best.

    Args:
        points: Pruned networks.
        looks: From `looks_of`.
        title: Of the chart.
        cost: What costs are, with the unit: "file size, MB".
        dense: Cost and accuracy of the dense network.
        within: How much of the best accuracy (absolute) a network may lose and still be drawn.
        width: Pixels; None fills what holds the chart.
        score: What `top1` is, where it is another score.
        percent: Whether it is a fraction that is read in percent; otherwise it is drawn as it is.

    Returns:
        A chart that names the chosen network.
    """
    import altair as alt

    best = max([point.top1 for point in points] + ([dense[1]] if dense else []))
    useful = [p for p in points if p.top1 >= best - within or p.chosen or not percent] or list(points)
    costs = [point.cost for point in useful] + ([dense[0]] if dense else [])
    low = min(point.top1 for point in useful)
    wide = max(costs) / max(min(costs), 1e-12) > 8  # a logarithmic axis from there on
    span = [0.9 * min(costs), 1.06 * max(costs)] if wide else [0, 1.04 * max(costs)]
    x = alt.X(
        "cost:Q",
        title=f"{cost} (less is better)",
        scale=alt.Scale(type="log" if wide else "linear", domain=span, nice=False, zero=False),
        axis=alt.Axis(format=".4~f", labelOverlap=True, grid=False),
    )
    margin = 0.05 * (best - low) or 1.0
    heights: list[float] = [low - margin, best + margin]
    if percent:
        heights = [math.floor(100 * low - 0.5), min(math.ceil(100 * best + 0.5), 100)]
    shown = _percent if percent else float
    y = alt.Y(
        "top1:Q", title=f"{score}, %" if percent else score, scale=alt.Scale(domain=heights, nice=False, zero=False)
    )
    chosen = _switched()
    names = [look.name for look in looks.values()]
    rows = [
        {
            "series": looks[p.series].name,
            "cost": float(f"{p.cost:.4g}"),
            "top1": shown(p.top1),
            "note": p.note,
            "front": p.on_front,
            "chosen": p.chosen,
        }
        for p in useful
    ]
    tips = _tips("series", "top-1, %:top1", f"{cost}:cost", "pruned:note")
    base = _chart(rows).encode(x=x, y=y)
    marks = base.encode(
        color=alt.Color("series:N", title=None, scale=_colors(looks)),
        shape=alt.Shape("series:N", title=None, scale=alt.Scale(domain=names, range=[k.shape for k in looks.values()])),
        tooltip=tips,
    )
    layers = [
        base.transform_filter("datum.front").mark_line(interpolate="step-after", color=INK, strokeWidth=1.4),
        marks.transform_filter("!datum.front").mark_point(filled=True, size=34).encode(opacity=_dimmed(chosen, 0.4, 0.04)),
        marks.transform_filter("datum.front")
        .mark_point(filled=True, size=95, stroke=INK, strokeWidth=1.1)
        .encode(opacity=_dimmed(chosen)),
    ]  # fmt: skip
    if dense:
        ring = _chart([{"cost": dense[0], "top1": shown(dense[1]), "series": "dense network"}])
        ring = ring.encode(x=x, y=y, tooltip=_tips("series", "top-1, %:top1", f"{cost}:cost"))
        layers += [
            ring.mark_point(size=110, color=INK, strokeWidth=2, fill=GROUND),
            *_written(ring, "dense", align="right", dx=-9, color=QUIET),
        ]
    for point in points:
        if point.chosen:
            text = [
                f"chosen: {looks[point.series].name}",
                f"{point.note}: " + (f"{100 * point.top1:.1f} %" if percent else f"{point.top1:.4g}"),
            ]
            layers += _label(point, text, span, heights, x, y, log=wide)
    size = {"title": title, "width": width or "container", "height": 300}
    return _together([(size, layers)], chosen=chosen)


def _label(
    point: CostPoint, text: list[str], span: list[float], heights: list[float], x: alt.X, y: alt.Y, *, log: bool
) -> list[Any]:
    """A ring around the chosen network, and its name where there is room: on the side that is farther from the frame."""
    place = (
        math.log(point.cost / span[0]) / math.log(span[1] / span[0])
        if log
        else (point.cost - span[0]) / (span[1] - span[0])
    )
    high = (100 * point.top1 - heights[0]) / (heights[1] - heights[0]) > 0.5
    mark = _chart([{"cost": point.cost, "top1": _percent(point.top1)}]).encode(x=x, y=y)
    left = place < 0.5  # of the frame, so that the name has more room on its right
    return [
        mark.mark_point(size=300, color=BAD, strokeWidth=2.2, filled=False),
        *_written(mark, text, align="left" if left else "right", dx=12 if left else -12, dy=26 if high else -32),
    ]


def _written(chart: Any, text: str | list[str], *, color: Any = INK, **place: Any) -> list[Any]:
    """Text that stays readable over points: a halo of the ground under it."""
    look = {"text": text, "fontWeight": 600, "fontSize": 12, "lineHeight": 15, **place}
    return [
        chart.mark_text(stroke=GROUND, strokeWidth=4, strokeJoin="round", color=GROUND, **look),
        chart.mark_text(color=color, **look),
    ]


def heat_map_chart(maps: Sequence[HeatMap], *, whole_range: bool = True, width: int | None = None) -> Chart:
    """Draw tables of fractions as heat maps, in percent.

    Args:
        maps: Drawn side by side.
        whole_range: Whether colours run from 0 to 100 %, or from the smallest to the largest value.
        width: Pixels of a map; None fills what holds the chart (one map only).
    """
    import altair as alt

    drawn = []
    for table in maps:
        rows: list[dict[str, Any]] = [
            {"row": i, "column": j, "value": _percent(value), "said": "–" if value is None else f"{100 * value:.1f} %"}
            for i, line in enumerate(table.values)
            for j, value in enumerate(line)
        ]
        for row in rows:
            row |= {"of": table.rows[row["row"]], "at": table.columns[row["column"]]}
        numbers = [row["value"] for row in rows if row["value"] is not None]
        low, high = (0.0, 100.0) if whole_range else (min(numbers, default=0.0), max(numbers, default=100.0))
        x = alt.X("column:O", title=table.column_title or None, axis=_named(table.columns, angle=0))
        y = alt.Y("row:O", title=table.row_title or None, axis=_named(table.rows))
        base = _chart(rows).encode(x=x, y=y, tooltip=_tips(
            f"{table.row_title or 'layer'}:of", f"{table.column_title or 'column'}:at", f"{table.value_title}:said"
        ))  # fmt: skip
        scale = alt.Scale(domain=[low, high if high > low else low + 1], range=[PALE, STRONG], interpolate="rgb")
        bright = f"isValid(datum.value) && datum.value > {low + 0.6 * (high - low)}"
        ink = alt.ColorValue(INK, condition={"test": bright, "value": GROUND})
        digits = ".0f" if whole_range else ".1f"
        layers = [
            base.transform_filter("isValid(datum.value)")
            .mark_rect(stroke=GROUND, strokeWidth=2)
            .encode(color=alt.Color("value:Q", legend=None, scale=scale)),
            base.transform_calculate(text=f"isValid(datum.value) ? format(datum.value, '{digits}') : '–'")
            .mark_text(fontSize=11)
            .encode(text=alt.Text("text:N"), color=ink),
        ]
        if table.best is not None:
            outline = f"datum.row == {table.best[0]} && datum.column == {table.best[1]}"
            layers.append(base.transform_filter(outline).mark_rect(filled=False, stroke=BAD, strokeWidth=2.5))
        size = {"title": table.title, "width": width or "container", "height": 24 * len(table.rows)}
        drawn.append((size, layers))
    return _together(drawn, columns=3)


def search_map(
    title: str,
    values: Mapping[str, Sequence[str]],
    trials: Iterable[tuple[Mapping[str, str], float | None]],
    *,
    score: str = "accuracy",
) -> HeatMap:
    """Tabulate a grid search over the two options with the most values: the best score of each pair over all other options.

    Args:
        title: Of the heat map.
        values: The values of every option, as text, in the order of the grid. One option gives one row.
        trials: For each trial its option values and its score in [0, 1]; None or NaN where it failed or diverged.
        score: What the scores are.

    >>> search_map("grid", {"lr": ["0.1", "0.2"]}, [({"lr": "0.1"}, 0.5), ({"lr": "0.2"}, None)]).values
    ((0.5, None),)
    """
    widest = sorted(values, key=lambda name: -len(values[name]))[:2]
    column, row = [name for name in reversed(list(values)) if name in widest] if len(widest) > 1 else (widest[0], "")
    rows, columns = list(values[row]) if row else [""], list(values[column])
    table: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    for point, found in trials:
        if found is not None and math.isfinite(found):
            i, j = rows.index(point[row]) if row else 0, columns.index(point[column])
            before = table[i][j]
            table[i][j] = found if before is None else max(before, found)
    numbers = [(value, -i, -j) for i, line in enumerate(table) for j, value in enumerate(line) if value is not None]
    best = max(numbers, default=None)
    row_title, column_title = short_names([row, column]) if row else ("", short_names([column])[0])
    return HeatMap(
        title=title,
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(map(tuple, table)),
        row_title=row_title,
        column_title=column_title,
        value_title=score,
        best=(-best[1], -best[2]) if best else None,
    )


def scores_chart(panels: Sequence[ScoresPanel], *, width: int | None = 300) -> Chart:
    """Draw every layer's scores from the most central neuron to the least, and which of them were pruned.

    Args:
        panels: Prunings, drawn side by side.
        width: Pixels of a panel; None fills what holds the chart (one panel only).

    Returns:
        A chart in which each layer has a row of its own, as high as its largest score; a line marks the layer's mean.
    """
    import altair as alt

    drawn = []
    states = ["kept", "pruned"]
    for panel in panels:
        names = short_names([layer.name for layer in panel.layers])
        num = len(panel.layers)
        rows, runs, means = [], [], []
        for index, layer in enumerate(panel.layers):
            corners, stretches, top = _score_rows(layer, names[index], base=num - 1 - index)
            rows += corners
            runs += stretches
            means.append({"y": round(num - 1 - index + 0.86 / top, 4)})
        across = alt.X(
            "x:Q", title="neurons, from the most central to the least, %", scale=alt.Scale(domain=[0, 100], nice=False)
        )
        labels = str([*reversed(names)])
        y = alt.Y(
            "y:Q",
            title=None,
            scale=alt.Scale(domain=[0, num], nice=False),
            axis=alt.Axis(
                values=[place + 0.43 for place in range(num)],
                labelExpr=f"{labels}[floor(datum.value)]",
                grid=False, domain=False, ticks=False, labelLimit=170,
            ),
        )  # fmt: skip
        fields = alt.LookupData(
            alt.InlineData(values=runs), key="run", fields=["base", "state", "layer", "neurons", "top"]
        )
        areas = (
            _chart(rows)
            .transform_lookup(lookup="run", from_=fields)
            .mark_area(interpolate="step-after")
            .encode(
                x=across,
                y=y,
                y2=alt.Y2("base:Q"),
                detail="run:N",
                color=alt.Color("state:N", title=None, scale=alt.Scale(domain=states, range=[KEPT, PRUNED])),
                tooltip=_tips("layer", "neurons", "largest score × width:top", "state"),
            )
        )
        mean = _chart(means).mark_rule(strokeDash=[3, 3], color=QUIET).encode(y=y)
        size = {"title": panel.title, "width": width or "container", "height": _ROW * num}
        drawn.append((size, [areas, mean]))
    return _together(drawn, columns=3)


def _score_rows(
    layer: ScoredLayer, name: str, *, base: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Corners of the area under a layer's sorted scores × width (1 is the layer's mean), what each stretch of one state is, and the largest."""
    num = len(layer.scores)
    kept = layer.kept or (True,) * num
    order = sorted(range(num), key=lambda neuron: -layer.scores[neuron])
    total = math.fsum(layer.scores) or 1.0
    heights = [layer.scores[neuron] * num / total for neuron in order]
    top = max([1.0, *heights])
    # At most _NUM_STEPS corners for a layer, as a page holds many layers; where a state ends there is always one.
    cuts = {round(step * num / _NUM_STEPS) for step in range(_NUM_STEPS)} if num > _NUM_STEPS else set(range(num))
    ends = [place for place in range(1, num) if kept[order[place]] != kept[order[place - 1]]]
    cuts |= set(ends) if len(ends) <= _NUM_STEPS else set()
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    about = {
        "base": base,
        "layer": name,
        "neurons": f"{sum(kept)} kept, {num - sum(kept)} pruned",
        "top": f"{max(heights, default=0.0):.2f}",
    }
    for place in sorted(cuts):
        state, x = "kept" if kept[order[place]] else "pruned", round(100 * place / num, 2)
        if not runs or runs[-1]["state"] != state:
            rows += [rows[-1] | {"x": x}] if rows else []
            runs.append({"run": f"{base}.{len(runs)}", "state": state} | about)
        rows.append({"x": x, "y": round(base + 0.86 * heights[place] / top, 3), "run": runs[-1]["run"]})
    rows += [rows[-1] | {"x": 100}] if rows else []
    return rows, runs, top


def difference_chart(panels: Sequence[DifferencePanel], *, smallest_effect: float, width: int | None = 380) -> Chart:
    """Draw leads over baselines with their intervals; the grey zone is too small to count.

    Args:
        panels: Settings, drawn side by side.
        smallest_effect: The smallest difference that counts, a fraction.
        width: Pixels of a panel; None fills what holds the chart (one panel only).
    """
    import altair as alt

    said = {"better": "ahead", "worse": "behind", "undecided": "no clear difference", "": "too few trainings"}
    drawn = []
    for panel in panels:
        rows = [
            {
                "baseline": display_name(d.baseline),
                "mean": _percent(d.mean),
                "low": _percent(d.low),
                "high": _percent(d.high),
                "verdict": said[d.verdict],
            }
            for d in panel.differences
        ]
        seen = {row["verdict"] for row in rows}
        tones = {name: tone for name, tone in zip(said.values(), (GOOD, BAD, QUIET, DIM), strict=True) if name in seen}
        scale = alt.Scale(domain=list(tones), range=list(tones.values()))
        color = alt.Color("verdict:N", title=None, scale=scale)
        y = alt.Y("baseline:N", title=None, sort=None)
        x = alt.X("mean:Q", title="lead in top-1 accuracy, points", scale=alt.Scale(padding=10))
        base = _chart(rows).encode(y=y, color=color)
        zone = _chart([{"low": -100 * smallest_effect, "high": 100 * smallest_effect}])
        layers = [
            zone.mark_rect(color=FAINT).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")),
            _chart([{"zero": 0}]).mark_rule(color=LINE).encode(x=alt.X("zero:Q")),
            base.transform_filter("isValid(datum.low)")
            .mark_rule(strokeWidth=2)
            .encode(x=alt.X("low:Q"), x2=alt.X2("high:Q")),
            base.mark_point(filled=True, size=80, opacity=1).encode(
                x=x, tooltip=_tips("against:baseline", "points:mean", "from:low", "to:high", "verdict")
            ),
        ]
        size = {"title": panel.title, "width": width or "container", "height": 26 * max(len(rows), 1)}
        drawn.append((size, layers))
    return _together(drawn, columns=2)


def write_chart(chart: Chart, path: str | Path, *, dark: bool = False) -> Path:
    """Write a chart to a file, whole or not at all.

    Args:
        chart: From a function of this module.
        path: Its ending says what it becomes: `.png` (twice the chart's pixels), `.svg`, `.pdf`.
        dark: Whether on dark ground.

    Raises:
        ValueError: If the ending is another.
        OSError: If the file cannot be written.
    """
    import vl_convert

    path = Path(path)
    spec = spec_of(chart, dark=dark)
    with whole_file(path) as temporary:
        if path.suffix == ".png":
            temporary.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
        elif path.suffix == ".svg":
            temporary.write_text(vl_convert.vegalite_to_svg(spec), "utf-8")
        elif path.suffix == ".pdf":
            temporary.write_bytes(vl_convert.vegalite_to_pdf(spec))
        else:
            endings = ", ".join(f".{ending}" for ending in FORMATS)
            raise ValueError(f"{path}: a chart is written as one of {endings}, got {path.suffix!r}; rename the file")
    return path


def spec_of(chart: Chart, *, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, as plain types."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    for param in spec["params"]:
        if param["name"] == "dark":
            param["value"] = dark
    return spec


def _together(charts: Sequence[tuple[Mapping[str, Any], list[Any]]], *, columns: int = 1, chosen: Any = None) -> Chart:
    """One chart of several, given as properties and layers, with the parameter `dark` and this project's look."""
    import altair as alt

    params = [alt.param(name="dark", value=False), *([chosen] if chosen is not None else [])]
    (size, (first, *others)), *more = charts
    config = alt.Config(
        background=GROUND,
        font="Inter, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif",
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=QUIET, titleColor=QUIET, gridColor=FAINT, domainColor=LINE, tickColor=LINE,
            labelFontSize=11.5, titleFontSize=12, titleFontWeight=500, titlePadding=8,
        ),
        axisX=alt.AxisConfig(grid=False),
        legend=alt.LegendConfig(
            labelColor=INK, labelFontSize=12, symbolSize=80, symbolOpacity=1, orient="bottom", columns=3, labelLimit=220, offset=10
        ),
        title=alt.TitleConfig(color=INK, anchor="start", fontSize=13, fontWeight=600, offset=10),
    )  # fmt: skip
    # Altair copies a whole chart with every call that changes it, so everything is given at once.
    layers = [first.add_params(*params), *others]
    if not more:
        fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
        return alt.layer(*layers, config=config, autosize=fitted, **size)
    shared = alt.Resolve(scale=alt.ScaleResolveMap(color="shared", shape="shared"))
    side_by_side = [alt.layer(*layers, **size), *(alt.layer(*found, **other) for other, found in more)]
    return alt.concat(*side_by_side, columns=columns, spacing=24, resolve=shared, config=config)


def _chart(rows: Sequence[Mapping[str, Any]]) -> Any:
    import altair as alt

    return alt.Chart(alt.InlineData(values=tuple(rows)))


def _colors(looks: Mapping[str, Look]) -> alt.Scale:
    import altair as alt

    names = [look.name for look in looks.values()]
    return alt.Scale(domain=names, range=[_either(look.light, look.dark) for look in looks.values()])


def _switched() -> Any:
    """The series that were clicked in the legend; all where none was."""
    import altair as alt

    return alt.selection_point(name="series", fields=["series"], bind="legend", toggle="true")


def _dimmed(chosen: Any, full: float = 1.0, faint: float = 0.08, *, empty: bool = True) -> Any:
    """Opacity of what is chosen and of the rest; `empty` says whether nothing chosen means all."""
    import altair as alt

    if chosen is None:
        return alt.OpacityValue(full)
    return alt.OpacityValue(faint, condition={"param": chosen.name, "value": full, "empty": empty})


def _named(names: Sequence[str], *, angle: int | None = None) -> alt.Axis:
    """An axis over indices that shows names; equal names stay apart."""
    import altair as alt

    look: dict[str, Any] = {"domain": False, "ticks": False, "grid": False, "labelLimit": 170}
    if angle is not None:
        look["labelAngle"] = angle
    return alt.Axis(labelExpr=f"{list(names)}[datum.value]", **look)


def _tips(*fields: str) -> list[Any]:
    """Tooltips: "field", or "title:field" where the two differ."""
    import altair as alt

    found = []
    for entry in fields:
        title, _, field = entry.rpartition(":")
        escaped = field.replace(".", "\\.").replace("[", "\\[").replace("]", "\\]")
        found.append(alt.Tooltip(field=escaped, type="nominal", title=title or field))
    return found


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 3)
