"""Errors as a person at a terminal reads them: one line that names the place and the nearest right word."""

import difflib
from collections.abc import Iterable, Sequence

WRONG_INPUT = 2
INTERRUPTED = 130

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What wrong input raises anywhere in the package; anything else is a fault of ours and shows its traceback."""
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What somebody's code (a network, a constructor, a step) raises for what it cannot take."""


class OptionError(ValueError):
    """An option or a key of a config that cannot be used."""


def check_whole(name: str, value: object, *, least: int = 0) -> None:
    """Raise a ValueError that names a value unless it is a whole number of at least `least`; True is not one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Raise a ValueError unless a value is one of the known ones; it lists them and names the nearest."""
    if value not in known:
        near = did_you_mean(str(value), known)
        raise ValueError(f"{name}={value!r} is unknown{near}; choose one of {', '.join(known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the nearest known word, whatever its case, or nothing where none is near.

    Examples:
        >>> did_you_mean("fitt", ["fit", "test"])
        "; did you mean 'fit'?"
    """
    lowered = {candidate.lower(): candidate for candidate in reversed(list(known))}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""


def check_counts(*, least: int = 1, most: int | None = None, **counts: object) -> None:
    """Refuse numbers that are not whole, below `least` or above `most`, by the names they are given under.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is out of range.

    Examples:
        >>> check_counts(batch_size=64, epochs=3)
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name}={count!r} must be an integer")
        if count < least or (most is not None and count > most):
            allowed = f"at least {least}" if most is None else f"in [{least}, {most}]"
            raise ValueError(f"{name}={count} must be {allowed}")


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, without the full stop; its kind where it says nothing.

    Examples:
        >>> first_line(ValueError("sizes differ.\nsee above"))
        'sizes differ'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
