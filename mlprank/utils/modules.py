"""Somebody's modules: run them in evaluation mode and give them back as they were, copy them, watch their hooks."""

import copy
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CellType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlprank.utils.errors import first_line

LOCK = threading.RLock()
"""Held while a network is traced, run or copied: modes and the random state change meanwhile, and torch keeps what it
traces in variables of the process.
"""

MEASURING: ContextVar[bool] = ContextVar("MEASURING", default=False)
"""Whether this thread runs a network to read or to measure it."""


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Put modules in evaluation mode, and restore every submodule's own mode and the random state afterwards.

    One thread at a time does so, and hooks that only observe (`Observer`) see nothing of it. What is not an
    `nn.Module` (an exported program, an onnxruntime session) is passed over.
    """
    networks = [model for model in models if isinstance(model, nn.Module)]
    devices = sorted({p.device.index for network in networks for p in network.parameters() if p.device.type == "cuda"})
    with LOCK, torch.random.fork_rng(devices=devices):
        modes = [(module, module.training) for network in networks for module in network.modules()]
        token = MEASURING.set(True)
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            MEASURING.reset(token)
            for module, training in modes:
                module.training = training


def device_of(model: object) -> torch.device:
    """Say where a module's first parameter or buffer lives; the CPU for a module without any."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def sole_tensor(output: object, *, who: str) -> Tensor:
    """Return a model's output when it is one tensor."""
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"{who}: the model returned a {type(output).__name__}, but one tensor of logits (N, num_classes) is needed; "
        "wrap the model in a module that returns only the logits"
    )


def check_fit(model: nn.Module, batch: Tensor, *, who: str) -> None:
    """Run a model on a batch to see that it takes it and returns one tensor."""
    try:
        with evaluating(model), torch.no_grad():
            output = model(batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{who}: {type(model).__name__} cannot take inputs of shape {tuple(batch.shape)} and dtype {batch.dtype} "
            f"({first_line(error)}); give the shape that the model was trained on"
        ) from error
    sole_tensor(output, who=who)


def config_of(module: nn.Module) -> Any:
    """The configuration that a module of Hugging Face is built from, or None."""
    config = vars(module).get("config")
    return config if hasattr(config, "to_dict") else None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by all of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def fresh_like(old: Tensor, new: Tensor) -> Tensor:
    """A fresh tensor of the same kind."""
    new = new.detach().clone()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def shell(model: nn.Module) -> nn.Module:
    """Copy a network around its own parameters: what is done to the copy's modules and buffers nobody else sees."""
    with LOCK:
        own = {
            id(tensor): tensor if isinstance(tensor, nn.Parameter) else fresh_like(tensor, tensor)
            for tensor in tensors_of(model).values()
        }
        return copy_module(model, own)


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module by hand: `copy.deepcopy` would follow whatever its owner hangs on it.

    `memo` holds what is to stand for its tensors, by their identities.
    """
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    made = memo[id(module)] = module.__class__.__new__(module.__class__)
    theirs, own = module.__dict__, made.__dict__
    for child in theirs.get("_modules", {}).values():
        if child is not None:
            copy_module(child, memo)
    for name in ("_parameters", "_buffers", "_modules"):
        if name in theirs:
            held = theirs[name].items()
            own[name] = type(theirs[name])((key, None if value is None else memo[id(value)]) for key, value in held)
    for name, value in theirs.items():
        if name in ("_trainer", "_fabric", "_compiled_call_impl"):
            own[name] = None
        elif name not in own:
            own[name] = copied(value, memo)
    return made


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy what hangs on a module, as far as it can be copied."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        return copy_module(value, {**{id(each): each.detach().clone() for each in tensors_of(value).values()}, **memo})
    if type(value) in (dict, OrderedDict):
        return type(value)((key, copied(item, memo)) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return type(value)(copied(item, memo) for item in value)
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, ValueError, AttributeError, pickle.PicklingError):
        return value


Hook: TypeAlias = tuple[str, str, int]
"""A forward hook: its module's name, its kind, and its key there."""

_KINDS = ("_forward_hooks", "_forward_pre_hooks")


class Observer:
    """A hook that only observes: it sees nothing while the network is read or measured."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call the hook, unless the network is being measured."""
        return None if MEASURING.get() else self.hook(*given, **named)


def users_hooks(module: nn.Module) -> dict[Hook, Callable[..., Any]]:
    """Return the forward hooks that are not torch's (masks, weight norm) or ours, which are parts of the network."""
    return {
        (name, kind, key): hook
        for name, owner in module.named_modules()
        for kind in _KINDS
        for key, hook in getattr(owner, kind).items()
        if not type(hook).__module__.startswith(("torch.nn.utils", "mlprank."))
    }


def replace_hook(module: nn.Module, place: Hook, hook: Callable[..., Any]) -> None:
    """Put a hook in the place of another one that is still there."""
    name, kind, key = place
    hooks = getattr(module.get_submodule(name), kind)
    if key in hooks:
        hooks[key] = hook


def watch_hooks(module: nn.Module, changing: set[Hook], *, unnoticed: bool = False) -> dict[Hook, Callable[..., Any]]:
    """Look at every call of every user's hook from here on; return the hooks as they were.

    `changing` gets those that change what the network computes: they return something, or write on what they are shown.
    With `unnoticed` they remember what they see in copies of what they remember it in.
    """

    def called(place: Hook, hook: Callable[..., Any], *given: Any, **named: Any) -> Any:
        shown = [leaf for leaf in tree_leaves((given[1:], named)) if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in shown]
        answer = hook(*given, **named)
        new = {id(leaf) for leaf in tree_leaves(answer) if leaf is not None} - {id(tensor) for tensor in shown}
        if new or versions != [tensor._version for tensor in shown]:
            changing.add(place)
        return answer

    hooks = users_hooks(module)
    for place, hook in hooks.items():
        replace_hook(module, place, partial(called, place, _detached(hook) if unnoticed else hook))
    return hooks


def _detached(value: Any) -> Any:
    """A function with variables of its own; methods and callable objects were copied with the network."""
    if not isinstance(value, FunctionType):
        return value
    cells = []
    for cell in value.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # it is not set yet
            held = None
        cells.append(CellType(_detached(held) if isinstance(held, FunctionType) else copied(held, {})))
    seen = {name: value.__globals__.get(name) for name in value.__code__.co_names}
    own = {name: copied(held, {}) for name, held in seen.items() if type(held) in (list, dict, set)}
    variables = {**value.__globals__, **own}
    made = FunctionType(value.__code__, variables, value.__name__, value.__defaults__, tuple(cells))
    made.__kwdefaults__ = value.__kwdefaults__
    return made
