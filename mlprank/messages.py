"""What errors of others say, fit to be quoted in ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the full stop; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
