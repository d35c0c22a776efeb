"""The networks by name."""

from __future__ import annotations

import difflib

from torch import nn

from mlprank.models.mlp import MLP
from mlprank.models.thesis import SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP

MODELS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (MLP, TwoLayerMLP, ThreeLayerMLP, SixLayerMLP, TwelveLayerMLP)
}


def get_model(name: str) -> type[nn.Module]:
    """Return the network class called `name`.

    Raises:
        ValueError: If there is none; the message lists all and the nearest.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)}{hint}")
    return MODELS[name]
