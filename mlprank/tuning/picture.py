"""A picture of the grid: validation accuracy over one or two options."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlprank.grids.durable import write_whole
from mlprank.tuning.trial import MONITOR, Outcome, Trial, format_value, short_names

_MISSING = "·"


def accuracy_matrix(
    trials: Sequence[Trial],
    outcomes: Mapping[str, Outcome],
    rows: tuple[str, list[Any]],
    columns: tuple[str, list[Any]],
) -> list[list[float]]:
    """Return the best accuracy for every pair of values, over all other options; NaN where there is none.

    Args:
        trials: The grid.
        outcomes: By key; diverged and missing trials count as none.
        rows: An option and its values.
        columns: An option and its values.
    """
    matrix = [[math.nan] * len(columns[1]) for _ in rows[1]]
    for trial in trials:
        outcome = outcomes.get(trial.key)
        if outcome is None or not math.isfinite(outcome.score):
            continue
        i, j = rows[1].index(trial.point[rows[0]]), columns[1].index(trial.point[columns[0]])
        matrix[i][j] = outcome.score if math.isnan(matrix[i][j]) else max(matrix[i][j], outcome.score)
    return matrix


def draw_heat_map(
    trials: Sequence[Trial], outcomes: Mapping[str, Outcome], values: Mapping[str, list[Any]], path: Path
) -> Path:
    """Draw the accuracy over the two options with the most values; one option gives one row.

    Args:
        trials: The grid.
        outcomes: By key.
        values: Of every option.
        path: The PNG file.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    names = short_names(list(values))
    widest = sorted(values, key=lambda key: -len(values[key]))[:2]
    first, *second = [key for key in values if key in widest]
    column = second[0] if second else first
    rows, columns = (first, list(values[first])), (column, list(values[column]))
    if not second:
        matrix = [[row[i] for i, row in enumerate(accuracy_matrix(trials, outcomes, rows, columns))]]
    else:
        matrix = accuracy_matrix(trials, outcomes, rows, columns)
    figure = Figure(figsize=(2.2 + 0.85 * len(columns[1]), 1.8 + 0.55 * len(matrix)), layout="constrained")
    axes = figure.add_subplot()
    percent = [[100 * value for value in row] for row in matrix]
    image = axes.imshow(percent, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns[1])), [format_value(value) for value in columns[1]])
    axes.set_xlabel(names[column])
    if second:
        axes.set_yticks(range(len(rows[1])), [format_value(value) for value in rows[1]])
        axes.set_ylabel(names[first])
    else:
        axes.set_yticks([])
    finite = [value for row in percent for value in row if math.isfinite(value)]
    middle = (min(finite) + max(finite)) / 2 if finite else 0.0
    for i, row in enumerate(percent):
        for j, value in enumerate(row):
            text = f"{value:.1f}" if math.isfinite(value) else _MISSING
            colour = (
                "black" if math.isfinite(value) and value > middle else "white" if math.isfinite(value) else "black"
            )
            axes.text(j, i, text, ha="center", va="center", color=colour)
    others = len(values) - len(widest)
    axes.set_title(f"{MONITOR} in %" + (f", best over {others} more options" if others > 0 else ""))
    figure.colorbar(image)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_whole(path, buffer.getvalue())
    return path
