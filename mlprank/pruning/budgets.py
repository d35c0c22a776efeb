"""Budgets as people state them: points of accuracy, megabytes, parameters, FLOPs, milliseconds, or shares of the dense network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from mlprank.methods.adaptive import Counted

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "max_params": _DECIMAL,
    "max_flops": _DECIMAL,
    "max_bytes": {"": 1.0, **_BYTES},
    "max_latency": _SECONDS,
}
_EXAMPLES = {"max_params": "50000 or 50k", "max_flops": "2M", "max_bytes": "1MB", "max_latency": "2ms"}
COUNTS: Mapping[str, Counted] = {
    "max_params": "parameters",
    "max_flops": "flops",
    "max_bytes": "bytes",
    "max_latency": "latency",
}
"""What each size budget counts."""


@dataclass(frozen=True)
class Budgets:
    """What a smaller network must keep; at least one of them.

    A number up to 1, such as 0.3, is a share of the dense network; larger numbers and texts with a unit are absolute.

    Attributes:
        max_drop: The most that the score may fall: percentage points of top-1 accuracy or agreement, or what a score function returns.
        max_bytes: The largest file, such as "1MB", "500kB" or 0.3.
        max_params: The most parameters, such as 50000, "50k" or 0.3.
        max_flops: The most FLOPs of a sample, such as "2M" or 0.3.
        max_latency: The longest time of a batch, such as "2ms" or 0.5.

    Raises:
        ValueError: If there is none, or one is not a positive number with a unit that it can have.

    Examples:
        >>> Budgets(max_drop=0.5, max_bytes="1MB").limit("max_bytes", dense=2.7e6)
        1000000.0
        >>> Budgets(max_flops=0.3).limit("max_flops", dense=1000)
        300.0
    """

    max_drop: float | None = None
    max_bytes: float | str | None = None
    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_latency: float | str | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, field.name) is None for field in fields(self)):
            raise ValueError(
                f"there is no budget; give at least one of {', '.join(field.name for field in fields(self))}, such as max_drop=0.5"
            )
        if self.max_drop is not None and (isinstance(self.max_drop, (bool, str)) or not 0 <= self.max_drop < math.inf):
            raise ValueError(
                f"max_drop={self.max_drop!r} must be a number of at least 0: percentage points that may be lost, such as 0.5"
            )
        for name in self.sizes:
            self._read(name)

    @property
    def sizes(self) -> tuple[str, ...]:
        """The size budgets that are given."""
        return tuple(name for name in COUNTS if getattr(self, name) is not None)

    def limit(self, name: str, *, dense: float) -> float:
        """Return a size budget as an absolute number, in what it counts (seconds for latency)."""
        value, is_share = self._read(name)
        return value * dense if is_share else value

    def _read(self, name: str) -> tuple[float, bool]:
        """A size budget's value, and whether it is a share."""
        given, units = getattr(self, name), _UNITS[name]
        found = re.fullmatch(r"\s*([-+.\deE]+|nan|inf)\s*([^\W\d]*)\s*", str(given))
        try:
            value = float(found[1]) if found else math.nan
        except ValueError:
            value = math.nan
        unit = found[2] if found else ""
        if isinstance(given, bool) or not 0 < value < math.inf:
            raise ValueError(
                f"{name}={given!r} must be a positive number, such as {_EXAMPLES[name]}, or a share of the dense network, such as 0.3"
            )
        if not unit and value <= 1:
            return value, True
        if unit not in units:
            shown = ", ".join(each for each in units if each)
            what = f'"{unit}" is not a unit of it' if unit else "it has no unit"
            raise ValueError(f"{name}={given!r}: {what}; give one of {shown}, such as {_EXAMPLES[name]}")
        return value * units[unit], False

    def __str__(self) -> str:
        return ", ".join(
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) is not None
        )


def format_count(name: str, value: float) -> str:
    """Return a size as a person reads it, by the name of its budget.

    Examples:
        >>> format_count("max_bytes", 1234567), format_count("max_latency", 0.00213), format_count("max_params", 50000)
        ('1.23 MB', '2.13 ms', '50,000')
    """
    if name == "max_latency":
        return f"{1e3 * value:.3g} ms"
    if name == "max_bytes":
        return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"
    return f"{value:,.0f}"
