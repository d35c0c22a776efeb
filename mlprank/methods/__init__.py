"""Methods: from scores to masks.

A new method is one class here, one line in `METHODS` and one slow loop in ``tests/reference.py``; or an instance of
somebody else's, given to `mlprank.prune` as it is.
"""

from collections.abc import Mapping
from typing import Any

from mlprank.methods.adaptive import Adaptive
from mlprank.methods.ranked import Global, Local, Method
from mlprank.utils.registry import Registry

METHODS = Registry(
    "method",
    Method,
    {"local": Local, "global": Global, "adaptive": Adaptive},
    # The thesis compares scores of different layers as they are.
    {"Local": ("local", {}), "Global": ("global", {"normalise": "none"})},
)


def register_method(name: str, cls: type[Any]) -> None:
    """Make a method known by a name, for Python, YAML and the command line; see `Registry.register`.

    Examples:
        >>> from mlprank.methods import Local, register_method
        >>> register_method("local", Local)  # a name keeps its class
    """
    METHODS.register(name, cls)


def get_method(method: str | Mapping[str, Any] | type[Any] | Method, **parameters: Any) -> Method:
    """Return a method by name (the thesis's ``"Global"`` does not normalise), dotted path, description, class or as is.

    Examples:
        >>> from mlprank.methods import get_method
        >>> get_method("Global")
        Global(normalise='none')
    """
    found: Method = METHODS.find(method, **parameters)
    return found


__all__ = ["METHODS", "Adaptive", "Global", "Local", "Method", "get_method", "register_method"]
