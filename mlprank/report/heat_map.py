"""A heat map as inline SVG, for what every layer lost and for grids of training runs."""

import math
from collections.abc import Callable, Sequence

from mlprank.report.svg import tag, text


def heat_map_svg(
    values: Sequence[Sequence[float | None]],
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    *,
    title: str,
    row_title: str = "",
    col_title: str = "",
    low: float | None = None,
    high: float | None = None,
    form: Callable[[float], str] = "{:.3g}".format,
    tips: Sequence[Sequence[str]] | None = None,
    best: tuple[int, int] | None = None,
    cell_width: float = 46,
    cell_height: float = 28,
) -> str:
    """Draw a table of numbers in shades of one hue, pale to strong, each with its number written in.

    Args:
        values: Rows of equal length; None or NaN (not run, diverged) is drawn as an empty, hatched cell.
        row_labels: One a row.
        col_labels: One a column.
        title: Read aloud in place of the picture.
        row_title: What the rows are; written above their labels.
        col_title: What the columns are; written below.
        low: Value of the palest shade; by default the smallest.
        high: Value of the strongest shade; by default the largest.
        form: Writes a number into its cell.
        tips: Text shown over a cell, `|` parts lines; by default both labels and the number.
        best: Row and column of a cell to outline.
        cell_width: Pixels.
        cell_height: Pixels.

    Raises:
        ValueError: If the labels do not fit the values.
    """
    if len(values) != len(row_labels) or any(len(row) != len(col_labels) for row in values):
        raise ValueError(
            f"heat map {title!r}: {len(row_labels)} row labels and {len(col_labels)} column labels do not fit values "
            f"of {len(values)} rows of {sorted({len(row) for row in values})} numbers"
        )
    numbers = [value for row in values for value in row if value is not None and math.isfinite(value)]
    bottom = low if low is not None else min(numbers, default=0.0)
    top = high if high is not None else max(numbers, default=1.0)
    left = 14 + 7.0 * max([len(label) for label in row_labels] + [len(row_title)], default=0)
    above = 20.0 if row_title else 4.0
    width, height = left + cell_width * len(col_labels) + 4, above + cell_height * len(row_labels)
    parts = [text(left - 8, 12, row_title, class_="name end")] if row_title else []
    for i, (row, row_label) in enumerate(zip(values, row_labels, strict=True)):
        y = above + i * cell_height
        parts.append(text(left - 8, y + cell_height / 2 + 4, row_label, class_="tick end"))
        for j, (value, col_label) in enumerate(zip(row, col_labels, strict=True)):
            known = value is not None and math.isfinite(value)
            shade = (
                min(max((value - bottom) / ((top - bottom) or 1.0), 0.0), 1.0) if known and value is not None else None
            )
            written = form(value) if known and value is not None else "–"
            tip = tips[i][j] if tips is not None else f"{row_label}, {col_label}|{written}"
            x = left + j * cell_width
            parts.append(_cell(x, y, cell_width, cell_height, shade, written, tip, best == (i, j)))
    for j, col_label in enumerate(col_labels):
        parts.append(text(left + (j + 0.5) * cell_width, height + 16, col_label, class_="tick mid"))
    if col_title:
        parts.append(text(left + cell_width * len(col_labels) / 2, height + 34, col_title, class_="name mid"))
    height += 40 if col_title else 22
    return tag(
        "svg",
        *parts,
        class_="heat",
        viewBox=f"0 0 {width:g} {height:g}",
        style=f"max-width:{1.08 * width:.0f}px",
        role="img",
        aria_label=title,
    )


def _cell(
    x: float, y: float, width: float, height: float, shade: float | None, written: str, tip: str, best: bool
) -> str:
    if shade is None:
        fill, ink = "fill:var(--hatch)", "tick mid"
    else:
        fill = f"fill:color-mix(in oklab,var(--heat-1) {100 * shade:.0f}%,var(--heat-0))"
        ink = f"cell-{'strong' if shade > 0.62 else 'middle' if shade > 0.5 else 'pale'} mid"
    outline = "cell best" if best else "cell"
    inset = 1.5 if best else 0.75
    box = tag(
        "rect",
        x=f"{x + inset:g}",
        y=f"{y + inset:g}",
        width=f"{width - 2 * inset:g}",
        height=f"{height - 2 * inset:g}",
        rx=4,
        class_=outline,
        style=fill,
    )
    return tag("g", box, text(x + width / 2, y + height / 2 + 4, written, class_=ink), class_="point", data_tip=tip)
