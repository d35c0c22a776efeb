"""Trials are shown while they run, on a terminal and in a log."""

import io
import math

from rich.console import Console

from mlprank.tuning.progress import Progress
from mlprank.tuning.trial import Outcome, Trial


def trial(lr, decay=0.0):
    return Trial(key=f"{lr}-{decay}", point={"opt.lr": lr, "opt.decay": decay}, config={})


def done(score):
    return Outcome("done", ({"epoch": 0, "val_top1": score},), 0, 1.0, "local", "cpu")


DIVERGED = Outcome("diverged", ({"epoch": 0, "val_top1": math.nan},), -1, 1.0, "local", "cpu")
TRIALS = [trial(lr, decay) for lr in (0.1, 0.2) for decay in (0, 1)]


def shown(*, terminal):
    text = io.StringIO()
    calls = []
    console = Console(file=text, width=120, force_terminal=terminal)
    progress = Progress(
        TRIALS, epochs=4, finished={TRIALS[0].key: done(0.5)}, on_finished=lambda: calls.append(1), console=console
    )
    with progress:
        progress.note("one [by] one")
        progress.started(TRIALS[1:3])
        progress.epoch(TRIALS[1], {"epoch": 1, "val_top1": 0.75})
        state = progress.summary()
        table = progress.table()
        progress.finished(TRIALS[1], done(0.875))
        progress.finished(TRIALS[2], DIVERGED)
        progress.failed(TRIALS[3], "RuntimeError: [red] broken")
    assert calls == [1, 1]
    return text.getvalue(), state, table, progress


def test_a_log_has_a_line_a_trial():
    text, state, _, progress = shown(terminal=False)
    lines = text.splitlines()
    assert lines[0] == "note: one [by] one"
    assert "lr=0.1 decay=1: val_top1 0.8750" in lines
    assert "lr=0.2 decay=0: diverged" in lines
    assert "lr=0.2 decay=1: failed: RuntimeError: [red] broken" in lines
    assert state.startswith("1 done, 2 running, 0 diverged, 0 failed of 4 trials; best val_top1 0.7500; ")
    assert state.endswith(" left")
    assert progress.summary().startswith("2 done, 0 running, 1 diverged, 1 failed of 4 trials; best val_top1 0.8750")


def test_a_terminal_has_a_table_with_the_best_first():
    text, _, table, _ = shown(terminal=True)
    assert "lr=0.1 decay=1" in text
    trials, states, epochs, scores = (list(column.cells) for column in table.columns)
    assert trials[:2] == ["lr=0.1 decay=1", "lr=0.1 decay=0"]
    assert states == ["running", "done", "running", "waiting"]
    assert epochs[0] == "2/4"
    assert scores[:2] == ["0.7500", "0.5000"]
