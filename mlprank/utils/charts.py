"""How every chart of this project looks, in Altair, and the drawings that more than one package makes.

A drawing is one panel; `compose` makes a chart of one or of several side by side. One definition serves light and dark
ground: colours are expressions of the chart's parameter `dark`, which `write_chart` and the report's page set.
"""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlprank.utils.files import write_whole

if TYPE_CHECKING:
    import altair

    alt = altair
else:

    class _Altair:
        """Altair, which takes a second to import, when it is first used."""

        def __getattr__(self, name):
            return getattr(importlib.import_module("altair"), name)

    alt = _Altair()

Chart: TypeAlias = "alt.LayerChart | alt.FacetChart | alt.ConcatChart"

FORMATS = ("png", "svg", "pdf")
_NAMES = {"weighted_pagerank": "Weighted PageRank", "modified_pagerank": "Modified PageRank"}
_CROSS = "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z"
# Okabe and Ito 2008, Color Universal Design, with lighter tints for dark ground; grey stands for `random`.
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
_ROW, _LEAST = 44, 0.04
"""Pixels of a layer's scores, and the share of them that a score of 0 has, so that its neuron is seen."""
_REACH = 0.1
"""A front shows networks within this much of the best accuracy, or within twice the chosen one's loss."""


def _either(light: str, dark: str) -> Any:
    return {"expr": f"dark ? '{dark}' : '{light}'"}


GROUND, INK = _either("#ffffff", "#171e26"), _either("#16202b", "#e8edf2")
QUIET, FAINT, LINE = _either("#5a6775", "#9aa7b4"), _either("#e4e7eb", "#27313c"), _either("#c9d0d7", "#3b4754")
GOOD, BAD, DIM = _either("#0072B2", "#4AA3EA"), _either("#D55E00", "#F58A4B"), _either("#aab4be", "#66727f")
PRUNED = _either("#E7B08A", "#8A4B22")
PALE, STRONG = _either("#eef4fa", "#1d2833"), _either("#08355f", "#b5dcff")


@dataclass(frozen=True)
class Look:
    """How a series looks in every chart; told apart without colour too."""

    name: str
    light: str
    dark: str
    shape: str  # Vega's name of the marker, or an SVG path
    dash: tuple[int, ...]  # lengths of strokes and gaps, empty for a whole line


@dataclass(frozen=True)
class CostPoint:
    """One pruned network: what made it, its cost, its accuracy (a fraction) or score, and what the pointer tells."""

    series: str
    cost: float
    top1: float
    note: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A table of fractions in [0, 1], one row of values for every row's name; None where there is no value."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_title: str = ""
    column_title: str = ""
    value_title: str = "value"

    @property
    def best(self) -> tuple[int, int] | None:
        """Row and column of the largest value, the first of equals."""
        places = [(i, j) for i, line in enumerate(self.values) for j, value in enumerate(line) if value is not None]
        return max(places, key=lambda at: self.values[at[0]][at[1]] or 0.0, default=None)


@dataclass(frozen=True)
class ScoredLayer:
    """One layer's scores, shape (n_out,), and which neurons were kept; without `kept` all are."""

    name: str
    scores: tuple[float, ...]
    kept: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """One panel: Altair's layers, their size (None fills what holds the chart), and what its legend switches."""

    layers: Sequence[Any]
    title: str
    width: int | None
    height: int
    legend: Any = None


