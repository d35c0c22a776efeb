"""What a model costs and how well it does: parameters, FLOPs, bytes, latency, top-k accuracy."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.costs.flops import count_flops, count_flops_nonzero, flops_of
from mlprank.costs.latency import Latency, measure_latency
from mlprank.graph.program import Inputs
from mlprank.utils.modules import device_of, evaluating, sole_tensor

__all__ = [
    "Latency",
    "ModelMetrics",
    "count_flops",
    "count_flops_nonzero",
    "count_nonzero",
    "count_parameters",
    "measure_latency",
    "measure_model",
    "size_bytes",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class ModelMetrics:
    """The numbers of one model.

    Attributes:
        num_parameters: Parameters, a shared one counted once.
        num_nonzero: Parameters that are not exactly zero, under their mask where they have one.
        flops: FLOPs (2 MACs) of one sample.
        flops_nonzero: FLOPs of one sample when products with zero weights are left out.
        size_bytes: Bytes of the saved state dict.
        latency_s: Median seconds of one batch, or None where it was not measured.
        top_k: k to top-k accuracy in [0, 1]; empty where it was not measured.
    """

    num_parameters: int
    num_nonzero: int
    flops: int
    flops_nonzero: int
    size_bytes: int
    latency_s: float | None = None
    top_k: Mapping[int, float] = field(default_factory=dict)


def measure_model(
    model: nn.Module,
    example: Tensor | Inputs,
    *,
    latency_s: float | None = None,
    top_k: Mapping[int, float] | None = None,
) -> ModelMetrics:
    """Count everything that needs no data, and keep beside it what was measured on data.

    Args:
        model: The model; left as it was.
        example: One input batch, shape (N, ...).
        latency_s: Seconds from `measure_latency`, where they were measured.
        top_k: Accuracies from `top_k_accuracy`, where they were measured.

    Returns:
        The model's numbers; FLOPs are those of one sample.
    """
    flops, flops_nonzero = flops_of(model, example)
    return ModelMetrics(
        num_parameters=count_parameters(model),
        num_nonzero=count_nonzero(model),
        flops=flops,
        flops_nonzero=flops_nonzero,
        size_bytes=size_bytes(model),
        latency_s=latency_s,
        top_k=dict(top_k or {}),
    )


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, trainable or not; a parameter that several modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Count the parameters that are not exactly zero.

    A parameter under a mask of `torch.nn.utils.prune` counts as the model uses it: times its mask. A parameter that
    several modules share counts once.
    """
    seen: set[int] = set()
    total = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            mask = getattr(module, name.removesuffix("_orig") + "_mask", None) if name.endswith("_orig") else None
            used = parameter.detach() if mask is None else parameter.detach() * mask
            total += int(torch.count_nonzero(used))
    return total


class _ByteCounter(io.RawIOBase):
    """A file that keeps nothing but its length."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.num_bytes += length
        return length


def size_bytes(model: nn.Module) -> int:
    """Count the bytes that `torch.save(model.state_dict(), file)` writes.

    Parameters, buffers and the file format's own overhead are in it; a tensor shared by several modules is written
    once, and a slice of a larger tensor counts as the slice.
    """
    state = model.state_dict()  # a fresh dict of the model's own tensors
    for name, value in state.items():
        state[name] = _compact(value)
    counter = _ByteCounter()
    torch.save(state, counter)  # type: ignore[arg-type]
    return counter.num_bytes


def _compact(value: object) -> object:
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
        return value.clone()
    return value


def top_k_accuracy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    k: Sequence[int] = (1, 5),
    device: torch.device | str | None = None,
) -> dict[int, float]:
    """Measure the share of images whose true class is among the k largest logits.

    Args:
        model: Maps images (N, ...) to logits (N, num_classes), num_classes at least 2; left as it was. Where `device`
            is not the model's, a copy runs there.
        batches: Pairs (images, labels); labels of shape (N,) with integers in [0, num_classes).
        k: Which k, each at least 1. A k above num_classes is counted as num_classes and keeps its name in the result.
        device: Where to run; the model's own device when None.

    Returns:
        k to accuracy in [0, 1], over all images of this process (ranks are not reduced).

    Raises:
        ValueError: If `batches` holds no image, a k is below 1, or a label names no class.
        TypeError: If the model returns anything but one tensor.
    """
    if not k or min(k) < 1:
        raise ValueError(f"top_k_accuracy: k={tuple(k)} must hold integers of at least 1, such as (1, 5)")
    target = device_of(model) if device is None else torch.device(device)
    network = model if target == device_of(model) else copy.deepcopy(model).to(target)
    metrics: dict[int, Any] = {}
    num_images = 0
    with evaluating(network), torch.inference_mode():
        for images, labels, *_ in batches:
            if len(images) == 0:
                continue
            logits = sole_tensor(network(images.to(target)), who="top_k_accuracy").float()
            labels = labels.to(target)
            _check_labels(logits, labels)
            metrics = metrics or _accuracies(logits.shape[1], k, target)
            for metric in metrics.values():
                metric.update(logits, labels)
            num_images += len(images)
    if not num_images:
        raise ValueError("top_k_accuracy: batches holds no image; give at least one (images, labels) pair")
    return {each: float(metric.compute()) for each, metric in metrics.items()}


def _accuracies(num_classes: int, k: Sequence[int], device: torch.device) -> dict[int, Any]:
    from torchmetrics.classification import MulticlassAccuracy  # takes a second to import

    def accuracy(each: int) -> Any:
        # A test may run on one rank alone: never wait for the others.
        options: dict[str, Any] = {"average": "micro", "validate_args": False, "sync_on_compute": False}
        return MulticlassAccuracy(num_classes, top_k=min(each, num_classes), **options).to(device)

    return {each: accuracy(each) for each in k}


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"top_k_accuracy: logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; "
            "they must be (N, num_classes) with at least 2 classes, and (N,)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"top_k_accuracy: label {low if low < 0 else high} names no class of a model with {logits.shape[1]} "
            f"classes (0 to {logits.shape[1] - 1}); is it a checkpoint for another data set?"
        )
