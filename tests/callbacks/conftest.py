"""What every test of the callbacks shares."""

import logging
import signal
from collections.abc import Iterator

import pytest

import mlprank.pruning.evaluation


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlprank.pruning.evaluation, "_LATENCY_BUDGET_S", 0.01)


@pytest.fixture(autouse=True)
def _no_tips(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch.utilities.rank_zero")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lightning ignores Ctrl-C from the first one on; give it back to whoever runs the tests."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
