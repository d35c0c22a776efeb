"""What happens to the trials, live: a table on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlprank.tuning.trial import MONITOR, Outcome, Trial

_LINE_EVERY_S = 30.0
_REFRESH_PER_S = 2
_ROWS = 24


class Progress:
    """Shows the trials while they run.

    Args:
        trials: The whole grid.
        epochs: Epochs a trial.
        finished: Records that are there already, by key.
        on_finished: Called after a trial is recorded.
        console: Where to show.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        epochs: int,
        finished: Mapping[str, Outcome],
        on_finished: Callable[[], None] = lambda: None,
        console: Console | None = None,
    ) -> None:
        self.trials, self.epochs, self.on_finished = list(trials), max(epochs, 1), on_finished
        self.console = console or Console()
        self.outcomes = dict(finished)
        self.running: dict[str, Mapping[str, float] | None] = {}
        self.failures: dict[str, str] = {}
        self._earlier = len(finished) * self.epochs
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

    def started(self, trials: Sequence[Trial]) -> None:
        """Show that these trials are being trained."""
        self.running |= {trial.key: None for trial in trials}
        if self._live is None:
            what = trials[0].label if len(trials) == 1 else f"{len(trials)} trials"
            self.console.print(f"training {what}", highlight=False)

    def epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        """Show a trial's last epoch."""
        self.running[trial.key] = dict(row)
        if self._live is None and time.monotonic() - self._line_at > _LINE_EVERY_S:
            self._line_at = time.monotonic()
            self.console.print(self.summary(), highlight=False)

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """Show what came out of a trial."""
        self.running.pop(trial.key, None)
        self.outcomes[trial.key] = outcome
        self.on_finished()
        if self._live is None:
            result = f"{MONITOR} {outcome.score:.4f}" if outcome.status == "done" else "diverged"
            self.console.print(f"{trial.label}: {result}", highlight=False)

    def failed(self, trial: Trial, error: str) -> None:
        """Show that a trial failed."""
        self.running.pop(trial.key, None)
        self.failures[trial.key] = error
        if self._live is None:
            self.console.print(f"{trial.label}: failed: {error}", highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Show something that the user should know."""
        self.console.print(f"note: {text}", highlight=False, markup=False)

    def summary(self) -> str:
        """Return how many trials are in which state, the best of them, and the time left."""
        diverged = sum(outcome.status == "diverged" for outcome in self.outcomes.values())
        counts = (
            f"{len(self.outcomes) - diverged} done, {len(self.running)} running, {diverged} diverged, "
            f"{len(self.failures)} failed of {len(self.trials)} trials"
        )
        scores = [o.score for o in self.outcomes.values() if math.isfinite(o.score)]
        scores += [row[MONITOR] for row in self.running.values() if row and math.isfinite(row.get(MONITOR, math.nan))]
        best = f"; best {MONITOR} {max(scores):.4f}" if scores else ""
        left = self._seconds_left()
        return counts + best + (f"; {_clock(left)} left" if left is not None else "")

    def table(self) -> Table:
        """Return the live table: what runs, then the best of what is done."""
        table = Table(title=self.summary(), title_justify="left", box=None)
        for column in ("trial", "state", "epoch", MONITOR):
            table.add_column(column, justify="left" if column in ("trial", "state") else "right")
        by_score = sorted(self.trials, key=lambda trial: -self._score(trial))
        for trial in by_score[:_ROWS]:
            state, row = self._state(trial)
            epoch = f"{int(row['epoch']) + 1}/{self.epochs}" if row and "epoch" in row else ""
            table.add_row(trial.label, state, epoch, f"{row[MONITOR]:.4f}" if row and MONITOR in row else "")
        if len(self.trials) > _ROWS:
            table.add_row(f"… {len(self.trials) - _ROWS} more")
        return table

    def _state(self, trial: Trial) -> tuple[str, Mapping[str, float] | None]:
        if trial.key in self.outcomes:
            return self.outcomes[trial.key].status, self.outcomes[trial.key].metrics
        if trial.key in self.failures:
            return "failed", None
        return ("running" if trial.key in self.running else "waiting"), self.running.get(trial.key)

    def _score(self, trial: Trial) -> float:
        row = self._state(trial)[1]
        score = row.get(MONITOR, math.nan) if row else math.nan
        return score if math.isfinite(score) else -math.inf

    def _seconds_left(self) -> float | None:
        running = sum(row["epoch"] + 1 for row in self.running.values() if row)
        done = (len(self.outcomes) + len(self.failures)) * self.epochs + running - self._earlier
        left = len(self.trials) * self.epochs - done - self._earlier
        return (time.monotonic() - self._start) * left / done if done > 0 else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
