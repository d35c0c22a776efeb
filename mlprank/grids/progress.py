"""What happens to the cells of a grid, live: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlprank.grids.engine import Item, Result

_REFRESH_PER_S = 2
_ROWS = 24
_QUIET = ("done", "ok")
"""States that need no counter of their own."""


class Progress:
    """Shows cells while they run.

    Args:
        items: The whole grid.
        unit: What a cell is called.
        metric: The number that is shown of a cell; higher is better.
        epochs: Epochs a cell.
        finished: Results that are there already, by key.
        on_finished: Called with a cell and its result after it is recorded.
        every_s: Seconds between two lines of a summary where there is no terminal.
        each: Whether every cell has lines of its own there; failed ones always have.
        console: Where to show.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        unit: str,
        metric: str,
        epochs: int = 1,
        finished: Mapping[str, Result] | None = None,
        on_finished: Callable[[Any, Any], None] = lambda item, result: None,
        every_s: float = 30.0,
        each: bool = True,
        console: Console | None = None,
    ) -> None:
        self.items, self.unit, self.metric, self.epochs = list(items), unit, metric, max(epochs, 1)
        self.on_finished, self.every_s, self.each = on_finished, every_s, each
        self.console = console or Console()
        self.results: dict[str, Result] = dict(finished or {})
        self.running: dict[str, Mapping[str, float] | None] = {}
        self.failures: dict[str, str] = {}
        self._earlier = len(self.results) * self.epochs
        self._start = time.monotonic()
        self._line_at = self._start
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=_REFRESH_PER_S)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, items: Sequence[Item]) -> None:
        """Show that these cells are worked on."""
        self.running |= {item.key: None for item in items}
        if self._live is None and self.each and items:
            what = items[0].label if len(items) == 1 else f"{len(items)} {self.unit}s"
            self.console.print(f"running {what}", highlight=False, markup=False)

    def epoch(self, item: Item, row: Mapping[str, float]) -> None:
        """Show a cell's last epoch."""
        self.running[item.key] = dict(row)
        self._line()

    def finished(self, item: Item, result: Result) -> None:
        """Show what came out of a cell."""
        self.running.pop(item.key, None)
        self.failures.pop(item.key, None)
        self.results[item.key] = result
        self.on_finished(item, result)
        score = _number(result.metrics, self.metric)
        if self._live is None and self.each:
            shown = f"{self.metric} {score:.4f}" if math.isfinite(score) else result.status
            self.console.print(f"{item.label}: {shown}", highlight=False, markup=False)
        self._line()

    def failed(self, item: Item, error: str) -> None:
        """Show that a cell failed."""
        self.running.pop(item.key, None)
        self.failures[item.key] = error
        text = f"failed: {item.label}: {error.splitlines()[0]}"
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._line()

    def note(self, text: str) -> None:
        """Show something that the user should know."""
        self.console.print(f"note: {text}", highlight=False, markup=False)

    def summary(self) -> str:
        """Return how many cells are in which state, the best of them, and the time left."""
        states = [result.status for result in self.results.values()]
        others = "".join(f", {states.count(state)} {state}" for state in dict.fromkeys(states) if state not in _QUIET)
        done = sum(state in _QUIET for state in states)
        counts = (
            f"{done} done, {len(self.running)} running{others}, {len(self.failures)} failed of {len(self.items)} "
            f"{self.unit}s"
        )
        rows = [result.metrics for result in self.results.values()] + [row for row in self.running.values() if row]
        scores = [score for row in rows if math.isfinite(score := _number(row, self.metric))]
        best = f"; best {self.metric} {max(scores):.4f}" if scores else ""
        left = self._seconds_left()
        return counts + best + (f"; {time_left(left)} left" if left is not None else "")

    def table(self) -> Table:
        """Return the live table: what runs, then the best of what is done."""
        table = Table(title=self.summary(), title_justify="left", box=None)
        for column in (self.unit, "state", *(["epoch"] if self.epochs > 1 else []), self.metric):
            table.add_column(column, justify="left" if column in (self.unit, "state") else "right")
        by_score = sorted(self.items, key=lambda item: -self._score(item))
        for item in by_score[:_ROWS]:
            state, row = self._state(item)
            epoch = _number(row, "epoch")
            steps = [f"{int(epoch) + 1}/{self.epochs}" if math.isfinite(epoch) else ""] if self.epochs > 1 else []
            score = _number(row, self.metric)
            table.add_row(item.label, state, *steps, f"{score:.4f}" if math.isfinite(score) else "")
        if len(self.items) > _ROWS:
            table.add_row(f"… {len(self.items) - _ROWS} more")
        return table

    def _state(self, item: Item) -> tuple[str, Any]:
        if item.key in self.results:
            return self.results[item.key].status, self.results[item.key].metrics
        if item.key in self.failures:
            return "failed", None
        return ("running" if item.key in self.running else "waiting"), self.running.get(item.key)

    def _score(self, item: Item) -> float:
        score = _number(self._state(item)[1], self.metric)
        return score if math.isfinite(score) else -math.inf

    def _line(self) -> None:
        now = time.monotonic()
        if self._live is None and now - self._line_at > self.every_s:
            self._line_at = now
            self.console.print(self.summary(), highlight=False)

    def _seconds_left(self) -> float | None:
        running = sum(row["epoch"] + 1 for row in self.running.values() if row and "epoch" in row)
        done = (len(self.results) + len(self.failures)) * self.epochs + running - self._earlier
        left = len(self.items) * self.epochs - done - self._earlier
        return (time.monotonic() - self._start) * left / done if done > 0 and left > 0 else None


def time_left(seconds: float) -> str:
    """Say how long is left in a few letters.

    Example:
        >>> time_left(45.4), time_left(200), time_left(9000)
        ('45 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _number(row: Any, name: str) -> float:
    """A number of a record by its name, of a mapping or of an object; NaN where there is none."""
    value = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
    return math.nan if value is None else float(value)
