"""Methods: from scores to masks.

A new method is one file here, one line in `METHODS` and one slow loop in ``tests/reference.py``; or an instance of
somebody else's, given to `mlprank.prune` as it is.
"""

from collections.abc import Mapping
from typing import Any

from mlprank.methods.global_ import Global
from mlprank.methods.local import Local
from mlprank.methods.selection import Method
from mlprank.utils.registry import find

METHODS: dict[str, type[Any]] = {"local": Local, "global": Global}

# The thesis compares scores of different layers as they are.
PUBLISHED_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Local": ("local", {}),
    "Global": ("global", {"normalise": "none"}),
}


def get_method(method: str | Mapping[str, Any] | type[Any] | Method, **parameters: Any) -> Method:
    """Return a method by name, by class or as it is.

    Args:
        method: A short name, a name of the thesis (``"Global"`` then compares scores as published, without width
            normalisation), a class, a description as YAML has it (see
            `mlprank.utils.registry.find`), or an instance or function, which is returned as it is.
        **parameters: Parameters of the method, for a name or a class.

    Returns:
        The method.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given
            beside an instance.
    """
    found: Method = find(
        "method",
        method,
        parameters,
        registry=METHODS,
        published=PUBLISHED_METHODS,
        is_one=lambda one: isinstance(one, Method),
    )
    return found


__all__ = ["METHODS", "PUBLISHED_METHODS", "Global", "Local", "Method", "get_method"]
