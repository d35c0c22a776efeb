"""The report's charts as PNG files, drawn with matplotlib; imported only when pictures are wanted."""

import io
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mlprank.experiments import PICTURE_KINDS
from mlprank.experiments.store import write_whole
from mlprank.report.content import Content
from mlprank.report.data import Panel, by_network, front_of, front_steps, lost_tables, short_names
from mlprank.report.front_chart import cost_unit, dense_cost
from mlprank.report.palette import Style, display_name

LOOK: dict[Any, object] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9d0d7",
    "axes.labelcolor": "#46525f",
    "xtick.color": "#46525f",
    "ytick.color": "#46525f",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def write_pictures(
    content: Content, directory: Path, *, on_picture: Callable[[str], None], kinds: Collection[str] = PICTURE_KINDS
) -> tuple[Path, ...]:
    """Draw every chart into `directory`, named `<kind>_<what>.png`.

    Args:
        content: What `content_of` gathered.
        directory: It exists.
        on_picture: Told the name of each file before it is drawn.
        kinds: Which charts to draw.
    """
    written = []
    with mpl.rc_context(LOOK):
        for name, draw in _jobs(content):
            if name.partition("_")[0] not in kinds:
                continue
            on_picture(name)
            figure = draw()
            FigureCanvasAgg(figure)
            path = directory / name
            drawn = io.BytesIO()
            figure.savefig(drawn, format="png", facecolor="white")
            write_whole(path, drawn.getvalue())
            written.append(path)
    return tuple(written)


def _jobs(content: Content) -> Iterator[tuple[str, Callable[[], Figure]]]:
    for network, panels in by_network(content.panels).items():
        slug = re.sub(r"[^a-z0-9]+", "-", network.lower()).strip("-")
        yield f"accuracy_{slug}.png", partial(_accuracy, panels, content)
        for cost in ("latency", "size"):
            if front_of(panels, cost=cost):
                yield f"{cost}_{slug}.png", partial(_front, panels, content.styles, cost)
        yield f"lost_{slug}.png", partial(_lost, panels, content)
        if any(ridges.network == network for ridges in content.ridges):
            yield f"centralities_{slug}.png", partial(_centralities, network, content)
    for number, _ in enumerate(content.grids):
        yield f"tuning_{number + 1}.png", partial(_grid, number, content)


