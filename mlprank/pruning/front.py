"""Budgets as people state them, and what a search for the smallest network that keeps them found."""

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlprank.methods.adaptive import Counted
from mlprank.pruning.result import PruningResult, format_bytes, network_name
from mlprank.utils.charts import Chart, CostPoint, compose, draw_front, looks_of
from mlprank.utils.files import write_csv

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "max_params": _DECIMAL,
    "max_flops": _DECIMAL,
    "max_bytes": {"": 1.0, **_BYTES},
    "max_latency": _SECONDS,
}
_EXAMPLES = {"max_params": "50000 or 50k", "max_flops": "2M", "max_bytes": "1MB", "max_latency": "2ms"}
COUNTS: Mapping[str, Counted] = {
    "max_params": "parameters",
    "max_flops": "flops",
    "max_bytes": "bytes",
    "max_latency": "latency",
}
"""What each size budget counts."""


@dataclass(frozen=True)
class Budgets:
    """What a smaller network must keep; at least one of them.

    A number up to 1, such as 0.3, is a share of the dense network; larger numbers and texts with a unit are absolute.
    They are those of `mlprank.shrink`.

    Raises:
        ValueError: If there is none, or one is not a positive number with a unit that it can have.

    Examples:
        >>> Budgets(max_drop=0.5, max_bytes="1MB").limit("max_bytes", dense=2.7e6)
        1000000.0
        >>> Budgets(max_flops=0.3).limit("max_flops", dense=1000)
        300.0
    """

    max_drop: float | None = None
    max_bytes: float | str | None = None
    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_latency: float | str | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError(
                f"there is no budget; give at least one of {', '.join(field.name for field in fields(self))}, such as "
                "max_drop=0.5"
            )
        if self.max_drop is not None and (isinstance(self.max_drop, (bool, str)) or not 0 <= self.max_drop < math.inf):
            raise ValueError(
                f"max_drop={self.max_drop!r} must be a number of at least 0: percentage points that may be lost, such "
                "as 0.5"
            )
        for name in self.sizes:
            self._read(name)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The size budgets that are given."""
        return tuple(name for name in COUNTS if getattr(self, name) is not None)

    def limit(self, name: str, *, dense: float) -> float:
        """Return a size budget as an absolute number, in what it counts (seconds for latency)."""
        value, is_share = self._read(name)
        return value * dense if is_share else value

    def _read(self, name: str) -> tuple[float, bool]:
        """A size budget's value, and whether it is a share."""
        given, units = getattr(self, name), _UNITS[name]
        found = re.fullmatch(r"\s*([-+.\deE]+|nan|inf)\s*([^\W\d]*)\s*", str(given))
        try:
            value = float(found[1]) if found else math.nan
        except ValueError:
            value = math.nan
        unit = found[2] if found else ""
        if isinstance(given, bool) or not 0 < value < math.inf:
            raise ValueError(
                f"{name}={given!r} must be a positive number, such as {_EXAMPLES[name]}, or a share of the dense "
                "network, such as 0.3"
            )
        if not unit and value <= 1:
            return value, True
        if unit not in units:
            shown = ", ".join(each for each in units if each)
            what = f'"{unit}" is not a unit of it' if unit else "it has no unit"
            raise ValueError(f"{name}={given!r}: {what}; give one of {shown}, such as {_EXAMPLES[name]}")
        return value * units[unit], False

    def __str__(self) -> str:
        return ", ".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) is not None
        )


def format_count(name: str, value: float) -> str:
    """Return a size as a person reads it, by the name of its budget.

    Examples:
        >>> format_count("max_bytes", 1234567), format_count("max_latency", 0.00213), format_count("max_params", 50000)
        ('1.23 MB', '2.13 ms', '50,000')
    """
    if name == "max_latency":
        return f"{1e3 * value:.3g} ms"
    return format_bytes(value) if name == "max_bytes" else f"{value:,.0f}"


