"""Which weights are pruned when training has ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.callbacks.networks import copied, find_network
from mlprank.surgery.copies import COMPILED
from mlprank.surgery.masks import masked_rows, match_masks


def best_path(trainer: Trainer) -> Path | None:
    """Return the best checkpoint of a run, if there is one."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path and Path(path).is_file() else None


def best_copy(
    trainer: Trainer, module: LightningModule, name: str | None, *, rows: Mapping[str, Tensor]
) -> tuple[nn.Module, Path] | None:
    """Copy the module with the best checkpoint's weights.

    Args:
        trainer: The run.
        module: Its module; left untouched.
        name: The network's name in the module.
        rows: The masks at the end of a training under masks; only checkpoints with the same ones count.

    Returns:
        The copy and the checkpoint, or None where there is none that counts.
    """
    paths = _best_first(trainer) if rows else iter(path for path in [best_path(trainer)] if path)
    for path in paths:
        try:
            loaded = load_copy(module, path)
        except ValueError as error:
            rank_zero_warn(f"{error}; it is passed over")
            continue
        if not rows or _has_masks(find_network(loaded, name), rows):
            return loaded, path
    return None


def load_copy(module: LightningModule, path: Path) -> nn.Module:
    """Copy a module with a checkpoint's weights, and its masks.

    Raises:
        ValueError: If the checkpoint cannot be read.
        FileNotFoundError: If there is none.
    """
    state = read_checkpoint(path)["state_dict"]
    plain = {key.replace(f"{COMPILED}.", ""): value for key, value in state.items()}
    loaded = copied(module)
    match_masks(loaded, plain)
    loaded.load_state_dict(plain, strict=module.strict_loading)
    return loaded


def _best_first(trainer: Trainer) -> Iterator[Path]:
    """The checkpoints that are kept, from the best to the worst."""
    checkpoints = trainer.checkpoint_callback
    if not isinstance(checkpoints, ModelCheckpoint):
        return
    kept = sorted(checkpoints.best_k_models.items(), key=lambda item: float(item[1]), reverse=checkpoints.mode == "max")
    paths = dict.fromkeys([path for path, _ in kept] + [checkpoints.best_model_path])
    yield from (Path(path) for path in paths if path and Path(path).is_file())


def _has_masks(network: nn.Module, rows: Mapping[str, Tensor]) -> bool:
    own = masked_rows(network)
    return set(own) >= set(rows) and all(torch.equal(own[name].cpu(), kept.cpu()) for name, kept in rows.items())
