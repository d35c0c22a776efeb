"""The few pieces of SVG that the report's charts are drawn with; colours come from the page's style sheet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from mlprank.report.palette import Style


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value, to a tenth."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def tag(name: str, *content: str, **attributes: object) -> str:
    """One element; attribute values are escaped, `class_` and `data_tip` spell `class` and `data-tip`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(content)}</{name}>"


def text(x: float, y: float, content: str, **attributes: object) -> str:
    """A piece of text, escaped."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """The `d` of a path through the points."""
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)


def nice_ticks(low: float, high: float, *, target: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about `target` of them."""
    span = high - low
    if span <= 0.0 or not math.isfinite(span):
        low, span = low - (abs(low) or 1.0) / 2, abs(low) or 1.0
        high = low + span
    raw = span / max(target - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def marker(style: Style, x: float, y: float, *, size: float = 4.5, **attributes: object) -> str:
    """The marker of a series, centred."""
    s = size
    shapes: dict[str, list[tuple[float, float]]] = {
        "s": [(-s, -s), (s, -s), (s, s), (-s, s)],
        "D": [(0, -s * 1.3), (s * 1.3, 0), (0, s * 1.3), (-s * 1.3, 0)],
        "^": [(0, -s * 1.2), (s * 1.15, s * 0.9), (-s * 1.15, s * 0.9)],
        "v": [(0, s * 1.2), (s * 1.15, -s * 0.9), (-s * 1.15, -s * 0.9)],
        "P": _cross(s * 1.25, s * 0.45),
        "X": [((a - b) * 0.71, (a + b) * 0.71) for a, b in _cross(s * 1.35, s * 0.45)],
        "p": _polygon(5, s * 1.25),
        "h": _polygon(6, s * 1.2),
    }
    named = {"class_": "mark", "style": f"fill:var(--c{style.index})", **attributes}
    if style.marker not in shapes:
        return tag("circle", cx=x, cy=y, r=s * 1.05, **named)
    return tag("path", d=polyline((round(x + a, 1), round(y + b, 1)) for a, b in shapes[style.marker]) + "Z", **named)


def _cross(arm: float, half: float) -> list[tuple[float, float]]:
    quarter = [(half, -half), (half, -arm), (-half, -arm)]
    turned = list(quarter)
    for _ in range(3):
        quarter = [(y, -x) for x, y in quarter]
        turned += quarter
    return turned


def _polygon(corners: int, radius: float) -> list[tuple[float, float]]:
    turn = 2 * math.pi / corners
    return [(radius * math.sin(turn * k), -radius * math.cos(turn * k)) for k in range(corners)]


def line_sample(style: Style) -> str:
    """The line with its marker, for a legend."""
    stroke = tag("line", x1=1, y1=7, x2=31, y2=7, class_="curve", style=stroke_style(style))
    return tag("svg", stroke, marker(style, 16, 7, size=4), class_="sample", viewBox="0 0 32 14", aria_hidden="true")


def stroke_style(style: Style) -> str:
    """The inline style of a series' line."""
    dash = f";stroke-dasharray:{' '.join(map(str, style.dash))}" if style.dash else ""
    return f"stroke:var(--c{style.index});stroke-width:{style.width}{dash}"
