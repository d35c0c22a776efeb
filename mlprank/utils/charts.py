"""How every chart of this project looks, as Vega-Lite, and the drawings that more than one package makes.

A drawing is one panel; `compose` makes a chart of one or of several side by side. One definition serves light and dark
ground: colours are expressions of the chart's parameter `dark`, which the report's page sets.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from mlprank.utils.files import write_whole

Drawing: TypeAlias = dict[str, Any]
"""One panel: its layers, each with its rows as `data`, its title, its width (None fills what holds it), its height."""
Chart: TypeAlias = Any
"""An Altair chart; Altair takes a second to import, so that its types stay out of here."""

FORMATS = ("png", "svg", "pdf")
_NAMES = {"weighted_pagerank": "Weighted PageRank", "modified_pagerank": "Modified PageRank"}
_CROSS = "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z"
# Okabe and Ito 2008, Color Universal Design, with lighter tints for dark ground; grey stands for `random`.
_LOOKS: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "weighted_pagerank": ("#0072B2", "#4AA3EA", "circle", ()),
    "reconstruction": ("#D55E00", "#F58A4B", "diamond", ()),
    "modified_pagerank": ("#56B4E9", "#A9DCFB", "square", (7, 3)),
    "wanda": ("#CC79A7", "#E7A3CB", "triangle-down", (2, 3)),
    "norm": ("#E69F00", "#F4BC45", "triangle-up", (9, 3, 2, 3)),
    "activation": ("#009E73", "#37CBA0", "cross", (5, 2)),
    "random": ("#6E7781", "#98A2AE", _CROSS, (1, 3)),
    "another": ("#9A8700", "#F0E442", "triangle-right", (12, 3)),
    "one more": ("#5B3A8C", "#B79BEA", "triangle-left", (3, 2, 1, 2)),
}
_NUM_STEPS = 80
_ROW, _LEAST = 44, 0.04
"""Pixels of a layer's scores, and the share of them that a score of 0 has, so that its neuron is seen."""
_REACH = 0.1
"""A front shows networks within this much of the best accuracy, or within twice the chosen one's loss."""


def _either(light: str, dark: str) -> dict[str, str]:
    return {"expr": f"dark ? '{dark}' : '{light}'"}


GROUND, INK = _either("#ffffff", "#171e26"), _either("#16202b", "#e8edf2")
QUIET, FAINT, LINE = _either("#5a6775", "#9aa7b4"), _either("#e4e7eb", "#27313c"), _either("#c9d0d7", "#3b4754")
GOOD, BAD, DIM = _either("#0072B2", "#4AA3EA"), _either("#D55E00", "#F58A4B"), _either("#aab4be", "#66727f")
PRUNED = _either("#E7B08A", "#8A4B22")
PALE, STRONG = _either("#eef4fa", "#1d2833"), _either("#08355f", "#b5dcff")
_CONFIG = {
    "background": GROUND,
    "font": "Inter, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET, "titleColor": QUIET, "gridColor": FAINT, "domainColor": LINE, "tickColor": LINE,
        "labelFontSize": 11.5, "titleFontSize": 12, "titleFontWeight": 500, "titlePadding": 8,
    },
    "axisX": {"grid": False},
    "legend": {
        "labelColor": INK, "labelFontSize": 12, "symbolSize": 80, "symbolOpacity": 1, "orient": "bottom", "columns": 3,
        "labelLimit": 220, "offset": 10,
    },
    "title": {"color": INK, "anchor": "start", "fontSize": 13, "fontWeight": 600, "offset": 10},
}  # fmt: skip
_SELECT = {"type": "point", "fields": ["series"], "toggle": "true"}
SWITCH = {"name": "series", "select": _SELECT, "bind": "legend", "views": ["switched"]}
"""A parameter of the layer "switched": the series that were clicked in the legend; all where none was."""


@dataclass(frozen=True)
class Look:
    """How a series looks in every chart, by channel: "color", "shape", "strokeDash"; told apart without colour too."""

    name: str
    channels: Mapping[str, Any]


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
    """Fractions in [0, 1] by the names of their row and their column; None where there is no value."""

    values: Mapping[tuple[str, str], float | None]
    row_title: str = ""
    column_title: str = ""
    value_title: str = "value"


