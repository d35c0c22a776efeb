"""The network inside what training wraps around it: `torch.nn.utils.prune`'s masks, computed weights, compiled modules.

Torch moves a masked parameter to the end of its module's parameters. Optimizers and averaged models know parameters by
their place, so everything here puts them back where they were.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from mlprank.graph.program import Fill, Inputs, as_inputs
from mlprank.graph.rules import NORMS
from mlprank.surgery.narrow import FillPruned, create_biases, drop_hooks, network_state, with_state
from mlprank.utils.modules import evaluating, shell, tensors_of

COMPILED = "_orig_mod"
"""Where `torch.compile(module)` keeps the module; a part of the names in its state dict."""


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
    found = {}
    for name, (owner, own) in masked_parameters(module).items():
        plain, mask = re.sub(rf"\b{COMPILED}\.", "", name), owner.get_buffer(f"{own}_mask").bool()
        found[plain] = mask.movedim(dims.get(plain, 0), 0).flatten(1).any(1) if mask.dim() > 1 else mask
    return found


def fill_norms(module: nn.Module, fills: Mapping[str, Fill]) -> None:
    """Let normalisations of a masked network, by name, go over kept neurons alone, in place of what they did before."""
    for name, fill in fills.items():
        drop_hooks(module.get_submodule(name))
        module.get_submodule(name).register_forward_pre_hook(FillPruned(fill))


def mask_rows(module: nn.Module, rows: Mapping[str, Bool[Tensor, " n_out"]]) -> None:
    """Keep rows of parameters at zero from now on; rows that are masked already stay masked.

    The parameters stay the same objects, as `weight_orig`, at the same place among their module's parameters. A layer,
    RMS or group norm whose gain is masked goes over the kept neurons alone: so the masks of a state dict say all that a
    masked network is. `rows` are masks by plain name, shape (n_out,) or of all dimensions, True for what stays.
    """
    masked = masked_parameters(module)
    for name, kept in rows.items():
        places = [masked[name]] if name in masked else []
        if not places:  # several modules hold a tied weight
            shared = module.get_parameter(name)
            places = [
                (each, key) for each in module.modules() for key, own in each._parameters.items() if own is shared
            ]
            for owner, own in places:
                _mask(owner, own)
        for owner, own in places:
            mask = owner.get_buffer(f"{own}_mask")
            mask.mul_((kept.view(-1, *[1] * (mask.dim() - 1)) if kept.dim() == 1 else kept).to(mask.device))
    refresh_masked(module)


def sharpen_masks(module: nn.Module) -> None:
    """Make masks that an average over training has blurred zeros and ones again."""
    for owner, name in masked_parameters(module).values():
        mask = owner.get_buffer(f"{name}_mask")
        mask.copy_(mask >= 0.5)


def refresh_masked(module: nn.Module) -> None:
    """Compute every masked weight anew from its parameter and its mask, outside of any autograd graph.

    Such weights can be copied (`copy.deepcopy`); the next forward pass computes them once more, with a graph.
    """
    with torch.no_grad():
        for each in module.modules():
            compute_own(each)


def compute_own(module: nn.Module) -> None:
    """Run the mask hooks of a module that is used without being called, as a LightningModule is by its trainer."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (Recompute, prune.BasePruningMethod)):
            hook(module, ())


@dataclass(frozen=True)
class Recompute:
    """Forward pre-hook that computes the masked weights of a submodule which is read, but never called itself."""

    path: str

    def __call__(self, module: nn.Module, inputs: object) -> None:
        """Give the submodule its masked weights, with a fresh autograd graph."""
        compute_own(module.get_submodule(self.path))


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
        as_inputs(example).outputs(tried)
    for path, owner in module.named_modules():
        outer = path
        while outer and tried.get_submodule(outer) not in called:
            outer = outer.rpartition(".")[0]
        hook, place = Recompute(path[len(outer) :].removeprefix(".")), module.get_submodule(outer)
        if any(_masked_names(owner)) and outer != path and hook not in place._forward_pre_hooks.values():
            place.register_forward_pre_hook(hook)


def bake_masks(module: nn.Module) -> None:
    """Make masked weights plain parameters again, zeros where the mask was, in place."""
    for each in module.modules():
        drop_hooks(each, Recompute)
    for owner, name in masked_parameters(module).values():
        _unmask(owner, name)


