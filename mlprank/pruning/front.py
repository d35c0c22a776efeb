"""What a search for a budget found: every network tried, the chosen one, and how a person sees them."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlprank.pruning.budgets import COUNTS, Budgets, format_count
from mlprank.pruning.result import PruningResult
from mlprank.utils.charts import Chart, CostPoint, compose, draw_front, looks_of
from mlprank.utils.files import write_whole


@dataclass(frozen=True)
class FrontPoint:
    """One network that was tried.

    Attributes:
        amount: What was removed, as a share of what is counted.
        widths: Neurons of every layer that may be pruned.
        num_parameters: Its parameters.
        flops: FLOPs of a sample.
        size_bytes: Size of the file of its weights.
        latency_s: Seconds of a batch; None where no budget asks for it.
        score: On the validation data; larger is better.
        drop: What it loses of the dense network's score, in the unit of `max_drop`.
        keeps: Whether it keeps all budgets.
        seconds: What it took to make and to score it.
    """

    amount: float
    widths: Mapping[str, int]
    num_parameters: int
    flops: int
    size_bytes: int
    latency_s: float | None
    score: float
    drop: float
    keeps: bool
    seconds: float

    def size(self, budget: str) -> float:
        """Return what a size budget counts."""
        sizes = {"max_params": self.num_parameters, "max_flops": self.flops, "max_bytes": self.size_bytes}
        return float(sizes[budget]) if budget in sizes else float(self.latency_s or math.nan)


@dataclass(frozen=True, eq=False)
class Front:
    """What a search found.

    Attributes:
        best: The chosen pruning.
        best_point: Its costs and score.
        points: Every network that was tried, from the largest to the smallest.
        dense: The dense network.
        budgets: What was asked for.
        score: What the score is: "top-1", "agreement", or the name of a function.
        count: What amounts are shares of.
        interrupted: Whether the search was broken off; `best` is the best so far then.
    """

    best: PruningResult
    best_point: FrontPoint
    points: tuple[FrontPoint, ...]
    dense: FrontPoint
    budgets: Budgets
    score: str
    count: str
    interrupted: bool = False

    @property
    def in_percent(self) -> bool:
        """Whether the score is a share that is read in percent."""
        return self.score in ("top-1", "agreement")

    def rows(self) -> list[dict[str, Any]]:
        """Return every network tried as plain types, the dense one first, as `frontier.csv` has them."""
        return [
            {
                "amount": point.amount,
                "parameters": point.num_parameters,
                "flops": point.flops,
                "bytes": point.size_bytes,
                "latency_s": point.latency_s,
                "score": point.score,
                "drop": point.drop,
                "keeps": point.keeps,
                "chosen": point is self.best_point,
                "seconds": round(point.seconds, 3),
                "widths": "-".join(map(str, point.widths.values())),
            }
            for point in (self.dense, *self.points)
        ]

    def write_csv(self, path: str | Path) -> Path:
        """Write every network tried to a CSV file, whole or not at all."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue())
        return Path(path)

    def plot(self) -> Chart:
        """Draw score against cost, the chosen network named.

        Returns:
            An Altair chart, which a notebook shows; `mlprank.utils.charts.write_chart` writes it as PNG, SVG or PDF.
        """
        budget = next((name for name, count in COUNTS.items() if count == self.count), "max_params")
        title, unit = {
            "max_params": ("parameters", 1.0),
            "max_flops": ("FLOPs of a sample", 1.0),
            "max_bytes": ("file size, MB", 1e6),
            "max_latency": ("latency of a batch, ms", 1e-3),
        }[budget]
        series = self.best.recipe.plain()["measure"]["name"]
        points = [
            CostPoint(
                series,
                point.size(budget) / unit,
                point.score,
                note=f"{point.amount:.0%} of the {self.count} removed".replace("%", " %"),
                chosen=point is self.best_point,
            )
            for point in self.points
        ]
        drawing = draw_front(
            points,
            looks_of([series]),
            title=f"{type(self.best.model).__name__}: {self.budgets}",
            cost=title,
            dense=(self.dense.size(budget) / unit, self.dense.score),
            score=self.score if not self.in_percent else {"top-1": "top-1 accuracy"}.get(self.score, self.score),
            percent=self.in_percent,
        )
        return compose([drawing])

    def _table(self) -> tuple[list[str], list[list[str]]]:
        latency = self.dense.latency_s is not None
        header = [
            "",
            "removed",
            "parameters",
            "FLOPs",
            "file",
            *(["latency"] if latency else []),
            self.score,
            "drop",
            "",
        ]
        rows = []
        for point in (self.dense, *self.points):
            scale, digits = (100, 2) if self.in_percent else (1, 4)
            keeps = "" if point is self.dense else "keeps the budgets" if point.keeps else "does not"
            rows.append(
                [
                    "dense" if point is self.dense else "→" if point is self.best_point else "",
                    f"{point.amount:.1%}",
                    f"{point.num_parameters:,} ({point.num_parameters / self.dense.num_parameters:.1%})",
                    f"{point.flops:,}",
                    format_count("max_bytes", point.size_bytes),
                    *([format_count("max_latency", point.latency_s or math.nan)] if latency else []),
                    f"{scale * point.score:.{digits}f}{' %' if self.in_percent else ''}",
                    f"{point.drop:.{digits}f}",
                    keeps,
                ]
            )
        return header, rows

    def __str__(self) -> str:
        header, rows = self._table()
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [header, *rows]
        ]
        ended = ", interrupted: the best so far" if self.interrupted else ""
        best = self.best_point
        chosen = (
            f"Chosen ({self.budgets}{ended}): {best.num_parameters:,} of {self.dense.num_parameters:,} parameters"
            f" ({best.num_parameters / self.dense.num_parameters:.1%}), {self.score} {rows[0][-3]} → "
            + next(row[-3] for row, point in zip(rows[1:], self.points, strict=True) if point is best)
            + "."
        )
        return "\n".join([*lines, chosen])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr{' style=font-weight:bold' if row[0] == '→' else ''}>"
            + "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row)
            + "</tr>"
            for row in rows
        )
        return f"<table><caption>{html.escape(str(self.budgets))}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class BudgetError(ValueError):
    """No network keeps the budgets.

    Attributes:
        front: What was tried; its `best` is the nearest network.
    """

    def __init__(self, message: str, front: Front) -> None:
        super().__init__(message)
        self.front = front
