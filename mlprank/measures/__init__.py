"""Measures: from one layer's record to its neurons' scores.

A new measure is one file here, one line in `MEASURES` and one slow loop in ``tests/reference.py``. Somebody else's is
registered with `register_measure`, or simply given to `mlprank.prune` as an instance.
"""

from collections.abc import Mapping
from typing import Any

from mlprank.measures.activation import Activation
from mlprank.measures.modified_pagerank import ModifiedPageRank
from mlprank.measures.norm import Norm
from mlprank.measures.random import Random
from mlprank.measures.reconstruction import Reconstruction
from mlprank.measures.record import LayerRecord, Measure, Reader
from mlprank.measures.wanda import Wanda
from mlprank.measures.weighted_pagerank import WeightedPageRank
from mlprank.utils.registry import find

MEASURES: dict[str, type[Any]] = {
    "weighted_pagerank": WeightedPageRank,
    "modified_pagerank": ModifiedPageRank,
    "random": Random,
    "norm": Norm,
    "activation": Activation,
    "wanda": Wanda,
    "reconstruction": Reconstruction,
}

PUBLISHED_MEASURES: dict[str, str] = {
    "WeightedPageRank": "weighted_pagerank",
    "ModifiedPageRank": "modified_pagerank",
    "ChannelRandom": "random",
    "ChannelNorm": "norm",
    "ChannelActivation": "activation",
    "ChannelWandA": "wanda",
}


def register_measure(name: str, cls: type[Any]) -> None:
    """Make a measure known by a name, for YAML, the command line and `get_measure`.

    Args:
        name: Its short name, not yet taken.
        cls: A class whose instances are measures.

    Raises:
        TypeError: If `cls` is not a class, or its instances cannot be called.
        ValueError: If the name is empty or belongs to another class.
    """
    if not isinstance(cls, type) or "__call__" not in dir(cls):
        raise TypeError(f'measure "{name}": {cls!r} is not a class with a __call__(layer) method')
    if not name:
        raise ValueError(f"the name of the measure {cls.__name__} is empty; give it a short name")
    taken = MEASURES.get(name) or MEASURES.get(PUBLISHED_MEASURES.get(name, ""))
    if taken is not None and taken is not cls:
        raise ValueError(f'measure name "{name}" is taken by {taken.__name__}; choose another')
    MEASURES[name] = cls


def published_measures() -> dict[str, tuple[str, dict[str, Any]]]:
    """The thesis's names as `mlprank.utils.registry` reads them: short name and usual parameters."""
    return {name: (short, {}) for name, short in PUBLISHED_MEASURES.items()}


def get_measure(measure: str | Mapping[str, Any] | type[Any] | Measure, **parameters: Any) -> Measure:
    """Return a measure by name, by class or as it is.

    Args:
        measure: A short name, a name of the thesis, a class, a description as YAML has it (see
            `mlprank.utils.registry.find`), or an instance or function, which is returned as it is.
        **parameters: Parameters of the measure, for a name or a class.

    Returns:
        The measure.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given
            beside an instance.
    """
    found: Measure = find(
        "measure",
        measure,
        parameters,
        registry=MEASURES,
        published=published_measures(),
        is_one=lambda one: isinstance(one, Measure),
    )
    return found


__all__ = [
    "MEASURES",
    "PUBLISHED_MEASURES",
    "Activation",
    "LayerRecord",
    "Measure",
    "ModifiedPageRank",
    "Norm",
    "Random",
    "Reader",
    "Reconstruction",
    "Wanda",
    "WeightedPageRank",
    "get_measure",
    "register_measure",
]