def display_name(label: str) -> str:
    """What a person reads for a series label.

    >>> display_name("norm(p=2)"), display_name("weighted_pagerank"), display_name("my.package.Katz")
    ('Norm (p=2)', 'Weighted PageRank', 'Katz')
    """
    measure, bracket, arguments = label.partition("(")
    name = _NAMES.get(measure) or measure.rpartition(".")[2].replace("_", " ")
    return name[:1].upper() + name[1:] + (f" ({arguments}" if bracket else "")


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """The look of every series label, in the order of the legend; more than nine share colours, with another dash.

    >>> looks_of(["norm", "weighted_pagerank"])["norm"].light
    '#E69F00'
    """
    rank = {measure: place for place, measure in enumerate(_FIXED)}
    wanted = {label: rank.get(label.partition("(")[0], len(_LOOKS)) for label in labels}
    ordered = sorted(wanted, key=lambda label: (wanted[label], len(label), label))
    spare = [place for place in range(len(_LOOKS)) if place >= len(_FIXED) or _FIXED[place] not in wanted]
    looks, place = {}, len(_LOOKS)
    for label in ordered:
        own = rank.get(label)
        if own is None and spare:  # norm(p=2) looks like norm where there is no plain norm
            own = spare.pop(spare.index(wanted[label]) if wanted[label] in spare else 0)
        elif own is None:
            own, place = place, place + 1
        light, dark, shape, dash = _LOOKS[own % len(_LOOKS)]
        around = own // len(_LOOKS)
        dash = (*dash, 3 + around, 2 * around) if around else dash
        looks[label] = Look(display_name(label), light, dark, shape, dash)
    return looks


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


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """The points, by cost, that nothing beats: no other is at least as cheap and accurate, and better in one of them.

    >>> [p.cost for p in pareto_front([CostPoint("a", 2, 0.8), CostPoint("a", 3, 0.7), CostPoint("a", 1, 0.5)])]
    [1, 2]
    """
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.top1)):
        if not front or point.top1 > front[-1].top1 or (point.cost, point.top1) == (front[-1].cost, front[-1].top1):
            front.append(point)
    return front


def draw_front(
    points: Sequence[CostPoint],
    looks: Mapping[str, Look],
    *,
    title: str,
    cost: str,
    dense: tuple[float, float] | None = None,
    width: int | None = 460,
    score: str = "top-1 accuracy",
    percent: bool = True,
) -> Drawing:
    """Draw accuracy against cost with the Pareto front and the chosen network's name, near the best accuracy.

    `cost` says what costs are, with the unit, such as "file size, MB"; `dense` is cost and accuracy of the dense
    network.
    """
    best = max([point.top1 for point in points] + ([dense[1]] if dense else []))
    reach = max([_REACH, *(2 * (best - point.top1) for point in points if point.chosen)])
    useful = [p for p in points if p.top1 >= best - reach or not percent] or list(points)
    costs = [point.cost for point in useful] + ([dense[0]] if dense else [])
    low = min(point.top1 for point in useful)
    wide = max(costs) / max(min(costs), 1e-12) > 8  # a logarithmic axis from there on
    span = [0.9 * min(costs), 1.06 * max(costs)] if wide else [0, 1.04 * max(costs)]
    margin = 0.05 * (best - low) or 1.0
    heights: list[float] = [low - margin, best + 3 * margin]
    if percent:
        heights = [max(math.floor(100 * low - 0.5), 0), min(math.ceil(100 * best + 12 * (best - low) + 0.5), 100)]
    x = alt.X(
        "cost:Q",
        title=f"{cost} (less is better)",
        scale=alt.Scale(type="log" if wide else "linear", domain=span, nice=False, zero=False),
        axis=alt.Axis(format="~s" if min(costs) >= 1000 else ".4~f", labelOverlap=True, grid=False),
    )
    y = alt.Y(
        "top1:Q", title=f"{score}, %" if percent else score, scale=alt.Scale(domain=heights, nice=False, zero=False)
    )
    shown = percentage if percent else float
    front = set(map(id, pareto_front(points)))
    rows = [
        {
            "series": looks[p.series].name, "cost": float(f"{p.cost:.4g}"), "top1": shown(p.top1), "note": p.note,
            "front": id(p) in front, "chosen": p.chosen,
        }
        for p in useful
    ]  # fmt: skip
    tips = tooltips("series", "top-1, %:top1" if percent else f"{score}:top1", f"{cost}:cost", "pruned:note")
    base = chart_of(rows).encode(x=x, y=y)
    marks = base.encode(color=colors(looks), shape=shapes(looks), tooltip=tips)
    legend = switch()
    layers = [
        base.transform_filter("datum.front").mark_line(interpolate="step-after", color=INK, strokeWidth=1.4),
        marks.transform_filter("!datum.front")
        .mark_point(filled=True, size=34)
        .encode(opacity=dimmed(legend, 0.4, 0.04)),
        marks.transform_filter("datum.front")
        .mark_point(filled=True, size=95, stroke=INK, strokeWidth=1.1)
        .encode(opacity=dimmed(legend)),
    ]  # fmt: skip
    if dense:
        ring = chart_of([{"cost": dense[0], "top1": shown(dense[1]), "series": "dense network"}])
        ring = ring.encode(x=x, y=y, tooltip=tips[:3])
        layers.append(ring.mark_point(size=110, color=INK, strokeWidth=2, fill=GROUND))
        layers += written(ring, "dense", align="right", dx=-9, color=QUIET)
    for point in points:
        if point.chosen:
            value = f"{100 * point.top1:.1f} %" if percent else f"{point.top1:.4g}"
            text = [f"chosen: {looks[point.series].name}", f"{point.note}: {value}"]
            mark = chart_of([{"cost": point.cost, "top1": shown(point.top1)}]).encode(x=x, y=y)
            middle = math.sqrt(span[0] * span[1]) if wide else sum(span) / 2
            side = {"align": "left", "dx": 6} if point.cost < middle else {"align": "right", "dx": -6}
            top = alt.YDatum(heights[1])  # nothing is above a front, so that its name is in nobody's way up there
            layers.append(mark.mark_rule(color=BAD, strokeDash=[2, 3]).encode(y2=alt.Y2Datum(heights[1])))
            layers.append(mark.mark_point(size=300, color=BAD, strokeWidth=2.2, filled=False))
            layers += written(mark.encode(y=top), text, **side, dy=9)
    return Drawing(layers, title, width, 300, legend)


