"""Several processes that train one network: they calibrate together and must decide the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.distributed import ReduceOp, all_gather_object, all_reduce, broadcast


def summed(trainer: Trainer, total: Tensor) -> Tensor:
    """Sum a tensor over processes; call it on all of them.

    Args:
        trainer: The run.
        total: Any tensor, of the same shape everywhere; left untouched.

    Returns:
        The sum, on the tensor's own device.
    """
    if trainer.world_size == 1:
        return total
    moved = total.detach().to(trainer.strategy.root_device, copy=True)
    all_reduce(moved, op=ReduceOp.SUM)
    return moved.to(total.device)


def gathered(trainer: Trainer, value: object) -> list[object]:
    """Return every process's value, in the order of ranks; call it on all of them."""
    values: list[object] = [value] * trainer.world_size
    if trainer.world_size > 1:
        all_gather_object(values, value)
    return values


def share_weights(trainer: Trainer, weights: Iterable[Tensor]) -> None:
    """Give every process the first one's weights, in place; call it on all of them."""
    if trainer.world_size == 1:
        return
    for weight in weights:
        moved = weight.detach().to(trainer.strategy.root_device, copy=True).contiguous()
        broadcast(moved, src=0)
        with torch.no_grad():
            weight.copy_(moved)


def check_same_masks(trainer: Trainer, masks: Mapping[str, Tensor]) -> None:
    """Compare a hash of the masks over all processes; call it on all of them.

    Raises:
        RuntimeError: On every process, if they differ anywhere.
    """
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + b"\0" + bytes(masks[name].to(torch.uint8).cpu().tolist()))
    digests = gathered(trainer, digest.hexdigest())
    if len(set(digests)) > 1:
        different = [rank for rank, each in enumerate(digests) if each != digests[0]]
        raise RuntimeError(
            f"the ranks {different} chose other neurons to prune than rank 0; give every rank the same weights before pruning, and"
            " calibration data that can be read twice"
        )


def check_every_rank_has_data(trainer: Trainer, num_samples: int, *, what: str) -> None:
    """Agree on whether every process has calibration data before any of them waits for the others; call it on all of them.

    Raises:
        ValueError: On every process, if one has none; the ranks are named.
    """
    counts = gathered(trainer, num_samples)
    empty = [rank for rank, count in enumerate(counts) if count == 0]
    if not empty:
        return
    if len(counts) == 1:
        raise ValueError(
            f"calibration: {what} is empty; give the trainer training data, or its datamodule a"
            " calibration_dataloader(num_samples, seed) with at least one sample"
        )
    raise ValueError(
        f"calibration: rank {', '.join(map(str, empty))} of {len(counts)} has no batch of {what}; give every rank at least one, or the"
        " datamodule a calibration_dataloader(num_samples, seed)"
    )
