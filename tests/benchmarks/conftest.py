"""Benchmarks measure a machine, not a change: they run only when they are asked for, by `-m ""`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("speed")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch, so that ratios do not depend on how a machine shares its cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