def _accuracy(panels: Sequence[Panel], content: Content) -> Figure:
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.0 * columns + 1.6, 3.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for place in grid.flat[len(panels) :]:
        place.axis("off")
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.axhline(100 * panel.dense_top1, color="#5a6775", linestyle=":", linewidth=1.2)
        for curve in panel.curves:
            style = content.styles[curve.label]
            amounts = np.array([0.0] + [100 * point.amount for point in curve.points])
            means = np.array([panel.dense_top1] + [point.top1.mean for point in curve.points]) * 100
            lows = np.array([panel.dense_top1] + [point.top1.low for point in curve.points]) * 100
            highs = np.array([panel.dense_top1] + [point.top1.high for point in curve.points]) * 100
            axes.fill_between(amounts, lows, highs, color=style.light, alpha=0.15, linewidth=0)
            axes.plot(amounts, means, markevery=slice(1, None), markersize=5.5, **_look(style))
        axes.set_title(_title(panel, content))
        axes.set_xlabel("neurons taken out, %")
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1 accuracy, %")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    figure.suptitle(panels[0].setting.network, fontweight="bold", x=0.01, ha="left", fontsize=12)
    handles = {
        text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    ordered = [style.name for style in content.styles.values() if style.name in handles]
    figure.legend([handles[name] for name in ordered], ordered, loc="outside right center")
    return figure


def _title(panel: Panel, content: Content) -> str:
    """What tells a panel from the others of its network."""
    under = content.subtitles[panel.setting]
    return f"{panel.setting.method}, {under}" if under else panel.setting.method


def _front(panels: Sequence[Panel], styles: Mapping[str, Style], cost: str) -> Figure:
    front, whole = front_of(panels, cost=cost), dense_cost(panels, cost=cost)
    divisor, unit = cost_unit(max([entry.cost for entry in front] + ([whole] if whole else [])), cost=cost)
    figure = Figure(figsize=(6.6, 4.0), layout="constrained")
    axes = figure.subplots()
    steps = front_steps(front)
    axes.plot(
        [x / divisor for x, _ in steps],
        [100 * y for _, y in steps],
        color="#16202b",
        linewidth=1.2,
        label="Pareto front",
    )
    for label, style in styles.items():
        for on_front in (False, True):
            found = [entry for entry in front if entry.label == label and entry.on_front == on_front]
            if found:
                axes.scatter(
                    [entry.cost / divisor for entry in found],
                    [100 * entry.point.top1.mean for entry in found],
                    s=46 if on_front else 26,
                    alpha=1.0 if on_front else 0.45,
                    color=style.light,
                    marker=style.marker,
                    edgecolors="#16202b" if on_front else "none",
                    linewidths=1.0,
                    zorder=3,
                )
        axes.scatter([], [], color=style.light, marker=style.marker, s=36, label=style.name)
    if whole is not None:
        dense = 100 * sum(panel.dense_top1 for panel in panels) / len(panels)
        axes.scatter(
            [whole / divisor], [dense], s=60, facecolors="white", edgecolors="#16202b", linewidths=1.6, label="Dense"
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{'measured latency' if cost == 'latency' else 'file size'}, {unit}")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(panels[0].setting.network)
    figure.legend(loc="outside right center")
    return figure


def _lost(panels: Sequence[Panel], content: Content) -> Figure:
    facets = [(panel, labels, curve) for panel in panels for labels, curve in lost_tables(panel)]
    columns = min(len(facets), 4)
    rows = -(-len(facets) // columns)
    layers = max(len(curve.lost) for _, _, curve in facets)
    figure = Figure(figsize=(3.4 * columns, (0.32 * layers + 1.1) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place in grid.flat[len(facets) :]:
        place.axis("off")
    for axes, (panel, labels, curve) in zip(grid.flat, facets, strict=False):
        amounts = sorted({amount for lost in curve.lost.values() for amount in lost})
        values = [[100 * lost.get(amount, float("nan")) for amount in amounts] for lost in curve.lost.values()]
        every = len(labels) == len(panel.curves) > 1
        name = "every measure" if every else ", ".join(map(display_name, labels))
        _heat(
            axes,
            values,
            short_names(list(curve.lost)),
            [f"{100 * a:g}" for a in amounts],
            form="{:.0f}",
            low=0.0,
            high=100.0,
        )
        axes.set_title(textwrap.fill(f"{_title(panel, content)}: {name}", 36))
        axes.set_xlabel("requested amount, %")
    figure.suptitle(
        f"{panels[0].setting.network}: share of every layer taken out, %",
        fontweight="bold",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    return figure


def _centralities(network: str, content: Content) -> Figure:
    found = [ridges for ridges in content.ridges if ridges.network == network and ridges.layers]
    found.sort(key=lambda ridges: content.styles[ridges.label].index)
    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    layers = max(len(ridges.layers) for ridges in found)
    figure = Figure(figsize=(3.4 * columns, (0.55 * layers + 0.9) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place in grid.flat[len(found) :]:
        place.axis("off")
    for axes, ridges in zip(grid.flat, found, strict=False):
        style = content.styles[ridges.label]
        for row, ridge in enumerate(ridges.layers):
            whole = np.add(ridge.kept, ridge.removed)
            base, tall = len(ridges.layers) - 1 - row, 0.88 / max(int(whole.max()), 1)
            axes.stairs(base + whole * tall, ridges.edges, baseline=base, fill=True, color=style.light, alpha=0.85)
            gone = base + np.array(ridge.removed) * tall
            axes.stairs(gone, ridges.edges, baseline=base, fill=True, color=_pale(style.light))
        axes.axvline(1.0, color="#5a6775", linestyle="--", linewidth=0.8)
        axes.set_yticks(range(len(ridges.layers)), short_names([ridge.layer for ridge in ridges.layers])[::-1])
        axes.set_title(style.name)
        axes.set_xlabel("centrality / layer's mean")
    figure.suptitle(
        f"{network}: centralities, the pale part was taken out", fontweight="bold", x=0.01, ha="left", fontsize=12
    )
    return figure


def _grid(number: int, content: Content) -> Figure:
    grid = content.grids[number]
    size = (0.8 * len(grid.col_labels) + 2.0, 0.45 * len(grid.row_labels) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    values = [[float("nan") if v is None else 100 * v for v in row] for row in grid.values]
    _heat(axes, values, grid.row_labels, grid.col_labels, form="{:.1f}", low=None, high=None)
    if grid.best is not None:
        row, column = grid.best
        axes.add_patch(
            mpl.patches.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=2.4)
        )
    axes.set_title(grid.title)
    axes.set_ylabel(grid.row_title)
    axes.set_xlabel(grid.col_title)
    return figure


def _heat(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    form: str,
    low: float | None,
    high: float | None,
) -> None:
    numbers = [value for row in values for value in row if np.isfinite(value)]
    bottom = low if low is not None else min(numbers, default=0.0)
    top = high if high is not None else max(numbers, default=1.0)
    axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=bottom, vmax=top, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not np.isfinite(value):
                axes.text(j, i, "–", ha="center", va="center", color="#5a6775", fontsize=8.5)
            else:
                strong = (value - bottom) / ((top - bottom) or 1.0) > 0.6
                axes.text(
                    j,
                    i,
                    form.format(value),
                    ha="center",
                    va="center",
                    color="white" if strong else "#16202b",
                    fontsize=8.5,
                )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(0.26 * part + 0.74 for part in to_rgb(colour))


def _look(style: Style) -> dict[str, object]:
    dash = (0, tuple(part / style.width for part in style.dash)) if style.dash else "-"
    return {
        "color": style.light,
        "marker": style.marker,
        "linestyle": dash,
        "linewidth": style.width * 0.75,
        "label": style.name,
    }
