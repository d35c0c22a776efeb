"""How an experiment goes: one live view on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from mlprank.experiments.records import DENSE, CellParameters, CellRecord

_SECONDS_BETWEEN_LINES = 10.0


class View(Protocol):
    """Shows counts and what is running."""

    def show(self, *, done: int, running: int, failed: int, total: int, about: str) -> None:
        """Show the numbers of cells, and what is worked on."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """End the view."""


class Progress:
    """A listener that counts cells and shows them.

    Args:
        total: Number of cells of the experiment.
        done: How many of them were finished before.
        stream: Where to write; a terminal gets a live view.
    """

    def __init__(self, total: int, *, done: int, stream: TextIO | None = None) -> None:
        out = sys.stderr if stream is None else stream
        self.total, self.done, self.failed, self.running = total, done, 0, 0
        self._about = ""
        self._view: View = _LiveView(out, total=total) if out.isatty() else _Lines(out, done=done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.close()

    def started(self, cells: Sequence[CellParameters]) -> None:
        """Say what is worked on."""
        first = cells[0]
        self.running = len(cells)
        self._about = f"{first.model} on {first.dataset}" + ("" if first.measure == DENSE else f", {first.measure}")
        self._show()

    def ended(self, record: CellRecord) -> None:
        """Count a cell; a failed one is named."""
        self.running = max(0, self.running - 1)
        if record.status == "ok":
            self.done += 1
        else:
            self.failed += 1
            first_line = str(record.error).splitlines()[0]
            self._view.say(f"failed: {title_of(record.parameters)}: {first_line}")
        self._show()

    def _show(self) -> None:
        self._view.show(done=self.done, running=self.running, failed=self.failed, total=self.total, about=self._about)


def title_of(cell: CellParameters) -> str:
    """Name a cell in one line."""
    network = f"{cell.model} on {cell.dataset}"
    if cell.measure == DENSE:
        return f"{network}, dense"
    output = "" if cell.protect_output else ", output pruned too"
    return f"{network}, {cell.measure}, {cell.method}, {100 * cell.amount:g} %{output}, seed {cell.calibration_seed}"


def time_left(seconds: float) -> str:
    """Say how long is left in a few letters: "45 s", "3 min", "2.1 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Pace:
    """Estimates the time left from the cells that ended since the start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started, self._before = clock, clock(), 0

    def begin(self, ended: int) -> None:
        self._before = ended

    def left(self, ended: int, total: int) -> str:
        new = ended - self._before
        if new <= 0 or ended >= total:
            return ""
        return f", {time_left((self._clock() - self._started) / new * (total - ended))} left"


class _Lines:
    """A line now and then."""

    def __init__(self, out: TextIO, *, done: int) -> None:
        self._out, self._pace, self._last = out, _Pace(), time.monotonic()
        self._pace.begin(done)

    def show(self, *, done: int, running: int, failed: int, total: int, about: str) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        bad = f", {failed} failed" if failed else ""
        self.say(f"{done} of {total} cells done{bad}{self._pace.left(done + failed, total)}; {about}")

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        pass


class _LiveView:
    """A bar with the numbers, redrawn by rich."""

    def __init__(self, out: TextIO, *, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar: Any = Bar(
            SpinnerColumn(),
            BarColumn(),
            TextColumn(
                "[green]{task.fields[done]} done[/]  [cyan]{task.fields[running]} running[/]  {task.fields[failed]}"
            ),
            TextColumn("of {task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(file=out),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, done=0, running=0, failed="")
        self._bar.start()

    def show(self, *, done: int, running: int, failed: int, total: int, about: str) -> None:
        bad = f"[red]{failed} failed[/]" if failed else "0 failed"
        self._bar.update(self._task, completed=done + failed, done=done, running=running, failed=bad, description=about)

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()
