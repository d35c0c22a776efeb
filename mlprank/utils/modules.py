"""Copy somebody's modules, and run them in evaluation mode and give them back as they were."""

import copy
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

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

    One thread at a time does so, and hooks that only observe (`mlprank.utils.hooks`) see nothing of it. What is not an
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
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


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


_NOT_COPIED = ("_trainer", "_fabric", "_compiled_call_impl")


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module by hand: `copy.deepcopy` would follow whatever its owner hangs on it.

    `memo` holds what is to stand for its tensors, by their identities.
    """
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    made = module.__class__.__new__(module.__class__)
    memo[id(module)] = made
    own: dict[str, Any] = made.__dict__
    for name, value in module.__dict__.items():
        if name in ("_parameters", "_buffers"):
            own[name] = type(value)(
                (key, None if tensor is None else memo[id(tensor)]) for key, tensor in value.items()
            )
        elif name == "_modules":
            own[name] = type(value)(
                (key, None if child is None else copy_module(child, memo)) for key, child in value.items()
            )
        elif name in _NOT_COPIED:
            own[name] = None
    for name, value in module.__dict__.items():
        if name not in own:
            own[name] = copied(value, memo)
    return made


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy what hangs on a module, as far as it can be copied."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        own = {id(each): each.detach().clone() for each in tensors_of(value).values()}
        return copy_module(value, {**own, **memo})
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        return type(value)((key, copied(item, memo)) for key, item in value.items())
    if type(value) in (list, tuple, set):
        return type(value)(copied(item, memo) for item in value)
    try:
        return copy.deepcopy(value, memo)
    except (TypeError, RuntimeError, ValueError, AttributeError, pickle.PicklingError):
        return value
