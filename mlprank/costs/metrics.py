"""What a model costs and how well it does: parameters, FLOPs, bytes, latency, top-k accuracy.

FLOPs are twice the multiply-accumulates (FLOPs = 2 MACs) of the matrix products, convolutions and attention;
element-wise operations and normalisations count as nothing, as in torch's own counter.
"""

import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlprank.calibration.data import own
from mlprank.graph.program import Inputs, as_inputs
from mlprank.utils.errors import check_whole
from mlprank.utils.modules import device_of, evaluating, sole_tensor


@dataclass(frozen=True)
class ModelMetrics:
    """The numbers of one model.

    `flops_nonzero` is the thesis's `flops_nz`: 2 for each non-zero weight of a linear layer and each row of its input.
    What multiplies no two-dimensional weight of the model (convolutions, attention scores) counts in full.
    """

    num_parameters: int  # a shared one counts once
    num_nonzero: int  # those that are not exactly zero, under their mask where they have one
    flops: int  # FLOPs (2 MACs) of one sample
    flops_nonzero: int  # without products with zero weights
    size_bytes: int  # of the saved state dict
    latency_s: float | None = None  # median seconds of one batch, where it was measured
    top_k: Mapping[int, float] = field(default_factory=dict)  # k to top-k accuracy in [0, 1], where it was measured


def measure_model(model: nn.Module, example: Tensor | Inputs) -> ModelMetrics:
    """Count everything that needs no data; FLOPs are those of one sample of the example, shape (N, ...)."""
    return ModelMetrics(count_parameters(model), count_nonzero(model), *_flops(model, example), size_bytes(model))


def count_parameters(model: nn.Module) -> int:
    """Count the parameters, trainable or not; a parameter that several modules share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Count the parameters that are not exactly zero, a shared one once.

    A parameter under a mask of `torch.nn.utils.prune` counts as the model uses it: times its mask.
    """
    used: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            mask = getattr(module, name.removesuffix("_orig") + "_mask", None) if name.endswith("_orig") else None
            used.setdefault(id(parameter), parameter.detach() if mask is None else parameter.detach() * mask)
    return sum(int(torch.count_nonzero(tensor)) for tensor in used.values())


def size_bytes(model: nn.Module) -> int:
    """Count the bytes that `torch.save(model.state_dict(), file)` writes.

    Parameters, buffers and the file format's own overhead are in it; a tensor shared by several modules is written
    once, and a slice of a larger tensor counts as the slice.
    """
    state = model.state_dict()  # a fresh dict of the model's own tensors
    for name, value in state.items():
        if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.numel() * value.element_size():
            state[name] = value.clone()
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


def count_flops(model: nn.Module, example: Tensor | Inputs) -> int:
    """Count the FLOPs of one sample: the model runs once on the example, shape (N, ...), N at least 1."""
    return _flops(model, example)[0]


def _flops(model: nn.Module, example: Tensor | Inputs) -> tuple[int, int]:
    """All FLOPs of one sample, and those of non-zero weights, from one run of the model."""
    inputs = as_inputs(example)
    if len(inputs) == 0:
        raise ValueError(f"example of shape {tuple(inputs.tensors[0].shape)}: FLOPs are those of at least one sample")
    # The counter cannot look into compiled code; where nothing was compiled, importing the compiler would take seconds.
    compiled = "torch._dynamo" in sys.modules
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with (
        evaluating(model),
        eager,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        FlopCounterMode(display=False, custom_mapping=_without_zeros(model)) as nonzero,
    ):
        # Fused attention kernels hide their products from the counter: take the plain path while counting.
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            inputs.mapped(lambda tensor: tensor.to(device_of(model))).outputs(getattr(model, "_orig_mod", model))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() // len(inputs), nonzero.get_total_flops() // len(inputs)


def _without_zeros(model: nn.Module) -> dict[Any, Callable[..., int]]:
    """The FLOPs of matrix products by operation, without those with weights that are exactly zero."""

    def is_weight(operand: Tensor) -> bool:
        # It lives in a parameter, or in the plain tensor that a mask of `torch.nn.utils.prune` leaves.
        plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
        storage = operand.untyped_storage()._cdata
        return any(storage == tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *plain))

    def count(*operands: Tensor, **_: object) -> int:
        left, right = operands[-2:]  # a sum comes before its product
        if is_weight(right):
            return 2 * left.shape[-2] * int(right.count_nonzero())
        return 2 * right.shape[-1] * (int(left.count_nonzero()) if is_weight(left) else left.numel())

    count._get_raw = True  # type: ignore[attr-defined]  # the counter gives it tensors in place of shapes
    aten = torch.ops.aten
    return dict.fromkeys((aten.mm, aten.bmm, aten.addmm, aten.baddbmm), count)


