"""The network inside what training wraps around it: compiled modules and masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from mlprank.surgery.masks import bake_masks, masked_parameters, refresh_masked
from mlprank.surgery.narrow import with_state
from mlprank.utils.modules import evaluating

COMPILED = "_orig_mod"
"""Where `torch.compile(module)` keeps the module; a part of the names in its state dict."""


@contextmanager
def without_compiled(model: nn.Module) -> Iterator[None]:
    """Put the plain submodules in the place of compiled ones for a while, so that names are the plain network's."""
    replaced = _plain_submodules(model)
    try:
        yield
    finally:
        for parent, name, compiled in replaced:
            parent._modules[name] = compiled


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network plainly: masked weights as zeros, computed weights as values, nothing compiled."""
    refresh_masked(model)
    with without_compiled(model):
        copied = with_state(model, {})
    bake_masks(copied)
    _bake_parametrisations(copied)
    return copied


def parametrised(model: nn.Module) -> list[str]:
    """Name the weights that weight norm, spectral norm and the like compute before every forward pass."""
    new = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for name in module.parametrizations
    ]
    return new + [f"{path}.{hook.name}" if path else hook.name for path, _, hook in _old_hooks(model)]


def _old_hooks(model: nn.Module) -> list[tuple[str, nn.Module, Any]]:
    """The hooks of `torch.nn.utils.weight_norm` and `spectral_norm`."""
    return [
        (path, module, hook)
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, (WeightNorm, SpectralNorm))
    ]


def _bake_parametrisations(model: nn.Module) -> None:
    """Make computed weights plain parameters with the values that they have in evaluation mode."""
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        with evaluating(module), torch.no_grad():
            names: Any = module.parametrizations
            values = {name: getattr(module, name).detach().clone() for name in names}
        # The class with the property of the computed weight is shared with the network that was copied: leave it as it
        # is.
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for _, module, hook in _old_hooks(model):
        with evaluating(module), torch.no_grad():
            hook(module, ())
        for key in [key for key, each in module._forward_pre_hooks.items() if each is hook]:
            del module._forward_pre_hooks[key]
        with torch.no_grad():
            hook.remove(module)


def is_plain(model: nn.Module) -> bool:
    """Say whether a network has neither masks nor parametrisations nor compiled submodules."""
    return (
        not masked_parameters(model)
        and not parametrised(model)
        and not any(COMPILED in module._modules for module in model.modules())
    )


def _plain_submodules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    replaced = []
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            inner = None if child is None else child._modules.get(COMPILED)
            if child is not None and inner is not None:
                parent._modules[name] = inner
                replaced.append((parent, name, child))
    return replaced