def draw_heat_map(table: HeatMap, *, title: str, search: bool = False, width: int | None = None) -> Drawing:
    """Draw a heat map in percent; that of a search runs from its smallest to its largest value, which is outlined."""
    rows = [
        {"row": i, "column": j, "value": percentage(value), "said": "–" if value is None else f"{100 * value:.1f} %",
         "of": row, "at": column}
        for i, (row, line) in enumerate(zip(table.rows, table.values, strict=True))
        for j, (column, value) in enumerate(zip(table.columns, line, strict=True))
    ]  # fmt: skip
    numbers = [percentage(value) for line in table.values for value in line if value is not None]
    low, high = (min(numbers), max(numbers)) if search and numbers else (0.0, 100.0)
    axis: dict[str, Any] = {"domain": False, "ticks": False, "grid": False, "labelLimit": 170}
    across = alt.Axis(labelExpr=f"{list(table.columns)}[datum.value]", labelAngle=0, **axis)
    down = alt.Axis(labelExpr=f"{list(table.rows)}[datum.value]", **axis)
    base = chart_of(rows).encode(
        x=alt.X("column:O", title=table.column_title or None, axis=across),
        y=alt.Y("row:O", title=table.row_title or None, axis=down),
        tooltip=tooltips(
            f"{table.row_title or 'layer'}:of", f"{table.column_title or 'column'}:at", f"{table.value_title}:said"
        ),
    )
    scale = alt.Scale(domain=[low, high if high > low else low + 1], range=[PALE, STRONG], interpolate="rgb")
    bright = f"isValid(datum.value) && datum.value > {low + 0.6 * (high - low)}"
    digits = ".1f" if search else ".0f"
    layers = [
        base.transform_filter("isValid(datum.value)")
        .mark_rect(stroke=GROUND, strokeWidth=2)
        .encode(color=alt.Color("value:Q", legend=None, scale=scale)),
        base.transform_calculate(text=f"isValid(datum.value) ? format(datum.value, '{digits}') : '–'")
        .mark_text(fontSize=11)
        .encode(text=alt.Text("text:N"), color=alt.ColorValue(INK, condition={"test": bright, "value": GROUND})),
    ]
    if search and table.best is not None:
        best = base.transform_filter(f"datum.row == {table.best[0]} && datum.column == {table.best[1]}")
        layers.append(best.mark_rect(filled=False, stroke=BAD, strokeWidth=2.5))
    return Drawing(layers, title, width, 24 * len(table.rows))


