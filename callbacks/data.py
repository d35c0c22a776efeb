"""Batches of a Lightning run outside its loops: as the network would get them, on its device and in its precision."""

import copy
import dataclasses
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlprank.callbacks.run import check_every_rank_has_data, find_network, gathered, is_overridden
from mlprank.callbacks.schedule import Amount
from mlprank.graph.program import Inputs
from mlprank.pruning.front import Budgets
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.selection import check_amount
from mlprank.utils.modules import device_of, evaluating, first_words
from mlprank.utils.registry import imported

ToInputs = Callable[[Any], Any]
"""Makes the network's inputs of a batch."""
_STEP_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, MisconfigurationException)
"""What a step may raise that is run outside of its loop."""
_SILENCED = ("log", "log_dict", "print", "manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer")
"""Methods of a LightningModule that do nothing while its step is only watched."""


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
    """Stands for an optimizer or a schedule while a step is only watched."""

    param_groups: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _ignore


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Called(args, kwargs)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for what only works inside of a loop."""


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
    silenced: dict[str, Any] = dict.fromkeys(_SILENCED, _ignore)
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
            f"{type(module).__name__}.{step} cannot be run outside of its loop ({first_words(error)}), so the "
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


class RunBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run.

    It can be read again and gives the same batches every time: a loader that shuffles or augments draws from a random
    state of its own. The run's random state and the loader's are left as they were.

    The inputs are what the function `inputs` makes of a batch, else what the network gets from a `step` of the module,
    a copy, else the batch's first entry. At most `limit` batches are read; `alone` yields inputs without what comes
    with them.
    """

    def __init__(
        self,
        loader: Any,
        *,
        trainer: Trainer,
        module: nn.Module,
        network: str | None,
        inputs: ToInputs | None = None,
        step: str | None = None,
        seed: int = 0,
        limit: int | None = None,
        alone: bool = False,
    ) -> None:
        self.loader, self.trainer, self.module, self.seed = _apart(loader), trainer, module, seed
        self.network = find_network(module, network)
        self.inputs, self.step, self.limit, self.alone = inputs, step, limit, alone

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
        return cast(inputs) if isinstance(inputs, Tensor) else inputs, *_rest(batch)

    def _inputs(self, batch: Any, index: int) -> Any:
        if self.inputs is not None:
            return called_with(self.inputs(batch))
        if self.step is not None:
            call = recorded_call(self.trainer, self.module, self.network, batch, step=self.step, index=index)
            if call is not None:
                return call.sole
            self.step = None  # it will not call the network for the other batches either
        return batch[0] if isinstance(batch, (tuple, list)) else batch


def called_with(given: Any) -> Any:
    """Return the call that a user's function means: `(args, kwargs)`, a tuple of arguments, a dict, a tensor."""
    if isinstance(given, Mapping):
        return Inputs((), given)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], Mapping):
        return Inputs(given[0], given[1]).sole
    return Inputs(tuple(given), {}).sole if isinstance(given, (tuple, list)) else given


def _rest(batch: Any) -> tuple[Any, ...]:
    """What comes with the inputs: everything after the first entry, or what a dict has under the name of labels."""
    if isinstance(batch, Mapping):
        return tuple(batch[key] for key in ("labels", "label", "y", "target", "targets") if key in batch)[:1]
    return tuple(batch[1:]) if isinstance(batch, (tuple, list)) else ()


def _apart(loader: Any) -> Any:
    """A dataloader that shares no iterator with the one that the run is reading from."""
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy.copy(loader)
    apart.__dict__["persistent_workers"] = False
    apart._iterator = None
    return apart


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
    """The choices that every pruning of a callback shares.

    Attributes:
        amounts: The amounts; one network comes out for each.
        recipe: All other choices of a pruning.
        network: Name of the submodule to prune; None finds it out.
        apply: "mask", "remove" or "none".
        inputs: Makes the network's inputs of a batch; None for what it gets in training.
        max_drop: Percentage points of validation accuracy that may be lost; the amount is then found out.
    """

    amounts: tuple[Amount, ...]
    recipe: Recipe
    network: str | None
    apply: str
    inputs: ToInputs | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if not self.amounts:
            raise ValueError("amount=[] holds no amount; give at least one, such as 0.5")
        for amount in self.amounts:
            check_amount(amount)
        if self.apply not in ("mask", "remove", "none"):
            raise ValueError(f'apply="{self.apply}" is unknown; choose "mask", "remove" or "none"')
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
            trainer=trainer,
            module=copied,
            network=self.network,
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
        splits = [("test", "test_step", None if choosing else _test_loader(trainer))]
        splits += [("validation", "validation_step", trainer.val_dataloaders)]
        given: dict[str, Any] = {"module": copied, "network": self.network, "inputs": self.inputs}
        for split, step, loader in splits:
            batches = None
            if hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict)):
                batches = RunBatches(loader, trainer=trainer, step=step, **given)
            first: Any = next(iter(batches or ()), ())
            known = batches is not None and len(first) >= 2 and _labelled(first, batches.network)
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


def _test_loader(trainer: Trainer) -> Any:
    """The datamodule's own test data; the module's, where the data is in the module."""
    source: Any = trainer.datamodule or trainer.lightning_module
    if not is_overridden(source, "test_dataloader"):
        return None
    if trainer.datamodule is not None:
        trainer.datamodule.setup("test")
    return source.test_dataloader()


def _labelled(batch: tuple[Any, ...], network: nn.Module) -> bool:
    """Whether a network gives logits for one tensor of inputs that has class indices."""
    inputs, labels = batch[:2]
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return False
    if not isinstance(inputs, Tensor):
        return False
    with evaluating(network), torch.no_grad():
        logits = network(inputs[:1])
    return (
        isinstance(logits, Tensor)
        and logits.dim() == 2
        and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    )