@dataclass(frozen=True)
class ScoredLayer:
    """One layer's scores, shape (n_out,), and which neurons were kept; without `kept` all are."""

    name: str
    scores: tuple[float, ...]
    kept: tuple[bool, ...] = ()


def display_name(label: str) -> str:
    """What a person reads for a series label: `Norm (p=2)` for `norm(p=2)`, `Katz` for `my.package.Katz`."""
    measure, bracket, arguments = label.partition("(")
    name = _NAMES.get(measure) or measure.rpartition(".")[2].replace("_", " ")
    return name[:1].upper() + name[1:] + (f" ({arguments}" if bracket else "")


def looks_of(labels: Iterable[str]) -> dict[str, Look]:
    """The look of every series label, in the order of the legend; more than nine share colours, with another dash."""
    known, wanted = list(_LOOKS), {label: label.partition("(")[0] for label in labels}
    rank = {label: known.index(measure) if measure in known else len(known) for label, measure in wanted.items()}
    free = [place for place, measure in enumerate(known) if measure not in wanted]
    free += range(len(known), len(known) + len(wanted))
    looks = {}
    for label in sorted(wanted, key=lambda label: (rank[label], len(label), label)):
        own = rank[label]
        if label not in known:  # norm(p=2) looks like norm where there is no plain norm
            own = free.pop(free.index(own) if own in free[: -len(wanted)] else 0)
        around, place = divmod(own, len(known))
        light, dark, shape, dash = _LOOKS[known[place]]
        strokes = [*dash, 3 + around, 2 * around] if around else list(dash) or [1, 0]
        looks[label] = Look(display_name(label), {"color": _either(light, dark), "shape": shape, "strokeDash": strokes})
    return looks


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten dotted layer names to the fewest last words that tell them apart and do not begin with a number."""
    shortened = []
    for name in names:
        words = name.split(".")
        ends = [".".join(words[-length:]) for length in range(1, len(words)) if not words[-length].isdigit()]
        alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1)
        shortened.append(next(alone, name))
    return shortened


def pareto_front(points: Sequence[CostPoint]) -> list[CostPoint]:
    """The points, by cost, that nothing beats: no other is at least as cheap and accurate, and better in one."""
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
    scale = {"type": "log" if wide else "linear", "domain": span, "nice": False, "zero": False}
    form = {"format": "~s" if min(costs) >= 1000 else ".4~f", "labelOverlap": True, "grid": False}
    height = {"domain": heights, "nice": False, "zero": False}
    place = {
        "x": number("cost", title=f"{cost} (less is better)", scale=scale, axis=form),
        "y": number("top1", title=f"{score}, %" if percent else score, scale=height),
    }
    shown = percentage if percent else float
    front = set(map(id, pareto_front(points)))
    rows = [
        {"series": looks[p.series].name, "cost": float(f"{p.cost:.4g}"), "top1": shown(p.top1), "note": p.note,
         "front": id(p) in front}
        for p in useful
    ]  # fmt: skip
    tips = tooltips("series", "top-1, %:top1" if percent else f"{score}:top1", f"{cost}:cost", "pruned:note")
    marks = place | {"color": by_series(looks, "color"), "shape": by_series(looks, "shape"), "tooltip": tips}
    line = {"interpolate": "step-after", "color": INK, "strokeWidth": 1.4}
    outlined = {"filled": True, "size": 95, "stroke": INK, "strokeWidth": 1.1}
    layers = [
        layer(rows, "line", line, where="datum.front", **place) | {"name": "switched"},
        layer(rows, "point", {"filled": True, "size": 34}, where="!datum.front", opacity=dimmed(0.4, 0.04), **marks),
        layer(rows, "point", outlined, where="datum.front", opacity=dimmed(), **marks),
    ]
    if dense:
        ring = [{"cost": dense[0], "top1": shown(dense[1]), "series": "dense network"}]
        look = {"size": 110, "color": INK, "strokeWidth": 2, "fill": GROUND}
        layers.append(layer(ring, "point", look, tooltip=tips[:3], **place))
        layers += written(ring, "dense", {"align": "right", "dx": -9, "color": QUIET}, **place)
    for point in (point for point in points if point.chosen):
        value = f"{100 * point.top1:.1f} %" if percent else f"{point.top1:.4g}"
        text = [f"chosen: {looks[point.series].name}", f"{point.note}: {value}"]
        mark = [{"cost": point.cost, "top1": shown(point.top1)}]
        middle = math.sqrt(span[0] * span[1]) if wide else sum(span) / 2
        side = {"align": "left", "dx": 6} if point.cost < middle else {"align": "right", "dx": -6}
        top = {"datum": heights[1]}  # nothing is above a front, so that its name is in nobody's way up there
        layers.append(layer(mark, "rule", {"color": BAD, "strokeDash": [2, 3]}, y2=top, **place))
        layers.append(layer(mark, "point", {"size": 300, "color": BAD, "strokeWidth": 2.2}, **place))
        layers += written(mark, text, {**side, "dy": 9}, **place | {"y": top})
    return {"layer": layers, "title": title, "width": width, "height": 300, "params": [SWITCH]}


def draw_heat_map(table: HeatMap, *, title: str, search: bool = False, width: int | None = None) -> Drawing:
    """Draw a heat map in percent; that of a search runs from its smallest to its largest value, which is outlined."""
    rows: list[dict[str, Any]] = [
        {"of": row, "at": column, "value": percentage(value), "said": "–" if value is None else f"{100 * value:.1f} %"}
        for (row, column), value in table.values.items()
    ]
    names, columns = (list(dict.fromkeys(row[key] for row in rows)) for key in ("of", "at"))
    numbers = [row["value"] for row in rows if row["value"] is not None]
    low, high = (min(numbers), max(numbers)) if search and numbers else (0.0, 100.0)
    axis = {"domain": False, "ticks": False, "grid": False, "labelLimit": 170, "labelAngle": 0}
    named = {"type": "ordinal", "axis": axis}
    row, column = table.row_title, table.column_title
    place: dict[str, Any] = {
        "x": {"field": "at", "title": column or None, "sort": columns, **named},
        "y": {"field": "of", "title": row or None, "sort": names, **named},
        "tooltip": tooltips(f"{row or 'layer'}:of", f"{column or 'column'}:at", f"{table.value_title}:said"),
    }
    scale = {"domain": [low, high if high > low else low + 1], "range": [PALE, STRONG], "interpolate": "rgb"}
    bright = {"test": f"isValid(datum.value) && datum.value > {low + 0.6 * (high - low)}", "value": GROUND}
    shade, ink = number("value", legend=None, scale=scale), {"value": INK, "condition": bright}
    form = f"isValid(datum.value) ? format(datum.value, '{'.1f' if search else '.0f'}') : '–'"
    text = {"calculate": form, "as": "text"}
    square = {"stroke": GROUND, "strokeWidth": 2}
    layers = [
        layer(rows, "rect", square, where="isValid(datum.value)", color=shade, **place),
        layer(rows, "text", {"fontSize": 11}, text={"field": "text"}, color=ink, **place) | {"transform": [text]},
    ]
    if search and numbers:  # the first of equals is outlined
        next(row for row in rows if row["value"] == high)["best"] = True
        outline = {"filled": False, "stroke": BAD, "strokeWidth": 2.5}
        layers.append(layer(rows, "rect", outline, where="datum.best", **place))
    return {"layer": layers, "title": title, "width": width, "height": 24 * len(names)}


def search_map(
    values: Mapping[str, Sequence[str]], trials: Iterable[tuple[Mapping[str, str], float | None]], *, score: str = ""
) -> HeatMap:
    """Tabulate a grid search over the two options with the most values: each pair's best over all other options.

    `values` are those of every option, as text, in the order of the grid; `trials` each trial's option values and score
    in [0, 1], None or NaN where it failed or diverged.
    """
    widest = sorted(values, key=lambda name: -len(values[name]))[:2]
    column, *more = [name for name in reversed(list(values)) if name in widest]
    rows = values[more[0]] if more else [""]
    best: dict[tuple[str, str], float | None] = {(row, name): None for row in rows for name in values[column]}
    for point, found in trials:
        if found is not None and math.isfinite(found):
            place = point[more[0]] if more else "", point[column]
            best[place] = max(found, best[place] or found)
    column_title, *row_title = short_names([column, *more])
    return HeatMap(best, "".join(row_title), column_title, score)


def draw_scores(layers: Sequence[ScoredLayer], *, title: str, width: int | None = 300) -> Drawing:
    """Draw every layer's scores from the most central neuron to the least, and which of them were pruned.

    Each layer has a row of its own, as high as its largest score; a line marks the layer's mean.
    """
    num, rows, means = len(layers), list[dict[str, Any]](), list[dict[str, float]]()
    said, tops = list[str](), list[str]()
    for base, scored in zip(range(num - 1, -1, -1), layers, strict=True):
        size, kept = len(scored.scores), scored.kept or (True,) * len(scored.scores)
        total = math.fsum(scored.scores) or 1.0
        ranked = sorted(zip(scored.scores, kept, strict=True), key=lambda pair: -pair[0])
        heights = [score * size / total for score, _ in ranked]  # 1 on average
        top, states = max([1.0, *heights]), ["kept" if stays else "pruned" for _, stays in ranked]
        # At most _NUM_STEPS corners for a layer, as a page holds many layers; where a state ends there is always one.
        steps = min(size, _NUM_STEPS)
        ends = [place for place in range(1, size) if states[place] != states[place - 1]]
        cuts = {round(step * size / steps) for step in range(steps)} | set(ends if len(ends) <= _NUM_STEPS else ())
        for run, (state, places) in enumerate(groupby(sorted(cuts), key=states.__getitem__)):
            corners = [
                {"x": round(100 * place / size, 2), "run": f"{base}.{run}", "state": state,
                 "y": round(base + max(0.86 * heights[place] / top, _LEAST), 3)}
                for place in places
            ]  # fmt: skip
            rows += [*([rows[-1] | {"x": corners[0]["x"]}] if run else []), *corners]
        rows.append(rows[-1] | {"x": 100})
        means.append({"y": round(base + 0.86 / top, 4)})
        said.append(f"{sum(kept)} kept, {size - sum(kept)} pruned")
        tops.append(f"{max(heights):.2f}")
    names = short_names([scored.name for scored in layers])
    told = {"layer": names, "neurons": said, "top": tops}
    by_base = [{"calculate": f"{texts[::-1]}[floor(datum.y)]", "as": name} for name, texts in told.items()]
    axis = {
        "values": [place + 0.43 for place in range(num)], "labelExpr": f"{names[::-1]}[floor(datum.value)]",
        "grid": False, "domain": False, "ticks": False, "labelLimit": 170,
    }  # fmt: skip
    y = number("y", title=None, scale={"domain": [0, num], "nice": False}, axis=axis)
    across = {"domain": [0, 100], "nice": False}
    colors = {"domain": ["kept", "pruned"], "range": [GOOD, PRUNED]}
    areas = layer(
        rows, "area", {"interpolate": "step-after"},
        x=number("x", title="neurons, from the most central to the least, %", scale=across),
        y=y, y2={"field": "base"}, detail={"field": "run"},
        color={"field": "state", "title": None, "scale": colors},
        tooltip=tooltips("layer", "neurons", "largest score × width:top", "state"),
    )  # fmt: skip
    areas["transform"] = [{"calculate": "floor(datum.y)", "as": "base"}, *by_base]
    mean = layer(means, "rule", {"strokeDash": [3, 3], "color": QUIET}, y=y)
    return {"layer": [areas, mean], "title": title, "width": width, "height": _ROW * num}


def specification(drawings: Sequence[Drawing], *, columns: int = 3) -> dict[str, Any]:
    """The Vega-Lite specification of drawings side by side, with this project's look and the parameter `dark`.

    A chart of one has the legend that switches series; Vega-Lite would give each of several a switch of its own.
    """
    rows: dict[int, tuple[str, Any]] = {}  # layers share rows, which stand in the specification once
    panels = []
    for drawing in drawings:
        lines = textwrap.wrap(drawing["title"], drawing["width"] // 7) if drawing["width"] else drawing["title"]
        layers = []
        for found in drawing["layer"]:
            name, _ = rows.setdefault(id(found["data"]), (f"rows-{len(rows)}", found["data"]))
            layers.append({**found, "data": {"name": name}})
        panels.append({**drawing, "layer": layers, "title": lines, "width": drawing["width"] or "container"})
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": _CONFIG,
        "params": [{"name": "dark", "value": False}, *(param for panel in panels for param in panel.pop("params", ()))],
        "datasets": dict(rows.values()),
    }
    if len(panels) == 1:
        return spec | panels[0] | {"autosize": {"type": "fit-x", "contains": "padding"}}
    shared = {"scale": {"color": "shared", "shape": "shared"}}
    return spec | {"concat": panels, "columns": columns, "spacing": 24, "resolve": shared}


def compose(drawings: Sequence[Drawing]) -> Chart:
    """Make an Altair chart of drawings, side by side, which a notebook shows."""
    import altair

    kind = altair.LayerChart if len(drawings) == 1 else altair.ConcatChart
    return kind.from_dict(specification(drawings), validate=False)


def write_chart(chart: Chart | Mapping[str, Any], path: str | Path) -> Path:
    """Write a chart or its specification, whole or not at all: `.png` (twice the chart's pixels), `.svg`, `.pdf`."""
    import vl_convert

    path = Path(path)
    if path.suffix.removeprefix(".") not in FORMATS:
        endings = ", ".join(f".{ending}" for ending in FORMATS)
        raise ValueError(f"{path}: a chart is written as one of {endings}, got {path.suffix!r}; rename the file")
    spec = chart if isinstance(chart, Mapping) else chart.to_dict(validate=False)
    convert = getattr(vl_convert, f"vegalite_to_{path.suffix[1:]}")
    write_whole(path, convert(spec, **({"scale": 2} if path.suffix == ".png" else {})))
    return path


def layer(
    rows: Sequence[Mapping[str, Any]], mark: str, look: Mapping[str, Any], *, where: str = "", **encoding: Any
) -> dict[str, Any]:
    """One layer of a drawing: rows, of which a condition may choose some, as marks with a look."""
    chosen = {"transform": [{"filter": where}]} if where else {}
    return {"data": rows, "mark": {"type": mark, **look}, "encoding": encoding, **chosen}


def written(
    rows: Sequence[Mapping[str, Any]], text: str | list[str], look: Mapping[str, Any], **encoding: Any
) -> list[dict[str, Any]]:
    """Layers of text that stays readable over points: a halo of the ground under it."""
    look = {"text": text, "fontWeight": 600, "fontSize": 12, "lineHeight": 15, "color": INK, **look}
    halo = {"stroke": GROUND, "strokeWidth": 4, "strokeJoin": "round", "color": GROUND}
    return [layer(rows, "text", {**look, **halo}, **encoding), layer(rows, "text", look, **encoding)]


def number(field: str, **options: Any) -> Any:
    """A channel that shows a number."""
    return {"field": field, "type": "quantitative", **options}


def by_series(looks: Mapping[str, Look], channel: str) -> Any:
    """A channel that tells series apart: "color", "shape" or "strokeDash"."""
    shown = looks.values()
    scale = {"domain": [look.name for look in shown], "range": [look.channels[channel] for look in shown]}
    return {"field": "series", "type": "nominal", "title": None, "scale": scale}


def dimmed(full: float = 1.0, faint: float = 0.08, *, by: str = "series", empty: bool = True) -> dict[str, Any]:
    """Opacity of what a parameter chose and of the rest; `empty` says whether nothing chosen means all."""
    return {"value": faint, "condition": {"param": by, "value": full, "empty": empty}}


def tooltips(*fields: str) -> list[dict[str, str]]:
    """What the pointer tells: "field", or "title:field" where the two differ."""
    escape, named = str.maketrans({sign: f"\\{sign}" for sign in ".[]"}), (entry.rpartition(":") for entry in fields)
    return [{"field": name.translate(escape), "type": "nominal", "title": title or name} for title, _, name in named]


def percentage(fraction: float | None) -> Any:
    """A fraction in percent, or None."""
    return None if fraction is None else round(100 * fraction, 3)