def search_map(
    title: str,
    values: Mapping[str, Sequence[str]],
    trials: Iterable[tuple[Mapping[str, str], float | None]],
    *,
    score: str = "accuracy",
) -> HeatMap:
    """Tabulate a grid search over the two options with the most values: each pair's best over all other options.

    `values` are those of every option, as text, in the order of the grid; `trials` each trial's option values and score
    in [0, 1], None or NaN where it failed or diverged.

    >>> search_map("grid", {"lr": ["0.1", "0.2"]}, [({"lr": "0.1"}, 0.5), ({"lr": "0.2"}, None)]).values
    ((0.5, None),)
    """
    widest = sorted(values, key=lambda name: -len(values[name]))[:2]
    column, *more = [name for name in reversed(list(values)) if name in widest]
    rows, columns = list(values[more[0]]) if more else [""], list(values[column])
    best: dict[tuple[str, str], float] = {}
    for point, found in trials:
        if found is not None and math.isfinite(found):
            place = point[more[0]] if more else "", point[column]
            best[place] = max(found, best.get(place, found))
    titles = short_names([column, *more])
    table = tuple(tuple(best.get((row, name)) for name in columns) for row in rows)
    return HeatMap(title, tuple(rows), tuple(columns), table, titles[1] if more else "", titles[0], score)


def draw_scores(layers: Sequence[ScoredLayer], *, title: str, width: int | None = 300) -> Drawing:
    """Draw every layer's scores from the most central neuron to the least, and which of them were pruned.

    Each layer has a row of its own, as high as its largest score; a line marks the layer's mean.
    """
    names, num = short_names([layer.name for layer in layers]), len(layers)
    rows, runs, means = [], [], []
    for index, layer in enumerate(layers):
        corners, stretches, top = _score_rows(layer, names[index], base=num - 1 - index)
        rows += corners
        runs += stretches
        means.append({"y": round(num - 1 - index + 0.86 / top, 4)})
    across = alt.Scale(domain=[0, 100], nice=False)
    axis = alt.Axis(
        values=[place + 0.43 for place in range(num)],
        labelExpr=f"{[*reversed(names)]}[floor(datum.value)]",
        grid=False, domain=False, ticks=False, labelLimit=170,
    )  # fmt: skip
    y = alt.Y("y:Q", title=None, scale=alt.Scale(domain=[0, num], nice=False), axis=axis)
    fields = alt.LookupData(alt.InlineData(values=runs), key="run", fields=["base", "state", "layer", "neurons", "top"])
    areas = (
        chart_of(rows)
        .transform_lookup(lookup="run", from_=fields)
        .mark_area(interpolate="step-after")
        .encode(
            x=alt.X("x:Q", title="neurons, from the most central to the least, %", scale=across),
            y=y,
            y2=alt.Y2("base:Q"),
            detail="run:N",
            color=alt.Color("state:N", title=None, scale=alt.Scale(domain=["kept", "pruned"], range=[GOOD, PRUNED])),
            tooltip=tooltips("layer", "neurons", "largest score × width:top", "state"),
        )
    )
    mean = chart_of(means).mark_rule(strokeDash=[3, 3], color=QUIET).encode(y=y)
    return Drawing([areas, mean], title, width, _ROW * num)


