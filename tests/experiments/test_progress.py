"""Progress: a live view on a terminal, few plain lines elsewhere."""

import io

import pytest

from mlprank.experiments import progress
from mlprank.experiments.progress import Progress, time_left, title_of
from tests.experiments.synthetic import parameters, record


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(11, done=1, stream=out) as view:
        for index in range(10):
            view.started([parameters()])
            now[0] += 4.0
            view.ended(record(amount=0.01 * index))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("4 of 11 cells done")
    assert lines[0].endswith("left; SyntheticTwo on SyntheticData, weighted_pagerank")
    assert "\x1b" not in out.getvalue()


def test_a_failed_cell_is_named_at_once() -> None:
    out = io.StringIO()
    with Progress(2, done=0, stream=out) as view:
        view.ended(record(None, error="ValueError: made to fail\nin two lines", amount=0.3, protect_output=False))
        assert (view.done, view.failed) == (0, 1)
    expected = "failed: SyntheticTwo on SyntheticData, weighted_pagerank, local, 30 %, output pruned too, seed 0: "
    assert out.getvalue() == expected + "ValueError: made to fail\n"


def test_a_terminal_shows_done_running_and_failed_cells_and_is_left_clean() -> None:
    out = Terminal()
    with Progress(20, done=3, stream=out) as view:
        view.started([parameters(amount=0.1), parameters(amount=0.2)])
        view.ended(record(amount=0.1))
        view.ended(record(None, amount=0.2))
        view.started([parameters(measure="norm")])
        view._view._bar.refresh()  # type: ignore[attr-defined]
    shown = out.getvalue()
    assert "4 done" in shown
    assert "1 running" in shown
    assert "1 failed" in shown
    assert "of 20" in shown
    assert "failed: SyntheticTwo on SyntheticData" in shown
    assert shown.endswith("\x1b[2K") or shown.rstrip().endswith("\x1b[?25h") or "\x1b[2K" in shown[-40:]


def test_words_for_times_and_cells() -> None:
    assert [time_left(seconds) for seconds in (0.2, 45.4, 200, 9000)] == ["1 s", "45 s", "3 min", "2.5 h"]
    assert title_of(parameters(measure="dense", amount=0.0)) == "SyntheticTwo on SyntheticData, dense"
