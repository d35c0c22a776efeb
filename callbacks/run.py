"""A Lightning run as pruning sees it: the network in its module, its hooks, processes and directory, and its batches.

Modules, data modules, loggers and strategies may come from `lightning.pytorch` or from `pytorch_lightning`, which have
a class hierarchy each; so what they are is told by the names of their classes.
"""

import copy
import dataclasses
import hashlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_gather_object, all_reduce, broadcast
from torch.utils.data import DataLoader

from mlprank.callbacks.schedule import Amount
from mlprank.costs.metrics import is_labelled
from mlprank.graph.program import Inputs
from mlprank.pruning.front import Budgets
from mlprank.pruning.recipe import Recipe
from mlprank.surgery.copies import without_compiled
from mlprank.surgery.masks import refresh_masked
from mlprank.surgery.narrow import with_state
from mlprank.utils.errors import check_amount, check_choice, first_line
from mlprank.utils.hooks import Hook, HookWatch, replace_hook, users_hooks
from mlprank.utils.modules import device_of, evaluating
from mlprank.utils.registry import imported

_LIGHTNING = ("lightning", "pytorch_lightning")
_STEPS = ("forward", "training_step", "validation_step", "test_step", "predict_step")
ToInputs = Callable[[Any], Any]
"""Makes the network's inputs of a batch."""
_STEP_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, MisconfigurationException)
"""What a step may raise that is run outside of its loop."""
_SILENCED = ("log", "log_dict", "print", "manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer")
"""Methods of a LightningModule that do nothing while its step is only watched."""


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


@contextmanager
def own_randomness(seed: int, loader: Any) -> Iterator[None]:
    """Seed torch, numpy, Python and what generators a dataloader and its samplers hold; the states before come back."""
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    held = (getattr(holder, "generator", None) for holder in (loader, *samplers))
    states = [(each, each.get_state()) for each in {own for own in held if isinstance(own, torch.Generator)}]
    python, numpy = random.getstate(), np.random.get_state()
    initialised = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if initialised else 0)):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            for generator, _ in states:
                generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for generator, state in states:
                generator.set_state(state)


class _Called(BaseException):
    """Ends a step as soon as it calls the network; no handler of `Exception` in the step is to see it."""


class _Ignored:
    """Stands for an optimizer, a schedule, or a method that works in a loop only, while a step is only watched."""

    param_groups: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> "_Ignored":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Called(args, kwargs)


def recorded_call(
    trainer: Trainer, module: nn.Module, network: nn.Module, batch: Any, *, step: str, index: int = 0
) -> Inputs | None:
    """Run a step of a module's copy, such as "training_step", up to its call of the network, and return what that gets.

    Nothing of the step after that is run: no loss, no optimizer, no logging. None where the step cannot be run outside
    of its loop, or calls the network by another way than its `__call__`.
    """
    own: Any = module
    if not is_overridden(own, step):
        return None
    parameters = inspect.signature(getattr(own, step)).parameters
    if "dataloader_iter" in parameters:
        return None
    given = (batch, index) if len(parameters) > 1 else (batch,)
    several = len(trainer.optimizers) > 1
    silenced: dict[str, Any] = dict.fromkeys(_SILENCED, _Ignored())
    for name in ("optimizers", "lr_schedulers"):  # of manual optimization
        silenced[name] = lambda *_, **__: [_Ignored() for _ in trainer.optimizers] if several else _Ignored()
    handle = network.register_forward_pre_hook(_stop, with_kwargs=True, prepend=True)
    own.__dict__.update(silenced)
    own._trainer = trainer
    try:
        with evaluating(own), torch.no_grad(), trainer.precision_plugin.train_step_context():
            getattr(own, step)(*given)
    except _Called as called:
        return Inputs(*called.args)
    except _STEP_ERRORS as error:
        rank_zero_warn(
            f"{type(module).__name__}.{step} cannot be run outside of its loop ({first_line(error)}), so the "
            "network's inputs are taken to be the first entry of every batch; if they are not, say so by "
            "PruningCallback(network_inputs=...)"
        )
        return None
    finally:
        own._trainer = None
        handle.remove()
        for name in silenced:
            del own.__dict__[name]
    return None


