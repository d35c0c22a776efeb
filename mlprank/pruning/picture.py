"""The picture of a pruning: the centralities of every layer, sorted, with the cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mlprank.utils.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlprank.pruning.result import PruningResult

KEPT, PRUNED, CUT = "#0072B2", "#D55E00", "#444444"
_MAX_PANELS = 24


def draw_pruning(result: PruningResult, path: str | Path) -> Path:
    """Draw every pruned layer's scores from the largest to the smallest; kept neurons, pruned neurons and the cut between them.

    Args:
        result: The pruning.
        path: The file to write, a PNG; whole or absent.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result.masks)[:_MAX_PANELS]
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(6.4, 3.6 * columns), 1.0 + 2.7 * rows), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index < len(names):
            _panel(axis, result, names[index], labels=index == 0)
        else:
            axis.set_visible(False)
    plain = result.recipe.plain()
    left_out = len(result.masks) - len(names)
    more = f" ({left_out} further layers not shown)" if left_out else ""
    figure.suptitle(
        f"{type(result.model).__name__}: centralities by {plain['measure']['name']}, {result.achieved:.0%} pruned{more}",
        fontsize=12,
    )
    figure.supylabel("score × width (1 is the layer's mean)", fontsize=10)
    figure.supxlabel("neurons, from the most central to the least", fontsize=10)
    path = Path(path)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _panel(axis: Axes, result: PruningResult, name: str, *, labels: bool) -> None:
    scores, mask = result.scores[name].double().cpu(), result.masks[name].cpu()
    order = scores.argsort(descending=True, stable=True)
    height = (scores * len(scores))[order].numpy()
    kept = mask[order].numpy()
    ranks = range(1, len(scores) + 1)
    for chosen, colour, label in (
        (kept, KEPT, f"kept {int(kept.sum())}"),
        (~kept, PRUNED, f"pruned {int((~kept).sum())}"),
    ):
        axis.fill_between(
            ranks, 0, height, where=chosen, step="mid", color=colour, alpha=0.85, linewidth=0, label=label
        )
    if 0 < kept.sum() < len(kept):
        axis.axvline(int(kept.sum()) + 0.5, color=CUT, linewidth=1, linestyle="--", label="cut" if labels else None)
    axis.set_title(name, fontsize=10)
    axis.set_xlim(0.5, len(scores) + 0.5)
    axis.set_ylim(0, None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False, loc="upper right")
