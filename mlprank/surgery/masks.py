"""Masks on somebody's network, as `torch.nn.utils.prune` knows them.

Torch moves a masked parameter to the end of its module's parameters. Optimizers and averaged models know parameters by
their place, so everything here puts them back where they were.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import prune

from mlprank.graph.program import Fill, Inputs, as_inputs
from mlprank.surgery.narrow import NORMS, FillPruned, adopt_state, drop_fills
from mlprank.utils.modules import evaluating, shell


class Masked(Protocol):
    """What `apply_masks` needs of a pruning: its masked network, and the rows that stay."""

    @property
    def masked(self) -> nn.Module: ...  # noqa: D102
    @property
    def parameter_masks(self) -> Mapping[str, Tensor]: ...  # noqa: D102


_COMPILED = re.compile(r"\b_orig_mod\.")


def masked_parameters(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return every masked parameter under its plain name, such as `fc1.weight`, as its module and its name in there."""
    return {
        f"{path}.{name}" if path else name: (owner, name)
        for path, owner in module.named_modules(remove_duplicate=False)
        for name in _masked_names(owner)
    }


def masked_rows(module: nn.Module, dims: Mapping[str, int] = MappingProxyType({})) -> dict[str, Bool[Tensor, " n_out"]]:
    """Return which rows the masks of a network leave, by the parameter's plain name, shape (n_out,).

    `dims` names the dimension along the rows where it is not the first.
    """
    masks = {name: owner.get_buffer(f"{own}_mask") for name, (owner, own) in masked_parameters(module).items()}
    plain = {_COMPILED.sub("", name): mask.bool() for name, mask in masks.items()}
    return {
        name: mask.movedim(dims.get(name, 0), 0).flatten(1).any(1) if mask.dim() > 1 else mask
        for name, mask in plain.items()
    }


def _along_rows(kept: Tensor, mask: Tensor) -> Tensor:
    """Rows that stay in a shape that multiplies with a parameter's mask."""
    kept = kept.to(mask.device)
    return kept.view(-1, *[1] * (mask.dim() - 1)) if kept.dim() == 1 else kept


def fill_norms(module: nn.Module, fills: Mapping[str, Fill]) -> None:
    """Let normalisations of a masked network, by name, go over kept neurons alone, in place of what they did before."""
    for name, fill in fills.items():
        drop_fills(module.get_submodule(name))
        module.get_submodule(name).register_forward_pre_hook(FillPruned(fill))


def mask_rows(module: nn.Module, rows: Mapping[str, Bool[Tensor, " n_out"]]) -> None:
    """Keep rows of parameters at zero from now on; rows that are masked already stay masked.

    The parameters stay the same objects, as `weight_orig`, at the same place among their module's parameters. A layer,
    RMS or group norm whose gain is masked goes over the kept neurons alone: so the masks of a state dict say all that a
    masked network is. `rows` are masks by plain name, shape (n_out,), True for the rows that stay.
    """
    masked = masked_parameters(module)
    for name, kept in rows.items():
        path, _, own = name.rpartition(".")
        if name not in masked:
            shared = module.get_submodule(path)._parameters[own]
            for owner, alias in _places(module, shared):
                _mask(owner, alias)
        places = (
            [masked[name]] if name in masked else _places(module, module.get_submodule(path)._parameters[f"{own}_orig"])
        )
        for owner, alias in places:
            mask = owner._buffers[f"{alias.removesuffix('_orig')}_mask"]
            assert mask is not None
            mask.mul_(_along_rows(kept, mask))
    refresh_masked(module)


def refresh_masked(module: nn.Module) -> None:
    """Compute every masked weight anew from its parameter and its mask, outside of any autograd graph.

    Such weights can be copied (`copy.deepcopy`); the next forward pass computes them once more, with a graph.
    """
    for owner, name in masked_parameters(module).values():
        with torch.no_grad():
            setattr(owner, name, owner.get_parameter(f"{name}_orig") * owner.get_buffer(f"{name}_mask"))


def restore_masks(module: nn.Module, rows: Mapping[str, Bool[Tensor, " n_out"]]) -> None:
    """Make masks that an average over training has blurred sharp again."""
    for name, (owner, own) in masked_parameters(module).items():
        mask = owner.get_buffer(f"{own}_mask")
        mask.copy_(mask >= 0.5)
        if name in rows:
            mask.mul_(_along_rows(rows[name], mask))
    refresh_masked(module)