@dataclass(eq=False)
class RunBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run.

    It can be read again and gives the same batches every time: a loader that shuffles or augments draws from a random
    state of its own. The run's random state and the loader's are left as they were.

    The inputs are what the function `inputs` makes of a batch, else what the network gets from a `step` of the module,
    a copy, else the batch's first entry. At most `limit` batches are read; `alone` yields inputs without what comes
    with them.
    """

    loader: Any
    trainer: Trainer
    module: nn.Module
    network: nn.Module
    inputs: ToInputs | None = None
    step: str | None = None
    seed: int = 0
    limit: int | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.loader, DataLoader):  # one that shares no iterator with what the run is reading from
            self.loader = copy.copy(self.loader)
            self.loader.__dict__["persistent_workers"] = False
            self.loader._iterator = None

    def __iter__(self) -> Iterator[Any]:
        """Yield batches as tuples, the inputs first; or the inputs."""
        with own_randomness(self.seed, self.loader):
            iterator = islice(iter(self.loader), self.limit)
        for index in count():
            with own_randomness(self.seed + index, self.loader):
                try:
                    batch = self._transferred(next(iterator), index)
                except StopIteration:
                    return
            yield batch[0] if self.alone else batch

    def _transferred(self, batch: Any, index: int) -> tuple[Any, ...]:
        hooks = self.trainer.datamodule or self.trainer.lightning_module
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = hooks.on_before_batch_transfer(batch, 0)
        batch = hooks.transfer_batch_to_device(batch, device_of(self.network), 0)
        batch = hooks.on_after_batch_transfer(batch, 0)
        inputs = self._inputs(batch, index)
        dtype = next((each.dtype for each in self.network.parameters() if each.is_floating_point()), torch.float32)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        if isinstance(inputs, Inputs):
            inputs = inputs.mapped(cast)
        rest = tuple(batch[1:]) if isinstance(batch, (tuple, list)) else ()
        if isinstance(batch, Mapping):
            names = ("labels", "label", "y", "target", "targets")
            rest = tuple(batch[name] for name in names if name in batch)[:1]
        return cast(inputs) if isinstance(inputs, Tensor) else inputs, *rest

    def _inputs(self, batch: Any, index: int) -> Any:
        if self.inputs is not None:
            given = self.inputs(batch)
            match given:  # (args, kwargs), a dict of keyword arguments, arguments in a sequence, or the only argument
                case (tuple() as args, Mapping() as kwargs):
                    return Inputs(args, kwargs).sole
                case Mapping():
                    return Inputs((), given)
                case tuple() | list():
                    return Inputs(tuple(given), {}).sole
            return given
        if self.step is not None:
            call = recorded_call(self.trainer, self.module, self.network, batch, step=self.step, index=index)
            if call is not None:
                return call.sole
            self.step = None  # it will not call the network for the other batches either
        return batch[0] if isinstance(batch, (tuple, list)) else batch


def find_inputs(given: ToInputs | str | None) -> ToInputs | None:
    """Return the function that `network_inputs` is or names, such as "my_project.data.inputs_of"."""
    found = imported("network_inputs", given) if isinstance(given, str) else given
    if found is not None and not callable(found):
        raise TypeError(
            f"network_inputs={given!r} is not a function; give one that makes the network's inputs of a batch, such as"
            ' lambda batch: batch["image"], or its dotted path'
        )
    return found


@dataclass(frozen=True)
class Settings:
    """The choices that every pruning of a `PruningCallback` shares; its arguments say what they mean."""

    amounts: tuple[Amount, ...]
    recipe: Recipe  # all choices but the amount
    network: str | None
    apply: str
    inputs: ToInputs | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.amounts:
            raise ValueError("amount=[] holds no amount; give at least one, such as 0.5")
        for amount in self.amounts:
            check_amount(amount)
        check_choice("apply", self.apply, ("mask", "remove", "none"))
        if self.max_drop is not None:
            Budgets(max_drop=self.max_drop)
            if self.amounts != (Recipe().amount,):
                raise ValueError(
                    f"amount={self.amounts[0] if len(self.amounts) == 1 else list(self.amounts)} and "
                    f"max_drop={self.max_drop} contradict each other: max_drop finds the amount; give one of them"
                )

    @property
    def num_samples(self) -> int:
        """Number of calibration samples, over all processes."""
        return self.recipe.num_samples or sys.maxsize

    def calibration(self, trainer: Trainer, copied: nn.Module, *, limit: int | None = None) -> RunBatches:
        """Return the calibration data for the network in a copy of a run's module; call it on all processes.

        It is the datamodule's `calibration_dataloader(num_samples, seed)` where it has one, else the run's training
        data, with the inputs that the network gets in training unless a function makes them.
        """
        draws, seed = _draws(trainer), self.recipe.seed
        data: Any = trainer.datamodule
        loader = trainer.train_dataloader
        if draws:
            loader = data.calibration_dataloader(num_samples=self.num_samples, seed=seed)
        elif isinstance(loader, (list, tuple, dict)):
            raise TypeError(
                "calibration: there are several training dataloaders; give the datamodule a "
                "calibration_dataloader(num_samples, seed)"
            )
        batches = RunBatches(
            () if loader is None else loader,
            trainer,
            copied,
            find_network(copied, self.network),
            inputs=self.inputs,
            step=None if draws else "training_step",
            seed=seed,
            limit=limit,
            alone=True,
        )
        first = next(iter(batches), None)
        size = int(first is not None)
        if isinstance(first, Inputs) or (isinstance(first, Tensor) and first.dim()):
            size = len(first)
        what = f"{type(data).__name__}.calibration_dataloader" if draws else "the training data"
        check_every_rank_has_data(trainer, size, what=what)
        return batches

    def labelled(
        self, trainer: Trainer, copied: nn.Module, *, choosing: bool = False
    ) -> tuple[RunBatches | None, str | None]:
        """Return labelled batches to measure accuracy on, and what to call them; call it on all processes.

        They are the datamodule's test data where it has some, else the run's validation data; (None, None) where a
        process has none with labels. Where something is chosen by the outcome, they are validation data, with or
        without labels.
        """
        source: Any = trainer.datamodule or trainer.lightning_module  # the data may be in the module
        splits: list[tuple[str, str, Any]] = [("validation", "validation_step", trainer.val_dataloaders)]
        if not choosing and is_overridden(source, "test_dataloader"):
            if trainer.datamodule is not None:
                source.setup("test")
            splits.insert(0, ("test", "test_step", source.test_dataloader()))
        network = find_network(copied, self.network)
        for split, step, loader in splits:
            batches = None
            if hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict)):
                batches = RunBatches(loader, trainer, copied, network, inputs=self.inputs, step=step)
            first: Any = next(iter(batches or ()), ())
            known = _labelled(first, network)
            if all(gathered(trainer, known or (choosing and len(first) > 0))):
                return batches, split
        return None, None

    def recipe_of_rank(self, trainer: Trainer) -> Recipe:
        """Return the recipe with the number of calibration samples that one process reads."""
        return dataclasses.replace(self.recipe, num_samples=samples_of_rank(trainer, self.num_samples))

    def plain(self) -> dict[str, Any]:
        """Return what a resumed run must share, as plain types."""
        amounts = [dict(each) if isinstance(each, Mapping) else float(each) for each in self.amounts]
        budget = {} if self.max_drop is None else {"max_drop": self.max_drop}
        return {**self.recipe.plain(), "amount": amounts[0] if len(amounts) == 1 else amounts, **budget}


def _draws(trainer: Trainer) -> bool:
    return callable(getattr(trainer.datamodule, "calibration_dataloader", None))


def has_calibration_data(trainer: Trainer) -> bool:
    """Say whether a run has anything to calibrate on, without reading it."""
    return _draws(trainer) or trainer.train_dataloader is not None


def samples_of_rank(trainer: Trainer, num_samples: int) -> int:
    """Return how many calibration samples one process reads: all of a drawn set, its share of the training data."""
    return num_samples if _draws(trainer) else -(-num_samples // trainer.world_size)


def _labelled(batch: tuple[Any, ...], network: nn.Module) -> bool:
    """Whether a network gives logits for one tensor of inputs that has class indices."""
    if not is_labelled(batch):
        return False
    inputs, labels = batch[:2]
    with evaluating(network), torch.no_grad():
        logits = network(inputs[:1])
    return (
        isinstance(logits, Tensor)
        and logits.dim() == 2
        and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    )
