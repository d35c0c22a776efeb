"""Load published checkpoints: `.pth` files whose "model" entry is the state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.models.registry import MODELS, get_model


def load_published(path: str | os.PathLike[str], model: str | nn.Module) -> nn.Module:
    """Load a published checkpoint into one of the thesis's networks.

    Args:
        path: A `.pth` file: a dict whose "model" entry is the state dict (other entries are ignored).
        model: The network's name, e.g. "TwoLayerMLP", or a network to load into.

    Returns:
        The network with the file's weights, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, would run code, has no "model" entry or holds another network's weights.
    """
    network = get_model(model)() if isinstance(model, str) else model
    content = read_checkpoint(path)
    if not isinstance(content.get("model"), Mapping):
        raise ValueError(
            f"{path} has no state dict under 'model' (it holds {sorted(map(str, content))}); published ones do"
        )
    state = strip_prefix(content["model"], "module.")
    check_state(network.state_dict(), state, source=os.fspath(path))
    network.load_state_dict(state)
    return network.eval()


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the state dict without a prefix that all its keys share, as DistributedDataParallel leaves one."""
    if state and all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a state dict that belongs to another network, by the first layer that differs.

    Args:
        expected: The network's own state dict.
        found: The state dict to load.
        source: Where it was found, for the message.

    Raises:
        ValueError: If a name is missing or unexpected, or a size differs.
    """
    for name, own in expected.items():
        if name in found and found[name].shape != own.shape:
            raise ValueError(
                f"{source} belongs to another network: {name} is {_size(found[name])} there "
                f"and {_size(own)} here{_guess(found)}"
            )
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        parts = [f"it lacks {_some(missing)}"] if missing else []
        parts += [f"it has {_some(unexpected)}, which the network has not"] if unexpected else []
        raise ValueError(f"{source} belongs to another network: {'; '.join(parts)}{_guess(found)}")


def _size(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _guess(found: Mapping[str, Tensor]) -> str:
    """Name the thesis network whose weights these are, as the end of a message."""
    sizes = {name.removeprefix("model."): tensor.shape for name, tensor in found.items()}
    for name, cls in MODELS.items():
        if name != "MLP":
            with torch.device("meta"):
                state = cls().state_dict()
            if {key: tensor.shape for key, tensor in state.items()} == sizes:
                return f"; these are the weights of a {name}"
    return ""
