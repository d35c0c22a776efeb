"""Errors as a person at a terminal reads them: one line that names the place and the nearest right word."""

import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

WRONG_INPUT = 2
INTERRUPTED = 130

FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What somebody's code (a network, a constructor, a step) raises for what it cannot take."""


class OptionError(ValueError):
    """An option or a key of a config that cannot be used."""


def check_whole(place: str = "", /, *, least: int = 1, most: int | None = None, **values: object) -> None:
    """Raise a ValueError for a value that is not a whole number in its range, named after `place`; True is not one."""
    largest = math.inf if most is None else most
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
            allowed = f"of at least {least}" if most is None else f"in [{least}, {most}]"
            raise ValueError(f"{place}{name}={value!r} must be a whole number {allowed}")


def check_amount(amount: object, place: str = "amount") -> None:
    """Raise a ValueError unless a number, or each of a mapping, is a share of neurons in [0, 1)."""
    for name, value in amount.items() if isinstance(amount, Mapping) else [("", amount)]:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
            where = f' for "{name}"' if name else ""
            raise ValueError(
                f"{place}={value!r}{where} is not in [0, 1); give the share of neurons to remove, such as 0.5"
            )


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise a ValueError unless a value is one of the known ones; it lists them and names the nearest."""
    if value not in known:
        near = did_you_mean(str(value), known)
        raise ValueError(f"{name}={value!r} is unknown{near}; choose one of {', '.join(known)}")


def require(extra: str, *packages: str) -> None:
    """Raise an ImportError that names the extra of mlprank where one of its packages is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(f'{" and ".join(missing)} {verb} not installed; install with: pip install "mlprank[{extra}]"')


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the nearest known word, whatever its case, or nothing where none is near."""
    lowered = {candidate.lower(): candidate for candidate in reversed(list(known))}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the full stop; its kind where it says nothing.

    A line that ends with a colon is continued by the next one.
    """
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {more[0].strip()[:200]}" if more and first.endswith(":") else first).rstrip(". ")
