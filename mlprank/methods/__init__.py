"""Methods: from scores to masks.

A new method is one class here, one line in `METHODS` and one slow loop in ``tests/reference.py``; or an instance of
somebody else's, given to `mlprank.prune` as it is.
"""

from mlprank.methods.adaptive import Adaptive
from mlprank.methods.ranked import Global, Local, Method
from mlprank.utils.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    Method,
    {"local": Local, "global": Global, "adaptive": Adaptive},
    # The thesis compares scores of different layers as they are.
    {"Local": ("local", {}), "Global": ("global", {"normalise": "none"})},
)

register_method = METHODS.register
"""Make a method known by a name, for Python, YAML and the command line; see `Registry.register`."""

get_method = METHODS.find
"""Return a method by name (the thesis's "Global" does not normalise), dotted path, description, class or as it is."""

__all__ = ["METHODS", "Adaptive", "Global", "Local", "Method", "get_method", "register_method"]