def _score_rows(
    layer: ScoredLayer, name: str, *, base: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Corners of the area under a layer's sorted scores × width (mean 1), its stretches of one state, its top."""
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
        height = max(0.86 * heights[place] / top, _LEAST)
        rows.append({"x": x, "y": round(base + height, 3), "run": runs[-1]["run"]})
    rows += [rows[-1] | {"x": 100}] if rows else []
    return rows, runs, top


def compose(drawings: Sequence[Drawing], *, columns: int = 3) -> Chart:
    """Make a chart of drawings, side by side, with this project's look and the parameter `dark`.

    A chart of one has the legend that switches series; Vega-Lite would give each of several a switch of its own.
    """
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
            labelColor=INK, labelFontSize=12, symbolSize=80, symbolOpacity=1, orient="bottom", columns=3,
            labelLimit=220, offset=10,
        ),
        title=alt.TitleConfig(color=INK, anchor="start", fontSize=13, fontWeight=600, offset=10),
    )  # fmt: skip
    dark, alone = alt.param(name="dark", value=False), len(drawings) == 1
    panels: list[dict[str, Any]] = []
    for number, drawing in enumerate(drawings):
        params = [] if number else [dark, *([drawing.legend] if alone and drawing.legend is not None else [])]
        first, *others = drawing.layers
        lines = textwrap.wrap(drawing.title, drawing.width // 7) if drawing.width else drawing.title
        size = {"title": lines, "width": drawing.width or "container", "height": drawing.height}
        panels.append({"layer": [first.add_params(*params), *others], **size})
    # Altair copies a whole chart with every call that changes it, so everything is given at once.
    if alone:
        (only,) = panels
        fitted = alt.AutoSizeParams(type="fit-x", contains="padding")
        return alt.layer(*only.pop("layer"), config=config, autosize=fitted, **only)
    shared = alt.Resolve(scale=alt.ScaleResolveMap(color="shared", shape="shared"))
    side_by_side = [alt.layer(*panel.pop("layer"), **panel) for panel in panels]
    return alt.concat(*side_by_side, columns=columns, spacing=24, resolve=shared, config=config)


def write_chart(chart: Chart, path: str | Path, *, dark: bool = False) -> Path:
    """Write a chart of `compose` to a file, whole or not at all: `.png` (twice the chart's pixels), `.svg`, `.pdf`."""
    import vl_convert

    path = Path(path)
    if path.suffix.removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{ending}" for ending in FORMATS)
        raise ValueError(f"{path}: a chart is written as one of {endings}, got {path.suffix!r}; rename the file")
    convert = getattr(vl_convert, f"vegalite_to_{path.suffix[1:]}")
    drawn = convert(spec_of(chart, dark=dark), **({"scale": 2} if path.suffix == ".png" else {}))
    write_whole(path, drawn)
    return path


def spec_of(chart: Chart, *, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, as plain types."""
    spec: dict[str, Any] = chart.to_dict(validate=False)
    next(param for param in spec["params"] if param["name"] == "dark")["value"] = dark
    return spec


def chart_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """An Altair chart of plain rows, without marks."""
    return alt.Chart(alt.InlineData(values=tuple(rows)))


def colors(looks: Mapping[str, Look]) -> alt.Color:
    """The series' colours."""
    return alt.Color("series:N", title=None, scale=_scale(looks, lambda look: _either(look.light, look.dark)))


def shapes(looks: Mapping[str, Look]) -> alt.Shape:
    """The series' markers."""
    return alt.Shape("series:N", title=None, scale=_scale(looks, lambda look: look.shape))


def dashes(looks: Mapping[str, Look]) -> alt.StrokeDash:
    """The series' lines."""
    return alt.StrokeDash("series:N", title=None, scale=_scale(looks, lambda look: list(look.dash) or [1, 0]))


def _scale(looks: Mapping[str, Look], value: Callable[[Look], Any]) -> alt.Scale:
    return alt.Scale(domain=[look.name for look in looks.values()], range=[value(look) for look in looks.values()])


def switch() -> Any:
    """The series that were clicked in the legend; all where none was."""
    return alt.selection_point(name="series", fields=["series"], bind="legend", toggle="true")


def dimmed(chosen: Any, full: float = 1.0, faint: float = 0.08, *, empty: bool = True) -> Any:
    """Opacity of what is chosen and of the rest; `empty` says whether nothing chosen means all."""
    if chosen is None:
        return alt.OpacityValue(full)
    return alt.OpacityValue(faint, condition={"param": chosen.name, "value": full, "empty": empty})


def written(chart: Any, text: str | list[str], *, color: Any = INK, **place: Any) -> list[Any]:
    """Text that stays readable over points: a halo of the ground under it."""
    look = {"text": text, "fontWeight": 600, "fontSize": 12, "lineHeight": 15, **place}
    return [
        chart.mark_text(stroke=GROUND, strokeWidth=4, strokeJoin="round", color=GROUND, **look),
        chart.mark_text(color=color, **look),
    ]


def tooltips(*fields: str) -> list[Any]:
    """What the pointer tells: "field", or "title:field" where the two differ."""
    found = []
    for entry in fields:
        title, _, field = entry.rpartition(":")
        escaped = field.replace(".", "\\.").replace("[", "\\[").replace("]", "\\]")
        found.append(alt.Tooltip(field=escaped, type="nominal", title=title or field))
    return found


def percentage(fraction: float | None) -> Any:
    """A fraction in percent, or None."""
    return None if fraction is None else round(100 * fraction, 3)
