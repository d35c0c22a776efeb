"""The network inside what training wraps around it: compiled modules and masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mlprank.surgery.masks import bake_masks, masked_parameters, refresh_masked
from mlprank.surgery.narrow import with_state

COMPILED = "_orig_mod"
"""Where `torch.compile(module)` keeps the module; a part of the names in its state dict."""


@contextmanager
def without_compiled(model: nn.Module) -> Iterator[None]:
    """Put the plain submodules in the place of compiled ones for a while, so that names are those of the plain network."""
    replaced = _plain_submodules(model)
    try:
        yield
    finally:
        for parent, name, compiled in replaced:
            parent._modules[name] = compiled


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network without masks, whose zeros become plain weights, and without compiled submodules."""
    refresh_masked(model)
    with without_compiled(model):
        copied = with_state(model, {})
    bake_masks(copied)
    return copied


def is_plain(model: nn.Module) -> bool:
    """Say whether a network has neither masks nor compiled submodules."""
    return not masked_parameters(model) and not any(COMPILED in module._modules for module in model.modules())


def _plain_submodules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    replaced = []
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            inner = None if child is None else child._modules.get(COMPILED)
            if child is not None and inner is not None:
                parent._modules[name] = inner
                replaced.append((parent, name, child))
    return replaced
