"""What all engines share: whom they tell, and which errors are a cell's own fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What makes a cell fail for good: the same would happen again. A full disk is no cell's fault and stops the grid."""


class Item(Protocol):
    """A cell of a grid."""

    @property
    def key(self) -> str:
        """What tells it from all others."""

    @property
    def label(self) -> str:
        """The cell in a few words."""


class Result(Protocol):
    """What came out of a cell."""

    @property
    def status(self) -> str:
        """A word for how it ended, such as "done"."""

    @property
    def metrics(self) -> Any:
        """Numbers by name."""


class Watcher(Protocol):
    """Sees what happens to the cells."""

    def started(self, items: Sequence[Any]) -> None:
        """These cells are worked on now."""

    def epoch(self, item: Any, row: Mapping[str, float]) -> None:
        """A cell has ended an epoch with these metrics."""

    def finished(self, item: Any, result: Any) -> None:
        """A cell is recorded with this result."""

    def failed(self, item: Any, error: str) -> None:
        """A cell is recorded as failed."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Watches without a word."""

    def started(self, items: Sequence[Any]) -> None:
        """Say nothing."""

    def epoch(self, item: Any, row: Mapping[str, float]) -> None:
        """Say nothing."""

    def finished(self, item: Any, result: Any) -> None:
        """Say nothing."""

    def failed(self, item: Any, error: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
