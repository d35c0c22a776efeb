"""From a name and parameters to an instance, with errors that say what would have worked."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is not registered, with the nearest that is.

    Args:
        kind: What was looked up, such as ``"measure"``.
        name: The name that the user gave.
        known: Every name that would have worked.

    Returns:
        The error, to be raised by the caller.
    """
    names = list(known)
    lowered = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f'; did you mean "{lowered[close[0]]}"?' if close else "."
    return ValueError(f'unknown {kind} "{name}"{hint} Known names: {", ".join(names)}')


def build(kind: str, name: str, cls: type[Any], parameters: Mapping[str, Any]) -> Any:
    """Make an instance and name the parameters that its class does not have.

    Args:
        kind: What is made, such as ``"measure"``.
        name: What the user called it.
        cls: Its class.
        parameters: Keyword arguments of the class.

    Returns:
        The instance.

    Raises:
        ValueError: If the class has no parameter of a name, needs one that is not given, or rejects a value.
    """
    signature = inspect.signature(cls)
    try:
        signature.bind(**parameters)
    except TypeError as error:
        accepted = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "none"
        raise ValueError(f'{kind} "{name}": {error}; its parameters: {accepted}') from error
    return cls(**parameters)
