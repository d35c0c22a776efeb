"""Methods: from scores to masks.

A new method is one file here, one line in `METHODS` and one slow loop in ``tests/reference.py``; or an instance of
somebody else's, given to `mlprank.prune` as it is.
"""

from collections.abc import Mapping
from typing import Any

from mlprank.measures.lookup import build, read_spec, registered_name, unknown_name
from mlprank.methods.global_ import Global
from mlprank.methods.local import Local
from mlprank.methods.selection import Method

METHODS: dict[str, type[Any]] = {"local": Local, "global": Global}

# The thesis compares scores of different layers as they are.
PUBLISHED_METHODS: dict[str, Local | Global] = {"Local": Local(), "Global": Global(normalise="none")}


def get_method(method: str | Mapping[str, Any] | type[Any] | Method, **parameters: Any) -> Method:
    """Return a method by name, by class or as it is.

    Args:
        method: A short name, a name of the thesis (``"Global"`` then compares scores as published, without width
            normalisation), a class, a description as YAML has it (see
            `mlprank.measures.lookup.read_spec`), or an instance or function, which is returned as it is.
        **parameters: Parameters of the method, for a name or a class.

    Returns:
        The method.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given
            beside an instance.
    """
    if isinstance(method, Mapping):
        method, parameters = read_spec("method", method)
    if isinstance(method, str):
        method = registered_name(method, METHODS, PUBLISHED_METHODS)
        if method in PUBLISHED_METHODS and not parameters:
            return PUBLISHED_METHODS[method]
        name = method.lower() if method in PUBLISHED_METHODS else method
        if name not in METHODS:
            raise unknown_name("method", method, [*METHODS, *PUBLISHED_METHODS])
        found: Method = build("method", method, METHODS[name], parameters)
        return found
    if isinstance(method, type):
        built: Method = build("method", method.__name__, method, parameters)
        return built
    if not isinstance(method, Method):
        raise TypeError(f"method={method!r} is not a name, a class or a callable that takes scores and amounts")
    if parameters:
        raise ValueError(
            f"method={method!r} is an instance, so the parameters {sorted(parameters)} have no place; "
            "give them when you make it"
        )
    return method


__all__ = ["METHODS", "PUBLISHED_METHODS", "Global", "Local", "Method", "get_method"]