class Recompute:
    """Forward pre-hook that computes a masked weight of a submodule which is read, but never called itself."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    def __call__(self, module: nn.Module, inputs: object) -> None:
        """Give the submodule its masked weight, with a fresh autograd graph."""
        owner = module.get_submodule(self.path)
        if f"{self.name}_mask" in owner._buffers:
            masked = owner.get_parameter(f"{self.name}_orig") * owner.get_buffer(f"{self.name}_mask")
            setattr(owner, self.name, masked)


def recompute_uncalled(module: nn.Module, example: Tensor | Inputs) -> None:
    """Make masks work where a forward pass reads weights without calling their module: `F.linear(x, self.fc.weight)`.

    Torch computes masked weights when their own module is called; here the nearest module around it that is called does
    so.
    """
    called: set[nn.Module] = set()
    tried = shell(module)
    for each in tried.modules():
        each._forward_hooks.clear()
        each._forward_pre_hooks.clear()
        each.register_forward_pre_hook(lambda own, _: called.add(own))
    with evaluating(tried), torch.no_grad():
        as_inputs(example).feed(tried)
    for full, (_, name) in masked_parameters(module).items():
        path = full.rpartition(".")[0]
        outer = path
        while outer and tried.get_submodule(outer) not in called:
            outer = outer.rpartition(".")[0]
        inner = path[len(outer) :].removeprefix(".")
        place = module.get_submodule(outer)
        present = {(each.path, each.name) for each in place._forward_pre_hooks.values() if isinstance(each, Recompute)}
        if tried.get_submodule(path) not in called and (inner, name) not in present:
            place.register_forward_pre_hook(Recompute(inner, name))


def compute_own(module: nn.Module) -> None:
    """Run the mask hooks of a module that is used without being called, as a LightningModule is by its trainer."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (Recompute, prune.BasePruningMethod)):
            hook(module, ())


def bake_masks(module: nn.Module) -> None:
    """Make masked weights plain parameters again, zeros where the mask was, in place."""
    for each in module.modules():
        for key in [key for key, hook in each._forward_pre_hooks.items() if isinstance(hook, Recompute)]:
            del each._forward_pre_hooks[key]
    for owner, name in masked_parameters(module).values():
        _unmask(owner, name)


def write_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights, by their plain names, into the parameters of a network that may be masked."""
    masked = masked_parameters(module)
    with torch.no_grad():
        for name, value in weights.items():
            module.get_parameter(f"{name}_orig" if name in masked else name).copy_(value)
    refresh_masked(module)


def match_masks(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the module the pruning masks that a state dict has, and no others."""
    for name, (owner, own) in masked_parameters(module).items():
        if name in state and f"{name}_orig" not in state:
            _unmask(owner, own)
            drop_fills(owner)
    present = dict(module.named_parameters(remove_duplicate=False))
    for key in state:
        name = key.removesuffix("_mask")
        if key.endswith("_mask") and f"{name}_orig" in state and name in present:
            path, _, own = name.rpartition(".")
            _mask(module.get_submodule(path), own)  # the state dict brings the mask itself
    refresh_masked(module)


def apply_masks(module: nn.Module, result: Masked) -> None:
    """Give a network the masked one's weights, and torch's own pruning masks that keep the pruned rows at zero."""
    bake_masks(module)
    for each in module.modules():
        drop_fills(each)
    adopt_state(module, result.masked)
    mask_rows(module, result.parameter_masks)


def _masked_names(owner: nn.Module) -> Iterator[str]:
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name


def _places(module: nn.Module, parameter: nn.Parameter | None) -> list[tuple[nn.Module, str]]:
    """Every module that holds a parameter, and its name there: several where weights are tied."""
    return [
        (owner, name)
        for owner in module.modules()
        for name, own in list(owner._parameters.items())
        if own is parameter and own is not None
    ]


def _mask(owner: nn.Module, name: str) -> None:
    """Put a mask of ones on a parameter."""
    with _ordered(owner):
        prune.custom_from_mask(owner, name, torch.ones_like(owner.get_parameter(name)))
    _make_copyable(owner)
    if isinstance(owner, NORMS) and name == "weight":
        drop_fills(owner)
        owner.register_forward_pre_hook(FillPruned())


def _unmask(owner: nn.Module, name: str) -> None:
    """Make a masked parameter plain again, zeros where the mask was."""
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, FillPruned) and name == "weight":
            hook.fill = hook.of(owner)
    with _ordered(owner):
        prune.remove(owner, name)
    if not list(_masked_names(owner)):
        owner.__dict__.pop("__deepcopy__", None)


def _make_copyable(owner: nn.Module) -> None:
    """Let `copy.deepcopy` take a module whose masked weights hang in the graph of its last forward pass."""
    if not hasattr(type(owner), "__deepcopy__"):
        owner.__dict__["__deepcopy__"] = partial(_deepcopy, owner)


def _deepcopy(owner: nn.Module, memo: dict[int, Any]) -> nn.Module:
    graphs = {name: getattr(owner, name) for name in _masked_names(owner)}
    for name, weight in graphs.items():
        setattr(owner, name, weight.detach())
    del owner.__dict__["__deepcopy__"]
    try:
        copied = copy.deepcopy(owner, memo)
    finally:
        _make_copyable(owner)
        for name, weight in graphs.items():
            setattr(owner, name, weight)
    _make_copyable(copied)
    return copied


@contextmanager
def _ordered(owner: nn.Module) -> Iterator[None]:
    """Keep the order of a module's parameters while one of them gets or loses its mask."""
    order = [name.removesuffix("_orig") for name in owner._parameters]
    yield
    for name in order:
        key = name if name in owner._parameters else f"{name}_orig"
        owner._parameters[key] = owner._parameters.pop(key)
