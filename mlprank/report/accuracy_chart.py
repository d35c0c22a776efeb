"""Accuracy against amount: one panel, a curve a measure, its interval as a band."""

import json
import math
from collections.abc import Mapping

from mlprank.experiments.statistics import Interval
from mlprank.report.data import Curve, Panel
from mlprank.report.palette import Style
from mlprank.report.svg import Scale, marker, nice_ticks, polyline, stroke_style, tag, text

WIDTH, HEIGHT = 560, 372
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 18, 46


def percent(value: float, *, digits: int = 1) -> str:
    """A fraction as a percentage: 0.877 is `87.7 %`."""
    return f"{100 * value:.{digits}f} %"


def interval_text(interval: Interval, *, digits: int = 1) -> str:
    """Mean and half width in percent: `87.7 ± 0.2 %`."""
    if interval.half_width is None:
        return percent(interval.mean, digits=digits)
    return f"{100 * interval.mean:.{digits}f} ± {100 * interval.half_width:.{digits}f} %"


def accuracy_svg(panel: Panel, styles: Mapping[str, Style], *, title: str) -> str:
    """Draw one panel as inline SVG.

    Args:
        panel: Its curves start at the dense network (amount 0, nothing removed).
        styles: Looks by series label.
        title: Read aloud in place of the picture.
    """
    across, up = _scales(panel)
    parts = [_axes(across, up), _dense(panel, across, up)]
    drawn = sorted(panel.curves, key=lambda curve: styles[curve.label].index, reverse=True)
    parts += [_band(curve, styles[curve.label], panel, across, up) for curve in drawn]
    parts += [_line(curve, styles[curve.label], panel, across, up) for curve in drawn]
    parts.append(tag("line", class_="guide", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM))
    return tag(
        "svg",
        *parts,
        class_="chart lines",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=title,
        data_hover=json.dumps(_hover(panel, styles, across)),
    )


def _scales(panel: Panel) -> tuple[Scale, Scale]:
    tops = [point.top1 for curve in panel.curves for point in curve.points]
    low = max(min(interval.low for interval in tops), 0.0)
    high = min(max(panel.dense_top1, *(interval.high for interval in tops)), 1.0)
    ticks = nice_ticks(low, high, target=6)
    largest = max(panel.amounts, default=0.0) or 1.0
    across = Scale(0.0, min(math.ceil(largest * 20 + 0.5) / 20, 1.0), LEFT, WIDTH - RIGHT)
    return across, Scale(max(ticks[0], 0.0), min(ticks[-1], 1.0), HEIGHT - BOTTOM, TOP)


def _axes(across: Scale, up: Scale) -> str:
    parts = []
    for tick in nice_ticks(up.low, up.high, target=6):
        if up.low - 1e-9 <= tick <= up.high + 1e-9:
            parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick)))
            parts.append(text(LEFT - 9, up(tick) + 4, f"{100 * tick:g}", class_="tick end"))
    for tick in nice_ticks(0.0, across.high, target=7):
        if tick <= across.high + 1e-9:
            parts.append(tag("line", class_="notch", x1=across(tick), x2=across(tick), y1=up.start, y2=up.start + 5))
            parts.append(text(across(tick), up.start + 19, f"{100 * tick:g}", class_="tick mid"))
    parts.append(tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=up.start, y2=up.start))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "neurons taken out, %", class_="name mid"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:g})"
    parts.append(text(14, middle, "top-1 accuracy, %", class_="name mid", transform=turned))
    return tag("g", *parts, class_="axes")


def _dense(panel: Panel, across: Scale, up: Scale) -> str:
    y = up(panel.dense_top1)
    below = y + 15 if y < TOP + 14 else y - 7
    return tag(
        "g",
        tag("line", class_="dense", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y),
        text(WIDTH - RIGHT - 2, below, f"dense {percent(panel.dense_top1)}", class_="dense-name end"),
    )


def _band(curve: Curve, style: Style, panel: Panel, across: Scale, up: Scale) -> str:
    if all(point.top1.half_width is None for point in curve.points):
        return ""
    start = [] if _starts_dense(curve) else [(across(0.0), up(panel.dense_top1))]
    upper = start + [(across(p.amount), up(min(p.top1.high, up.high))) for p in curve.points]
    lower = [(across(p.amount), up(max(p.top1.low, up.low))) for p in reversed(curve.points)]
    outline = polyline(upper + lower) + "Z"
    return tag("path", d=outline, class_="band", style=f"fill:var(--c{style.index})", data_series=style.label)


def _line(curve: Curve, style: Style, panel: Panel, across: Scale, up: Scale) -> str:
    start = [] if _starts_dense(curve) else [(across(0.0), up(panel.dense_top1))]
    places = [(across(point.amount), up(point.top1.mean)) for point in curve.points]
    marks = [marker(style, x, y) for x, y in places]
    line = tag("path", d=polyline(start + places), class_="curve", style=stroke_style(style))
    return tag("g", line, *marks, class_="series", data_series=style.label)


def _starts_dense(curve: Curve) -> bool:
    return any(point.amount == 0.0 for point in curve.points)


def _hover(panel: Panel, styles: Mapping[str, Style], across: Scale) -> list[dict[str, object]]:
    """What the page shows over each amount: every measure's accuracy, the best first."""
    stops: list[dict[str, object]] = []
    for amount in panel.amounts:
        found = [(curve.label, point) for curve in panel.curves if (point := curve.at(amount)) is not None]
        found.sort(key=lambda entry: -entry[1].top1.mean)
        rows = [
            {
                "s": label,
                "c": styles[label].index,
                "n": styles[label].name,
                "v": interval_text(point.top1, digits=2),
                "k": f"n = {point.top1.num}",
            }
            for label, point in found
        ]
        stops.append({"x": across(amount), "t": f"{100 * amount:g} % taken out", "rows": rows})
    return stops
