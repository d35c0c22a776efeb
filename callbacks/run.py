"""A Lightning run as pruning sees it: the network in its module, the hooks on it, its processes, and its directory.

Modules, data modules, loggers and strategies may come from `lightning.pytorch` or from `pytorch_lightning`, which have
a class hierarchy each; so what they are is told by the names of their classes.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_gather_object, all_reduce, broadcast

from mlprank.surgery.copies import without_compiled
from mlprank.surgery.masks import refresh_masked
from mlprank.surgery.narrow import with_state
from mlprank.utils.hooks import Hook, HookWatch, replace_hook, users_hooks

_LIGHTNING = ("lightning", "pytorch_lightning")
_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def is_lightning(value: object, *names: str) -> bool:
    """Say whether an object is an instance of one of Lightning's classes, of either package, by the class's name."""
    return any(cls.__name__ in names and cls.__module__.partition(".")[0] in _LIGHTNING for cls in type(value).__mro__)


def is_overridden(owner: object, method: str) -> bool:
    """Say whether a module or a data module has a method of its own and not only Lightning's."""
    if method in vars(owner):
        return True
    function = getattr(type(owner), method, None)
    return function is not None and str(function.__module__).partition(".")[0] not in _LIGHTNING


def find_network(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule to prune.

    Without a name it is what `forward` stands for: the module, or its only submodule where it has no `forward`.
    """
    if name is None and is_overridden(module, "forward"):
        return module
    if name is None:
        children = [child for child, own in module.named_children() if next(own.parameters(), None) is not None]
        if len(children) != 1:
            raise ValueError(
                f"{type(module).__name__} has no forward and {len(children)} submodules with parameters"
                f' ({", ".join(children)}); say which to prune, as in PruningCallback(network="net")'
            )
        name = children[0]
    try:
        return module.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in module.named_children())
        raise ValueError(f'network="{name}" is not a submodule of {type(module).__name__}; it has {known}') from None


@contextmanager
def uncompiled(module: LightningModule) -> Iterator[None]:
    """Take back, for a while, what `torch.compile` did to a module or its submodules; weights stay."""
    context = module._compiler_ctx
    steps: dict[str, Any] = {name: module.__dict__.pop(name) for name in _STEPS if context and name in module.__dict__}
    module._compiler_ctx = None
    try:
        with without_compiled(module):
            yield
    finally:
        module.__dict__.update(steps)
        module._compiler_ctx = context


def copied(module: LightningModule, hooks: Collection[Hook] = ()) -> nn.Module:
    """Copy a LightningModule with its masks, without trainer and `torch.compile`, and with none but some hooks."""
    with uncompiled(module):
        refresh_masked(module)
        copy = with_state(module, {})
    for name, kind, key in set(users_hooks(copy)) - set(hooks):
        del getattr(copy.get_submodule(name), kind)[key]
    return copy


class FirstStep:
    """Finds out which of a user's hooks change what the network computes, in a training step, where they run anyway.

    `changing` are those that do; the others only observe, are put aside in copies and see nothing of pruning.
    """

    def __init__(self) -> None:
        self.changing: set[Hook] = set()
        self._watched: dict[Hook, Callable[..., Any]] | None = None

    def start(self, module: LightningModule) -> None:
        """Look at every hook until `stop`, in the first step alone."""
        if self._watched is None:
            with uncompiled(module):
                self._watched = HookWatch(self.changing).start(module)

    def stop(self, module: LightningModule) -> None:
        """Let the hooks be as they were."""
        if self._watched:
            with uncompiled(module):
                for place, hook in self._watched.items():
                    replace_hook(module, place, hook)
            self._watched = {}


def run_directory(trainer: Trainer, dirpath: str | None) -> Path:
    """Return the directory of a run: the user's, else the first logger's, else the trainer's `default_root_dir`.

    Call it on all processes.
    """
    if dirpath is not None:
        return Path(dirpath)
    logger = trainer.loggers[0] if trainer.loggers else None
    root = Path(trainer.default_root_dir)
    if logger is None:
        return root
    if is_lightning(logger, "CSVLogger", "TensorBoardLogger"):
        return Path(trainer.log_dir or root)
    saved = Path(logger.save_dir or root)
    shared = saved.resolve() == Path.cwd() or saved.resolve() != root.resolve()
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    own = saved / str(logger.name) / version if shared else saved
    return Path(trainer.strategy.broadcast(str(own)))


def check_writable(trainer: Trainer, directory: Path) -> None:
    """Write something to a directory and take it away again, before hours are spent on what could not be kept.

    Call it on all processes: the first one tries, and all of them fail together.
    """
    problem = None
    try:
        if trainer.is_global_zero:
            directory.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=directory):
                pass
    except OSError as error:
        problem = type(error)(
            error.errno,
            f"PruningCallback cannot write to the run directory {directory} ({os.strerror(error.errno or 0)}); free it,"
            ' or give another one, as in PruningCallback(dirpath="runs/pruned")',
        )
    for each in gathered(trainer, problem):
        if isinstance(each, OSError):
            raise each


def summed(trainer: Trainer, total: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, on its own device; call it on all of them."""
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
    for weight in weights if trainer.world_size > 1 else ():
        moved = weight.detach().to(trainer.strategy.root_device, copy=True).contiguous()
        broadcast(moved, src=0)
        with torch.no_grad():
            weight.copy_(moved)


def check_same_masks(trainer: Trainer, masks: Mapping[str, Tensor]) -> None:
    """Compare a hash of the masks over all processes; call it on all of them."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + b"\0" + bytes(masks[name].to(torch.uint8).cpu().flatten().tolist()))
    digests = gathered(trainer, digest.hexdigest())
    different = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if different:
        raise RuntimeError(
            f"the ranks {different} chose other neurons to prune than rank 0; give every rank the same weights before "
            "pruning, and calibration data that can be read twice"
        )


def check_every_rank_has_data(trainer: Trainer, num_samples: int, *, what: str) -> None:
    """Agree on whether every process has calibration data before any waits for the others; call it on all."""
    counts = gathered(trainer, num_samples)
    empty = ", ".join(str(rank) for rank, count in enumerate(counts) if count == 0)
    own = "a calibration_dataloader(num_samples, seed)"
    if empty and len(counts) == 1:
        raise ValueError(
            f"calibration: {what} is empty; give the trainer training data, or its datamodule {own} with at least one "
            "sample"
        )
    if empty:
        raise ValueError(
            f"calibration: rank {empty} of {len(counts)} has no batch of {what}; give every rank at least one, or the "
            f"datamodule {own}"
        )
