"""Run somebody's modules in evaluation mode and give them back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Put modules in evaluation mode, and restore every submodule's own mode and the random state afterwards.

    Args:
        models: Modules; what is not an `nn.Module` (an exported program, an onnxruntime session) is passed over.
    """
    networks = [model for model in models if isinstance(model, nn.Module)]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    devices = sorted({p.device.index for network in networks for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def device_of(model: object) -> torch.device:
    """Say where a module's first parameter or buffer lives; the CPU for a module without any."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def synchronise(device: torch.device) -> None:
    """Wait for the work queued on an accelerator; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sole_tensor(output: object, *, who: str) -> Tensor:
    """Return a model's output when it is one tensor.

    Args:
        output: What the model returned.
        who: The caller, named in the error.

    Raises:
        TypeError: If the output is anything but one tensor.
    """
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"{who}: the model returned a {type(output).__name__}, but one tensor of logits (N, num_classes) is needed; "
        "wrap the model in a module that returns only the logits"
    )


def check_fit(model: nn.Module, batch: Tensor, *, who: str) -> None:
    """Run a model on a batch to see that it takes it and returns one tensor.

    Args:
        model: The model.
        batch: One batch, shape (N, ...).
        who: The caller, named in the error.

    Raises:
        ValueError: If the model cannot take the batch.
        TypeError: If it returns anything but one tensor.
    """
    try:
        with evaluating(model), torch.no_grad():
            output = model(batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{who}: {type(model).__name__} cannot take inputs of shape {tuple(batch.shape)} and dtype {batch.dtype} "
            f"({first_words(error)}); give the shape that the model was trained on"
        ) from error
    sole_tensor(output, who=who)


def first_words(error: BaseException) -> str:
    """Return the beginning of an error's text on one line."""
    return " ".join(str(error).split())[:200].rstrip(". ")


def config_of(module: nn.Module) -> Any:
    """The configuration that a module of Hugging Face is built from, or None."""
    config = vars(module).get("config")
    return config if hasattr(config, "to_dict") else None
