"""Accuracy against what the network costs (measured latency, size), with the Pareto front."""

from collections.abc import Mapping, Sequence

from mlprank.report.accuracy_chart import interval_text, percent
from mlprank.report.data import FrontPoint, Panel, front_steps
from mlprank.report.palette import Style
from mlprank.report.svg import Scale, marker, nice_ticks, polyline, tag, text

WIDTH, HEIGHT = 560, 372
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 18, 46


_UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "latency": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "size": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}


def cost_unit(largest: float, *, cost: str) -> tuple[float, str]:
    """Divisor and name of the unit that suits the largest cost: (1e-3, "ms"), (1e6, "MB")."""
    units = _UNITS[cost]
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def dense_cost(panels: Sequence[Panel], *, cost: str) -> float | None:
    """The dense network's mean cost over the panels; None where it was not measured."""
    costs = [panel.dense_size_bytes if cost == "size" else panel.dense_latency_s for panel in panels]
    found = [value for value in costs if value is not None]
    return sum(found) / len(found) if found else None


def front_svg(
    front: Sequence[FrontPoint], panels: Sequence[Panel], styles: Mapping[str, Style], *, cost: str, title: str
) -> str:
    """Draw one network's trade-off as inline SVG.

    Args:
        front: From `front_of`, at least one point.
        panels: The network's panels, for the dense network and the names of methods.
        styles: Looks by series label.
        cost: "latency" or "size".
        title: Read aloud in place of the picture.
    """
    whole = dense_cost(panels, cost=cost)
    dense_top1 = sum(panel.dense_top1 for panel in panels) / len(panels)
    largest = max([entry.cost for entry in front] + ([whole] if whole else []))
    divisor, unit = cost_unit(largest, cost=cost)
    ticks = nice_ticks(0.0, largest * 1.03 / divisor, target=6)
    across = Scale(0.0, ticks[-1], LEFT, WIDTH - RIGHT)
    heights = nice_ticks(min(e.point.top1.mean for e in front), max([dense_top1] + [e.point.top1.mean for e in front]))
    up = Scale(max(heights[0], 0.0), min(heights[-1], 1.0), HEIGHT - BOTTOM, TOP)
    parts = [_axes(across, up, ticks, heights, f"{'measured latency' if cost == 'latency' else 'file size'}, {unit}")]
    steps = [(across(x / divisor), up(y)) for x, y in front_steps(front)]
    steps = [(steps[0][0], up.start), *steps, (WIDTH - RIGHT, steps[-1][1])]
    shade = polyline([*steps, (WIDTH - RIGHT, up.start)]) + "Z"
    parts += [tag("path", d=shade, class_="front-shade"), tag("path", d=polyline(steps), class_="front")]
    if whole is not None:
        parts.append(_dense(across(whole / divisor), up(dense_top1), f"{whole / divisor:.3g} {unit}", dense_top1))
    for entry in sorted(front, key=lambda entry: entry.on_front):
        place = (across(entry.cost / divisor), up(entry.point.top1.mean))
        parts.append(_point(entry, styles[entry.label], place, f"{entry.cost / divisor:.3g} {unit}", len(panels) > 1))
    return tag("svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="group", aria_label=title)


def _axes(across: Scale, up: Scale, ticks: Sequence[float], heights: Sequence[float], name: str) -> str:
    parts = []
    for tick in heights:
        if up.low - 1e-9 <= tick <= up.high + 1e-9:
            parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick)))
            parts.append(text(LEFT - 9, up(tick) + 4, f"{100 * tick:g}", class_="tick end"))
    for tick in ticks:
        parts.append(tag("line", class_="notch", x1=across(tick), x2=across(tick), y1=up.start, y2=up.start + 5))
        parts.append(text(across(tick), up.start + 19, f"{tick:g}", class_="tick mid"))
    parts.append(tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=up.start, y2=up.start))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, f"{name}  (less is better)", class_="name mid"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:g})"
    parts.append(text(14, middle, "top-1 accuracy, %", class_="name mid", transform=turned))
    return tag("g", *parts, class_="axes")


def _dense(x: float, y: float, cost: str, top1: float) -> str:
    ring = tag("circle", cx=x, cy=y, r=6.5, class_="dense-mark")
    hit = tag("circle", cx=x, cy=y, r=13, class_="hit")
    below = y + 22 if y < TOP + 24 else y - 12
    end = x > WIDTH - RIGHT - 40
    name = text(x, below, "dense", class_="dense-name " + ("end" if end else "mid"))
    return tag("g", ring, name, hit, class_="point", tabindex=0, data_tip=f"Dense network|{percent(top1)}|{cost}")


def _point(entry: FrontPoint, style: Style, place: tuple[float, float], cost: str, several: bool) -> str:
    setting, point = entry.panel.setting, entry.point
    where = f"{setting.method}, {setting.compensation}" if several else setting.method
    lines = [
        style.name,
        f"{interval_text(point.top1, digits=2)} top-1",
        cost,
        f"{100 * point.amount:g} % taken out, {where}",
    ]
    if entry.on_front:
        lines.append("on the Pareto front: nothing here is cheaper and as accurate")
    return tag(
        "g",
        marker(style, *place, size=5.2 if entry.on_front else 3.8),
        tag("circle", cx=place[0], cy=place[1], r=9, class_="hit"),
        class_="point on-front" if entry.on_front else "point",
        tabindex=0 if entry.on_front else None,
        data_series=entry.label,
        data_tip="|".join(lines),
    )
