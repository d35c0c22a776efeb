"""Trials are shown while they run, on a terminal and in a log."""

import io
import math

from rich.console import Console

from mlprank.grids import progress
from mlprank.grids.progress import Progress, time_left
from mlprank.tuning.store import Outcome, Trial


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
    shower = Progress(
        TRIALS,
        unit="trial",
        metric="val_top1",
        epochs=4,
        earlier={TRIALS[0].key: done(0.5)},
        on_finished=lambda trial, outcome: calls.append(1),
        console=console,
    )
    with shower:
        shower.note("one [by] one")
        shower.started(TRIALS[1:3])
        shower.epoch(TRIALS[1], {"epoch": 1, "val_top1": 0.75})
        state = shower.summary()
        table = shower.table()
        shower.finished(TRIALS[1], done(0.875))
        shower.finished(TRIALS[2], DIVERGED)
        shower.failed(TRIALS[3], "RuntimeError: [red] broken")
    assert calls == [1, 1]
    return text.getvalue(), state, table, shower


def test_a_log_has_a_line_a_trial():
    text, state, _, shower = shown(terminal=False)
    lines = text.splitlines()
    assert lines[0] == "note: one [by] one"
    assert "lr=0.1 decay=1: val_top1 0.8750" in lines
    assert "lr=0.2 decay=0: diverged" in lines
    assert "failed: lr=0.2 decay=1: RuntimeError: [red] broken" in lines
    assert state.startswith("1 done, 2 running, 0 failed of 4 trials; best val_top1 0.7500; ")
    assert state.endswith(" left")
    assert shower.summary().startswith("2 done, 0 running, 1 diverged, 1 failed of 4 trials; best val_top1 0.8750")


def test_a_terminal_has_a_table_with_the_best_first():
    text, _, table, _ = shown(terminal=True)
    assert "lr=0.1 decay=1" in text
    trials, states, epochs, scores = (list(column.cells) for column in table.columns)
    assert trials[:2] == ["lr=0.1 decay=1", "lr=0.1 decay=0"]
    assert states == ["running", "done", "running", "waiting"]
    assert epochs[0] == "2/4"
    assert scores[:2] == ["0.7500", "0.5000"]


def test_many_cells_have_a_line_now_and_then_and_failed_ones_at_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    console = Console(file=text, width=200)
    with Progress(TRIALS, unit="cell", metric="val_top1", every_s=5.0, each=False, console=console) as view:
        for item in TRIALS[:3]:
            view.started([item])
            now[0] += 4.0
            view.finished(item, done(0.5))
        view.failed(TRIALS[3], "ValueError: made to fail\nin two lines")
    assert text.getvalue().splitlines() == [
        "2 done, 0 running, 0 failed of 4 cells; best val_top1 0.5000; 8 s left",
        "failed: lr=0.2 decay=1: ValueError: made to fail",
    ]


def test_words_for_times():
    assert [time_left(seconds) for seconds in (0.2, 45.4, 200, 9000)] == ["1 s", "45 s", "3 min", "2.5 h"]
