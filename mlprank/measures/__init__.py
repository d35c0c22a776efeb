"""Measures: from one layer's record to its neurons' scores.

A new measure is one class here, one line in `MEASURES` and one slow loop in ``tests/reference.py``. Somebody else's is
registered with `register_measure`, or simply given to `mlprank.prune` as an instance.
"""

from collections.abc import Mapping
from typing import Any

from mlprank.measures.baselines import Activation, Norm, Random, Wanda
from mlprank.measures.pagerank import ModifiedPageRank, WeightedPageRank
from mlprank.measures.reconstruction import Reconstruction
from mlprank.measures.record import LayerRecord, Measure, Reader
from mlprank.utils.registry import Registry

PUBLISHED_MEASURES: dict[str, str] = {
    "WeightedPageRank": "weighted_pagerank",
    "ModifiedPageRank": "modified_pagerank",
    "ChannelRandom": "random",
    "ChannelNorm": "norm",
    "ChannelActivation": "activation",
    "ChannelWandA": "wanda",
}
"""The thesis's names, and ours for the same measures."""

MEASURES = Registry(
    "measure",
    Measure,
    {
        "weighted_pagerank": WeightedPageRank,
        "modified_pagerank": ModifiedPageRank,
        "random": Random,
        "norm": Norm,
        "activation": Activation,
        "wanda": Wanda,
        "reconstruction": Reconstruction,
    },
    {name: (short, {}) for name, short in PUBLISHED_MEASURES.items()},
)


def register_measure(name: str, cls: type[Any]) -> None:
    """Make a measure known by a name, for Python, YAML and the command line; see `Registry.register`.

    Examples:
        >>> from mlprank.measures import Norm, register_measure
        >>> register_measure("norm", Norm)  # a name keeps its class
    """
    MEASURES.register(name, cls)


def get_measure(measure: str | Mapping[str, Any] | type[Any] | Measure, **parameters: Any) -> Measure:
    """Return a measure by name, dotted path, description, class or as it is; see `Registry.find`.

    Examples:
        >>> from mlprank.measures import get_measure
        >>> get_measure("norm", p=2)
        Norm(p=2)
    """
    found: Measure = MEASURES.find(measure, **parameters)
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