def write_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers, by their plain names, into a network that may be masked; missing biases are created."""
    masked = masked_parameters(module)
    create_biases(module, {name: value for name, value in weights.items() if name not in masked})
    tensors = tensors_of(module)
    with torch.no_grad():
        for name, value in weights.items():
            tensors[f"{name}_orig" if name in masked else name].copy_(value)
    refresh_masked(module)


def match_masks(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the module the pruning masks that a state dict has, and no others."""
    for name, (owner, own) in masked_parameters(module).items():
        if name in state and f"{name}_orig" not in state:
            _unmask(owner, own)
            drop_hooks(owner)
    for name in dict(module.named_parameters(remove_duplicate=False)):
        if {f"{name}_mask", f"{name}_orig"} <= state.keys():
            path, _, own = name.rpartition(".")
            _mask(module.get_submodule(path), own)  # the state dict brings the mask itself
    refresh_masked(module)


def apply_masks(module: nn.Module, masked: nn.Module, rows: Mapping[str, Bool[Tensor, " n_out"]]) -> None:
    """Give a network the masked one's weights, and torch's own pruning masks that keep all but these rows at zero."""
    bake_masks(module)
    for each in module.modules():
        drop_hooks(each)
    write_weights(module, network_state(masked))
    mask_rows(module, rows)


def _masked_names(owner: nn.Module) -> Iterator[str]:
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name


def _mask(owner: nn.Module, name: str) -> None:
    """Put a mask of ones on a parameter."""
    with _ordered(owner):
        prune.custom_from_mask(owner, name, torch.ones_like(owner.get_parameter(name)))
    if not hasattr(type(owner), "__deepcopy__"):
        owner.__dict__["__deepcopy__"] = partial(_deepcopy, owner)
    if isinstance(owner, NORMS) and name == "weight":
        drop_hooks(owner)
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


def _deepcopy(owner: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy` does, for a module whose masked weights hang in the graph of its last forward pass."""
    weights = [getattr(owner, name) for name in _masked_names(owner)]
    memo |= {id(weight): weight.detach().clone() for weight in weights}
    copied = memo[id(owner)] = owner.__class__.__new__(owner.__class__)
    copied.__setstate__(copy.deepcopy(owner.__getstate__(), memo))
    return copied


@contextmanager
def _ordered(owner: nn.Module) -> Iterator[None]:
    """Keep the order of a module's parameters while one of them gets or loses its mask."""
    order = [name.removesuffix("_orig") for name in owner._parameters]
    yield
    for name in order:
        key = name if name in owner._parameters else f"{name}_orig"
        owner._parameters[key] = owner._parameters.pop(key)


# -- compiled modules and computed weights ---------------------------------------------------------------------------


@contextmanager
def without_compiled(model: nn.Module) -> Iterator[None]:
    """Put the plain submodules in the place of compiled ones for a while, so that names are the plain network's."""
    compiled = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and COMPILED in child._modules
    ]
    try:
        for parent, name, child in compiled:
            parent._modules[name] = child._modules[COMPILED]
        yield
    finally:
        for parent, name, child in compiled:
            parent._modules[name] = child


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network plainly: masked weights as zeros, computed weights as values, nothing compiled."""
    refresh_masked(model)
    with without_compiled(model):
        copied = with_state(model, {})
    bake_masks(copied)
    # Computed weights become plain parameters with the values that they have in evaluation mode.
    computed: list[Any] = [each for each in copied.modules() if parametrize.is_parametrized(each)]
    for module in computed:
        # The class with the property of the computed weight is shared with the network that was copied: it stays.
        module.__class__ = type(type(module).__name__, type(module).__bases__, dict(vars(type(module))))
        with evaluating(module), torch.enable_grad():  # without gradients it would make buffers of parameters
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    for _, module, hook in _old_hooks(copied):
        (remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm)(module, hook.name)
    return copied


def parametrised(model: nn.Module) -> list[str]:
    """Name the weights that weight norm, spectral norm and the like compute before every forward pass."""
    modules: list[tuple[str, Any]] = [each for each in model.named_modules() if parametrize.is_parametrized(each[1])]
    computed = [(path, name) for path, module in modules for name in module.parametrizations]
    computed += [(path, hook.name) for path, _, hook in _old_hooks(model)]
    return [f"{path}.{name}" if path else name for path, name in computed]


def _old_hooks(model: nn.Module) -> list[tuple[str, nn.Module, Any]]:
    """The hooks of `torch.nn.utils.weight_norm` and `spectral_norm`."""
    return [
        (path, module, hook)
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, (WeightNorm, SpectralNorm))
    ]


def is_plain(model: nn.Module) -> bool:
    """Say whether a network has neither masks nor parametrisations nor compiled submodules."""
    compiled = any(COMPILED in module._modules for module in model.modules())
    return not (compiled or masked_parameters(model) or parametrised(model))
