"""Benchmarks measure a machine, not a change: they run only when they are asked for, by `-m ""`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this directory."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("speed")