@dataclass(frozen=True)
class FrontPoint:
    """One network that was tried."""

    amount: float  # what was removed, as a share of what is counted
    widths: Mapping[str, int]  # neurons of every layer that may be pruned
    refined: bool  # whether it has been refined, as what is chosen is where refinement is asked for; not its candidates
    num_parameters: int  # its parameters
    flops: int  # FLOPs of a sample
    size_bytes: int  # size of the file of its weights
    latency_s: float | None  # seconds of a batch; None where no budget asks for it
    score: float  # on the validation data; larger is better
    drop: float  # what it loses of the dense network's score, in the unit of `max_drop`
    keeps: bool  # whether it keeps all budgets
    seconds: float  # what it took to make and to score it

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

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> x = torch.randn(256, 8)
        >>> front = mlprank.shrink(network, x, x, max_params=0.5, refine=0)
        >>> [row["chosen"] for row in front.rows()].count(True), front.best_point.num_parameters <= 353
        (1, True)
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
                "refined": point.refined,
                "widths": "-".join(map(str, point.widths.values())),
            }
            for point in (self.dense, *self.points)
        ]

    def write_csv(self, path: str | Path) -> Path:
        """Write every network tried to a CSV file, whole or not at all."""
        return write_csv(path, self.rows())

    def plot(self) -> Chart:
        """Draw score against cost, the chosen network named.

        Returns:
            An Altair chart, which a notebook shows; `mlprank.utils.charts.write_chart` writes it as PNG, SVG or PDF.
        """
        titles = {
            "flops": ("max_flops", "FLOPs of a sample", 1.0),
            "bytes": ("max_bytes", "file size, MB", 1e6),
            "latency": ("max_latency", "latency of a batch, ms", 1e-3),
        }
        budget, title, unit = titles.get(self.count, ("max_params", "parameters", 1.0))
        series = self.best.recipe.plain()["measure"]["name"]
        points = [
            CostPoint(
                series,
                point.size(budget) / unit,
                point.score,
                note=f"{100 * point.amount:.0f} % of the {self.count} removed" + ", refined" * point.refined,
                chosen=point is self.best_point,
            )
            for point in self.points
        ]
        drawing = draw_front(
            points,
            looks_of([series]),
            title=f"{network_name(self.best.model)}: {self.budgets}",
            cost=title,
            dense=(self.dense.size(budget) / unit, self.dense.score),
            score="top-1 accuracy" if self.score == "top-1" else self.score,
            percent=self.in_percent,
        )
        return compose([drawing])

    def _shown(self, score: float) -> str:
        return f"{100 * score:.2f} %" if self.in_percent else f"{score:.4f}"

    def _table(self) -> list[list[str]]:
        """The header, and a row for the dense network and every one that was tried."""
        latency, refined = self.dense.latency_s is not None, any(point.refined for point in self.points)
        head = ["", "removed", "parameters", "FLOPs", "file", *["latency"] * latency, *[""] * refined]
        rows = [[*head, self.score, "drop", ""]]
        for point in (self.dense, *self.points):
            dense = point is self.dense
            rows.append(
                [
                    "dense" if dense else "→" if point is self.best_point else "",
                    f"{point.amount:.1%}",
                    f"{point.num_parameters:,} ({point.num_parameters / self.dense.num_parameters:.1%})",
                    f"{point.flops:,}",
                    format_count("max_bytes", point.size_bytes),
                    *[format_count("max_latency", point.latency_s or math.nan)] * latency,
                    *["refined" if point.refined else ""] * refined,
                    self._shown(point.score),
                    f"{point.drop:.{2 if self.in_percent else 4}f}",
                    "" if dense else "keeps the budgets" if point.keeps else "does not",
                ]
            )
        return rows

    def __repr__(self) -> str:
        rows = self._table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]
        ended = ", interrupted: the best so far" if self.interrupted else ""
        best, dense = self.best_point, self.dense
        return "\n".join(
            [
                *lines,
                f"Chosen ({self.budgets}{ended}): {best.num_parameters:,} of {dense.num_parameters:,} parameters "
                f"({best.num_parameters / dense.num_parameters:.1%}), {self.score} {self._shown(dense.score)} → "
                f"{self._shown(best.score)}.",
            ]
        )

    def _repr_html_(self) -> str:
        return f'<pre style="line-height:1.2">{html.escape(repr(self))}</pre>'


class BudgetError(ValueError):
    """No network keeps the budgets.

    Attributes:
        front: What was tried; its `best` is the nearest network.
    """

    def __init__(self, message: str, front: Front) -> None:
        super().__init__(message)
        self.front = front
