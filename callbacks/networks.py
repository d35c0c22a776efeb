"""The network inside a Lightning run: which submodule it is, and how to get at it without what training wraps around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from mlprank.surgery.copies import without_compiled
from mlprank.surgery.masks import refresh_masked
from mlprank.surgery.narrow import with_state

_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def network_name(module: nn.Module) -> str:
    """Return the name of the submodule that a LightningModule's `forward` stands for; empty for the module itself.

    Raises:
        ValueError: If it has no `forward` and not exactly one submodule with parameters.
    """
    if type(module).forward is not LightningModule.forward:
        return ""
    children = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    if len(children) != 1:
        raise ValueError(
            f"{type(module).__name__} has no forward and {len(children)} submodules with parameters ({', '.join(children)}); say which to"
            ' prune, as in PruningCallback(network="net")'
        )
    return children[0]


def find_network(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule to prune.

    Args:
        module: The LightningModule, or a copy of it, outside of `torch.compile`.
        name: Its name; None finds it out.

    Raises:
        ValueError: If there is none of that name, or it cannot be told which.
    """
    name = network_name(module) if name is None else name
    try:
        return module.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in module.named_children())
        raise ValueError(f'network="{name}" is no submodule of {type(module).__name__}; it has {children}') from None


@contextmanager
def uncompiled(module: LightningModule) -> Iterator[None]:
    """Take back, for a while, what `torch.compile` did to a LightningModule or to its submodules; weights stay where they are."""
    context = module._compiler_ctx
    steps: dict[str, Any] = {name: module.__dict__.pop(name) for name in _STEPS if context and name in module.__dict__}
    module._compiler_ctx = None
    try:
        with without_compiled(module):
            yield
    finally:
        module.__dict__.update(steps)
        module._compiler_ctx = context


def copied(module: LightningModule) -> nn.Module:
    """Copy a LightningModule, masks included, without its trainer and outside of `torch.compile`."""
    with uncompiled(module):
        refresh_masked(module)
        return with_state(module, {})
