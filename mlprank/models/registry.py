"""The networks by name, and their weights out of anyone's files: Lightning's, the thesis's, bare state dicts."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.models.cnn import FourLayerCNN, ResNet18
from mlprank.models.mlp import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP
from mlprank.utils.registry import Registry

_FIXED = (TwoLayerMLP, ThreeLayerMLP, SixLayerMLP, TwelveLayerMLP, FourLayerCNN, ResNet18)
"""The networks that need no argument: their weights can be told by names and sizes."""

MODELS: Registry[nn.Module] = Registry("model", nn.Module, {cls.__name__: cls for cls in (MLP, *_FIXED)})
"""The network classes by name."""

register_model = MODELS.register
"""Make a network known by a name wherever a model is named: in `prune_mlp`, configs, experiments."""

get_model = MODELS.find_class
"""Return the network class of a name such as "TwoLayerMLP" or of a dotted path."""


def load_weights(path: str | os.PathLike[str], model: str | nn.Module) -> nn.Module:
    """Load a trained network's weights out of a file.

    Args:
        path: What `mlprank fit` or another Lightning run wrote (the network being its module's `model`); a `.pth` as
            the thesis's script writes, also below `artifacts/models/<name>/model_<epoch>.pth`, whose entry "model" is
            the state dict; or a bare state dict.
        model: The network's name, e.g. "TwoLayerMLP", or a network to load into, which is changed in place.

    Returns:
        The network with the file's weights, on the CPU where it was built here, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, would run code, holds no weights or those of another network.
    """
    network = get_model(model)() if isinstance(model, str) else model
    return fill(network, state_of(read_checkpoint(path), source=os.fspath(path)), path).eval()


load_published = load_weights
"""The name that version 0.1.0 had for it."""


def state_of(content: Mapping[str, Any], *, source: str) -> dict[str, Tensor]:
    """Return the network's state dict out of a file's content, without the prefixes of wrappers.

    Examples:
        >>> state_of({"model": {"module.fc.weight": torch.zeros(1)}}, source="a.pth")
        {'fc.weight': tensor([0.])}
    """
    tensors = weights_of(content, source)
    if "state_dict" in content:
        inner = {name: value for name, value in tensors.items() if name.startswith("model.")}
        tensors = inner or tensors
    for prefix in ("module.", "_orig_mod.", "model."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def weights_of(content: Mapping[str, Any], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights that a file's content holds, by the names that they have there.

    Lightning's `state_dict`, a published `model`, or all that there is counts.
    """
    for state in (content.get("state_dict"), content.get("model"), content):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return {str(name): value for name, value in state.items()}
    raise ValueError(
        f"{source} holds no weights: neither a `state_dict`, as Lightning writes it, nor a `model`, as published ones "
        f"have it, nor tensors by name; it holds {sorted(map(str, content))[:8]}"
    )


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> nn.Module:
    """Load weights into a network, also those of a module around it, whose names have a prefix."""
    own = model.state_dict()
    prefixes = {name[: -len(end)] for name in state for end in own if name == end or name.endswith(f".{end}")}
    prefix = next((p for p in sorted(prefixes, key=len) if all(p + name in state for name in own)), None)
    inner = dict(state) if prefix is None else {name: state[prefix + name] for name in own}
    check_state(own, inner, source=os.fspath(source))
    model.load_state_dict(inner)
    return model


def recognise(state: Mapping[str, Tensor]) -> type[nn.Module] | None:
    """Return the class whose default network has weights of these names and sizes; None where there is none.

    Examples:
        >>> recognise(TwoLayerMLP().state_dict()).__name__
        'TwoLayerMLP'
    """
    sizes = {name: tensor.shape for name, tensor in state.items()}
    for cls in _FIXED:
        with torch.device("meta"):
            expected = cls().state_dict()
        if {name: tensor.shape for name, tensor in expected.items()} == sizes:
            return cls
    return None


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a state dict that belongs to another network, by the first layer that differs."""

    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    sizes, own_sizes = ({n: "×".join(map(str, t.shape)) or "a scalar" for n, t in e.items()} for e in (found, expected))
    missing, unexpected = [n for n in expected if n not in found], [n for n in found if n not in expected]
    problems = [
        f"{name} is {sizes[name]} there and {size} here"
        for name, size in own_sizes.items()
        if name in found and sizes[name] != size
    ][:1]
    if not problems:
        problems += [f"it lacks {some(missing)}"] if missing else []
        problems += [f"it has {some(unexpected)}, which the network has not"] if unexpected else []
    if problems:
        cls = recognise({name.removeprefix("model."): tensor for name, tensor in found.items()})
        guess = "" if cls is None else f"; these are the weights of a {cls.__name__}"
        raise ValueError(f"{source} belongs to another network: {'; '.join(problems)}{guess}")