@dataclass(frozen=True)
class Latency:
    """The time of one call on one batch, in seconds: median and spread (third quartile minus first) of timed runs."""

    median_s: float
    iqr_s: float
    repeats: int


def measure_latency_for(
    models: Mapping[str, Callable[..., object]], example: Tensor | Inputs, *, seconds: float, least: int, most: int
) -> dict[str, Latency]:
    """Time models as `measure_latency` does, with as many repeats as fit into about so many seconds in all."""
    once = sum(latency.median_s for latency in measure_latency(models, example, repeats=1, warmup=1).values())
    return measure_latency(models, example, repeats=max(least, min(most, int(seconds / once))), warmup=0)


def measure_latency(
    models: Mapping[str, Callable[..., object]], example: Tensor | Inputs, *, repeats: int = 30, warmup: int = 5
) -> dict[str, Latency]:
    """Time several models on the same batch, taking turns (A B A B ...), so that a busy moment hits all of them.

    Models are modules, compiled modules or functions by name, on the device of the batch, in evaluation mode meanwhile;
    `repeats` timed runs of each follow `warmup` untimed ones.
    """
    if not models:
        raise ValueError("measure_latency: models is empty; give at least one model to time")
    check_whole("measure_latency: ", repeats=repeats)
    check_whole("measure_latency: ", least=0, warmup=warmup)
    inputs = as_inputs(example)
    device = inputs.tensors[0].device

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    times: dict[str, list[float]] = {name: [] for name in models}
    with evaluating(*models.values()), torch.inference_mode():
        for _ in range(warmup + repeats):
            for name, model in models.items():
                wait()
                start = time.perf_counter()
                model(*inputs.args, **inputs.kwargs)
                wait()
                times[name].append(time.perf_counter() - start)
    found = {}
    for name, seconds in times.items():
        first, median, third = np.quantile(seconds[warmup:], (0.25, 0.5, 0.75)).tolist()
        found[name] = Latency(median_s=median, iqr_s=third - first, repeats=repeats)
    return found


def top_k_accuracy(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    k: Sequence[int] = (1, 5),
    *,
    reduce: Callable[[Tensor], Tensor] = own,
) -> dict[int, float]:
    """Measure the share of images whose true class is among the k largest logits, in [0, 1] by k.

    Batches are pairs of images (N, ...) and labels (N,), integers in [0, num_classes). A k above num_classes is counted
    as num_classes. `reduce` sums counts over processes.
    """
    if not k or min(k) < 1:
        raise ValueError(f"top_k_accuracy: k={tuple(k)} must hold integers of at least 1, such as (1, 5)")
    device = device_of(model)
    hits, num_images = dict.fromkeys(k, 0), 0
    with evaluating(model), torch.inference_mode():
        for images, labels, *_ in batches:
            if len(images) == 0:
                continue
            logits = sole_tensor(model(images.to(device)), who="top_k_accuracy")
            labels = labels.to(device)
            if logits.dim() != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
                raise ValueError(
                    f"top_k_accuracy: logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; "
                    "they must be (N, num_classes) with at least 2 classes, and (N,)"
                )
            classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise ValueError(
                    f"top_k_accuracy: label {low if low < 0 else high} names no class of a model with {classes} "
                    f"classes (0 to {classes - 1}); is it a checkpoint for another data set?"
                )
            ranks = ranks_of(labels, logits)
            for each in hits:
                hits[each] += int((ranks < min(each, classes)).sum())
            num_images += len(images)
    if not num_images:
        raise ValueError("top_k_accuracy: batches holds no image; give at least one (images, labels) pair")
    *totals, total = reduce(torch.tensor([*hits.values(), num_images], dtype=torch.float64)).tolist()
    return {each: right / total for each, right in zip(hits, totals, strict=True)}


def is_labelled(batch: object) -> bool:
    """Say whether a batch is inputs, one tensor, with their class indices, shape (N,)."""
    if not isinstance(batch, (tuple, list)) or not all(isinstance(part, Tensor) for part in batch[:2]):
        return False
    indices = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
    return len(batch) > 1 and batch[1].dim() == 1 and batch[1].dtype in indices


def ranks_of(labels: Tensor, logits: Tensor) -> Tensor:
    """Return how many classes are scored above the right one: 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal logits the lower class comes first, as in `argmax`. A sample whose logits are not finite ranks last. Labels
    have shape (..., N), logits (..., num_classes, N), or (N, num_classes).
    """
    logits = logits.T if labels.dim() == 1 and logits.dim() == 2 else logits
    index, classes = labels.unsqueeze(-2), logits.shape[-2]
    own = logits.gather(-2, index)
    lower = torch.arange(classes, device=logits.device)[:, None] < index
    ranks = ((logits > own) | ((logits == own) & lower)).sum(-2)
    return torch.where(logits.isfinite().all(-2), ranks, classes)
