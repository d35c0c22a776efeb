"""Measures: from one layer's record to its neurons' scores.

A new measure is one class here, one line in `MEASURES` and one slow loop in ``tests/reference.py``. Somebody else's is
registered with `register_measure`, or simply given to `mlprank.prune` as an instance.
"""

from mlprank.measures.baselines import Activation, Norm, Random, Wanda
from mlprank.measures.pagerank import ModifiedPageRank, WeightedPageRank
from mlprank.measures.reconstruction import Reconstruction
from mlprank.measures.record import LayerRecord, Measure, Reader
from mlprank.utils.registry import Registry

_NAMES: dict[str, tuple[type[Measure], str]] = {
    "weighted_pagerank": (WeightedPageRank, "WeightedPageRank"),
    "modified_pagerank": (ModifiedPageRank, "ModifiedPageRank"),
    "random": (Random, "ChannelRandom"),
    "norm": (Norm, "ChannelNorm"),
    "activation": (Activation, "ChannelActivation"),
    "wanda": (Wanda, "ChannelWandA"),
    "reconstruction": (Reconstruction, ""),
}
PUBLISHED_MEASURES: dict[str, str] = {theirs: ours for ours, (_, theirs) in _NAMES.items() if theirs}
"""The thesis's names, and ours for the same measures."""

MEASURES: Registry[Measure] = Registry(
    "measure",
    Measure,
    {name: cls for name, (cls, _) in _NAMES.items()},
    {name: (short, {}) for name, short in PUBLISHED_MEASURES.items()},
)

register_measure = MEASURES.register
"""Make a measure known by a name, for Python, YAML and the command line; see `Registry.register`."""

get_measure = MEASURES.find
"""Return a measure by name, dotted path, description, class or as it is; see `Registry.find`."""

__all__ = [
    "MEASURES", "PUBLISHED_MEASURES", "Activation", "LayerRecord", "Measure", "ModifiedPageRank", "Norm", "Random",
    "Reader", "Reconstruction", "Wanda", "WeightedPageRank", "get_measure", "register_measure",
]  # fmt: skip
