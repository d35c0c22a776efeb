"""Budgets as people state them, and what a search for the smallest network that keeps them found."""

import html
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlprank.methods.adaptive import Counted
from mlprank.pruning.result import PruningResult, format_bytes, network_name
from mlprank.utils.charts import Chart, CostPoint, compose, draw_front, looks_of
from mlprank.utils.files import write_csv


class _Size(NamedTuple):
    """What a size budget limits: its name in `Adaptive.count`, its field of a `FrontPoint`, and how it is written."""

    counted: Counted
    field: str
    units: Mapping[str, float]
    example: str
    title: str
    scale: float  # what the axis of a chart is divided by


_SHARES = ("top-1", "agreement")  # scores that are read in percent
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
SIZES = {
    "max_params": _Size("parameters", "num_parameters", _DECIMAL, "50000 or 50k", "parameters", 1.0),
    "max_flops": _Size("flops", "flops", _DECIMAL, "2M", "FLOPs of a sample", 1.0),
    "max_bytes": _Size("bytes", "size_bytes", {"": 1.0, **_BYTES}, "1MB", "file size, MB", 1e6),
    "max_latency": _Size("latency", "latency_s", _SECONDS, "2ms", "latency of a batch, ms", 1e-3),
}


@dataclass(frozen=True)
class Budgets:
    """What a smaller network must keep, as `mlprank.shrink` takes it; at least one of them.

    A number up to 1, such as 0.3, is a share of the dense network; larger numbers and texts with a unit are absolute.
    A ValueError says what is none.
    """

    max_drop: float | None = None
    max_bytes: float | str | None = None
    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_latency: float | str | None = None

    def __post_init__(self) -> None:
        if not str(self):
            raise ValueError(f"there is no budget; give at least one of {', '.join(asdict(self))}")
        if self.max_drop is not None and (isinstance(self.max_drop, (bool, str)) or not 0 <= self.max_drop < math.inf):
            raise ValueError(
                f"max_drop={self.max_drop!r} must be a number of at least 0, the percentage points to lose, such as 0.5"
            )
        for name in self.sizes:
            self.limit(name, dense=1.0)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The size budgets that are given."""
        return tuple(name for name in SIZES if getattr(self, name) is not None)

    def limit(self, name: str, *, dense: float) -> float:
        """Return a size budget as an absolute number, in what it counts (seconds for latency)."""
        given, units, example = getattr(self, name), SIZES[name].units, SIZES[name].example
        found = re.fullmatch(r"\s*\+?(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)\s*([^\W\d]*)\s*", str(given))
        value, unit = (float(found[1]), found[2]) if found else (0.0, "")
        if isinstance(given, bool) or not 0 < value < math.inf:
            raise ValueError(f"{name}={given!r} must be a positive number, such as {example}, or a share, such as 0.3")
        if not unit and value <= 1:
            return value * dense
        if unit not in units:
            what = f'"{unit}" is not a unit of it' if unit else "it has no unit"
            known = ", ".join(filter(None, units))
            raise ValueError(f"{name}={given!r}: {what}; give one of {known}, such as {example}")
        return value * units[unit]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items() if value is not None)


def format_count(name: str, value: float) -> str:
    """Return a size as a person reads it, by the name of its budget."""
    others = {"max_latency": f"{1e3 * value:.3g} ms", "max_bytes": format_bytes(value)}
    return others.get(name, f"{value:,.0f}")


@dataclass(frozen=True)
class FrontPoint:
    """One network that was tried."""

    amount: float  # what was removed, as a share of what is counted
    num_parameters: int  # its parameters
    flops: int  # FLOPs of a sample
    size_bytes: int  # size of the file of its weights
    latency_s: float | None  # seconds of a batch; None where no budget asks for it
    score: float  # on the validation data; larger is better
    drop: float  # what it loses of the dense network's score, in the unit of `max_drop`
    keeps: bool  # whether it keeps all budgets
    seconds: float  # what it took to make and to score it
    refined: bool  # whether it has been refined, as what is chosen is where refinement is asked for; not its candidates
    widths: Mapping[str, int]  # neurons of every layer that may be pruned

    def size(self, budget: str) -> float:
        """Return what a size budget counts."""
        size = getattr(self, SIZES[budget].field)
        return math.nan if size is None else float(size)


@dataclass(frozen=True, eq=False)
class Front:
    """What a search found; after an interruption `best` is the best so far.

    `best` is the chosen pruning, a `PruningResult`, `best_point` its costs and score; `points` are all networks that
    were tried, from the largest to the smallest, beside the `dense` one.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> x = torch.randn(256, 8)
        >>> front = mlprank.shrink(network, x, x, max_params=0.5, refine=0)
        >>> [row["chosen"] for row in front.rows()].count(True), front.best_point.num_parameters <= 353
        (1, True)
    """

    best: PruningResult  # the chosen pruning
    best_point: FrontPoint  # its costs and score
    points: tuple[FrontPoint, ...]  # every network that was tried, from the largest to the smallest
    dense: FrontPoint  # the dense network
    budgets: Budgets  # what was asked for
    score: str  # what the score is: "top-1", "agreement", or the name of a function
    count: str  # what amounts are shares of
    interrupted: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """Return every network tried as plain types, the dense one first, as `frontier.csv` has them."""
        names, rows = {"num_parameters": "parameters", "size_bytes": "bytes"}, []
        for point in (self.dense, *self.points):
            plain = asdict(point) | {"seconds": round(point.seconds, 3), "chosen": point is self.best_point}
            plain["widths"] = "-".join(map(str, point.widths.values()))
            rows.append({names.get(name, name): value for name, value in plain.items()})
        return rows

    def write_csv(self, path: str | Path) -> Path:
        """Write every network tried to a CSV file, whole or not at all."""
        return write_csv(path, self.rows())

    def plot(self) -> Chart:
        """Draw score against cost, the chosen network named; an Altair chart, as `PruningResult.plot` gives one."""
        budget = next((name for name, size in SIZES.items() if size.counted == self.count), "max_params")
        size, series = SIZES[budget], self.best.recipe.plain()["measure"]["name"]
        points = [
            CostPoint(
                series,
                point.size(budget) / size.scale,
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
            cost=size.title,
            dense=(self.dense.size(budget) / size.scale, self.dense.score),
            score="top-1 accuracy" if self.score == "top-1" else self.score,
            percent=self.score in _SHARES,
        )
        return compose([drawing])

    def __repr__(self) -> str:
        best, dense = self.best_point, self.dense
        latency, refined = dense.latency_s is not None, any(point.refined for point in self.points)

        def shown(score: float) -> str:
            return f"{100 * score:.2f} %" if self.score in _SHARES else f"{score:.4f}"

        head = ["", "removed", "parameters", "FLOPs", "file", *["latency"] * latency, *[""] * refined]
        rows = [[*head, self.score, "drop", ""]]
        rows += [
            [
                "dense" if point is dense else "→" if point is best else "",
                f"{point.amount:.1%}",
                f"{point.num_parameters:,} ({point.num_parameters / dense.num_parameters:.1%})",
                f"{point.flops:,}",
                format_bytes(point.size_bytes),
                *[format_count("max_latency", point.size("max_latency"))] * latency,
                *["refined" if point.refined else ""] * refined,
                shown(point.score),
                f"{point.drop:.{2 if self.score in _SHARES else 4}f}",
                "" if point is dense else "keeps the budgets" if point.keeps else "does not",
            ]
            for point in (dense, *self.points)
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in rows]
        ended = ", interrupted: the best so far" if self.interrupted else ""
        left = f"{best.num_parameters:,} of {dense.num_parameters:,} parameters"
        share = f"{best.num_parameters / dense.num_parameters:.1%}"
        scores = f"{self.score} {shown(dense.score)} → {shown(best.score)}"
        return "\n".join([*lines, f"Chosen ({self.budgets}{ended}): {left} ({share}), {scores}."])

    def _repr_html_(self) -> str:
        return f'<pre style="line-height:1.2">{html.escape(repr(self))}</pre>'


class BudgetError(ValueError):
    """No network keeps the budgets; `front` is what was tried, its `best` the nearest network."""

    def __init__(self, message: str, front: Front) -> None:
        super().__init__(message)
        self.front = front
