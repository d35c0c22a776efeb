"""Somebody's forward hooks: which of them change what a network computes, and which only observe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlprank.utils.modules import MEASURING, copied

Hook = tuple[str, str, int]
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


class HookWatch:
    """Finds out which of a user's hooks change what the network computes.

    Args:
        changing: Gets those that do: they return something, or write on what they are shown.
    """

    def __init__(self, changing: set[Hook]) -> None:
        self.changing = changing

    def start(self, module: nn.Module, *, unnoticed: bool = False) -> dict[Hook, Callable[..., Any]]:
        """Look at every call of every hook from here on; return the hooks as they were.

        With `unnoticed` they remember what they see in copies of what they remember it in.
        """
        hooks = users_hooks(module)
        for place, hook in hooks.items():
            replace_hook(module, place, partial(self._called, place, _detached(hook) if unnoticed else hook))
        return hooks

    def _called(self, place: Hook, hook: Callable[..., Any], *given: Any, **named: Any) -> Any:
        shown = [leaf for leaf in tree_leaves((given[1:], named)) if isinstance(leaf, Tensor)]
        versions = [tensor._version for tensor in shown]
        answer = hook(*given, **named)
        new = {id(leaf) for leaf in tree_leaves(answer) if leaf is not None} - {id(tensor) for tensor in shown}
        if new or versions != [tensor._version for tensor in shown]:
            self.changing.add(place)
        return answer


def _detached(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with variables of its own; methods and callable objects were copied with the network."""
    if not isinstance(hook, FunctionType):
        return hook
    seen = {name: hook.__globals__.get(name) for name in hook.__code__.co_names}
    own = {name: copied(value, {}) for name, value in seen.items() if type(value) in (list, dict, set)}
    cells = tuple(CellType(_variable(cell)) for cell in hook.__closure__ or ())
    made = FunctionType(hook.__code__, {**hook.__globals__, **own}, hook.__name__, hook.__defaults__, cells)
    made.__kwdefaults__ = hook.__kwdefaults__
    return made


def _variable(cell: CellType) -> Any:
    """A copy of a variable that a function has from around it."""
    try:
        value = cell.cell_contents
    except ValueError:  # it is not set yet
        return None
    return _detached(value) if isinstance(value, FunctionType) else copied(value, {})
