"""What happens to the cells of a grid, and how far a long computation is: live on a terminal, lines elsewhere."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Self

from rich import progress as bars
from rich.console import Console
from rich.live import Live
from rich.table import Table

_ROWS = 24
_RUNNING, _FAILED = "running", "failed"
_QUIET = ("done", "ok")
"""States of what ended well."""


@dataclass
class Progress:
    """Shows what happens to the cells of a whole grid; without a console it says nothing.

    A cell has a `key` that tells it from all others, and a `label` in a few words; what came out of it a `status`, such
    as "done", and `metrics`, numbers by name.
    """

    items: Sequence[Any] = ()
    _: KW_ONLY
    unit: str = "cell"  # what a cell is called
    metric: str = ""  # what cells are shown by; higher is better
    epochs: int = 1
    earlier: Mapping[str, Any] = field(default_factory=dict)  # results that are there already, by key
    on_finished: Callable[[Any, Any], None] = lambda item, result: None  # called when a result is recorded
    every_s: float = 30.0  # without a terminal a line sums up all cells so often
    each: bool = True  # there, every cell has a line of its own; failed ones always have
    console: Console = field(default_factory=partial(Console, quiet=True))

    def __post_init__(self) -> None:
        self.states: dict[str, tuple[str, Any]] = {  # of every cell that was started: a word, and its numbers
            key: (result.status, result.metrics) for key, result in self.earlier.items()
        }
        self._start = self._line_at = time.monotonic()
        self._say = partial(self.console.out, highlight=False)
        self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def started(self, items: Sequence[Any]) -> None:
        """Show that these cells are worked on."""
        self.states |= {item.key: (_RUNNING, None) for item in items}
        if items and self.each and not self._live.is_started:
            self._say(f"running {items[0].label if len(items) == 1 else f'{len(items)} {self.unit}s'}")

    def epoch(self, item: Any, row: Mapping[str, float]) -> None:
        """Show a cell's last epoch."""
        self._change(item, _RUNNING, dict(row))

    def finished(self, item: Any, result: Any) -> None:
        """Show what came out of a cell."""
        self.on_finished(item, result)
        score = _number(result.metrics, self.metric)
        if self.each and not self._live.is_started:
            self._say(f"{item.label}: {f'{self.metric} {score:.4f}' if math.isfinite(score) else result.status}")
        self._change(item, result.status, result.metrics)

    def failed(self, item: Any, error: str) -> None:
        """Show that a cell failed."""
        self._say(f"failed: {item.label}: {error.splitlines()[0]}")
        self._change(item, _FAILED, None)

    def note(self, text: str) -> None:
        """Show something that the user should know."""
        self._say(f"note: {text}")

    def summary(self) -> str:
        """Return how many cells are in which state, the best of them, and the time left."""
        counts = Counter(state for state, _ in self.states.values())
        done = sum(counts[state] for state in _QUIET)
        others = "".join(f", {n} {state}" for state, n in counts.items() if state not in (*_QUIET, _RUNNING, _FAILED))
        of = f"of {len(self.items)} {self.unit}s"
        text = f"{done} done, {counts[_RUNNING]} running{others}, {counts[_FAILED]} failed {of}"
        if (best := max(map(self._score, self.items), default=-math.inf)) > -math.inf:
            text += f"; best {self.metric} {best:.4f}"
        shares = (((row or {}).get("epoch", -1) + 1) / self.epochs for s, row in self.states.values() if s == _RUNNING)
        ended = len(self.states) - counts[_RUNNING] + sum(shares) - len(self.earlier)
        left = len(self.items) - len(self.earlier) - ended
        if ended > 0 and left > 0:
            text += f"; {time_left((time.monotonic() - self._start) * left / ended)} left"
        return text

    def table(self) -> Table:
        """Return the live table, the best cells first."""
        table = Table(self.unit, "state", title=self.summary(), title_justify="left", box=None)
        for column in (*(["epoch"] if self.epochs > 1 else []), self.metric):
            table.add_column(column, justify="right")
        for item in sorted(self.items, key=self._score, reverse=True)[:_ROWS]:
            state, row = self.states.get(item.key, ("waiting", None))
            epoch, score = _number(row, "epoch"), self._score(item)
            steps = [f"{int(epoch) + 1}/{self.epochs}" if math.isfinite(epoch) else ""] if self.epochs > 1 else []
            table.add_row(item.label, state, *steps, f"{score:.4f}" if math.isfinite(score) else "")
        if len(self.items) > _ROWS:
            table.add_row(f"… {len(self.items) - _ROWS} more")
        return table

    def _change(self, item: Any, state: str, row: Any) -> None:
        """Note a cell's state; where there is no table, a line now and then sums up all of them."""
        self.states[item.key] = (state, row)
        now = time.monotonic()
        if not self._live.is_started and now - self._line_at > self.every_s:
            self._line_at = now
            self._say(self.summary())

    def _score(self, item: Any) -> float:
        score = _number(self.states.get(item.key, ("", None))[1], self.metric)
        return score if math.isfinite(score) else -math.inf


@contextmanager
def shown_steps(unit: str = "", *, every_s: float = 0.0) -> Iterator[Callable[[float, float, str], None]]:
    """Give a function that shows how many steps of how many are done, and what is done; in a log every `every_s`."""
    console = Console(stderr=True)
    started = last = time.monotonic()
    columns = ("{task.fields[count]}", bars.BarColumn(20), bars.TimeElapsedColumn(), "{task.description}")
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, count="")

        def show(done: float, total: float, text: str) -> None:
            nonlocal last
            now = time.monotonic()
            left = (now - started) * (total / max(done, 0.5) - 1)
            count = f"{done:.0f} of {total:.0f}{unit}, {left:.0f} s left"
            bar.update(task, completed=done, total=total, description=text, count=count)
            if not console.is_terminal and now - last >= every_s:
                last = now
                console.print(f"{text} ({count})", highlight=False, soft_wrap=True)

        yield show


def time_left(seconds: float) -> str:
    """Say how long is left in a few letters: "45 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _number(row: Any, name: str) -> float:
    """A number of a record by its name, of a mapping or of an object; NaN where there is none."""
    value = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
    return math.nan if value is None else float(value)
