"""Batches of a Lightning run outside its loops: as the network would get them, on its device and in its precision."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mlprank.callbacks.run import check_every_rank_has_data, find_network, gathered, is_overridden
from mlprank.graph.program import Inputs
from mlprank.utils.modules import device_of, evaluating
from mlprank.utils.registry import imported

ToInputs = Callable[[Any], Any]
"""Makes the network's inputs of a batch."""

_STEP_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    NotImplementedError,
    MisconfigurationException,
)
"""What a step may raise that is run outside of its loop."""

_SILENCED = ("log", "log_dict", "print")
"""Methods of a LightningModule that do nothing while its step is only watched."""


class OwnRandomness:
    """A random state of one's own: swapped in for a while, and the caller's put back afterwards, whatever happens.

    Covers torch, numpy and Python, and generators that a dataloader or its samplers hold.

    Args:
        seed: Where the own state starts.
        loader: A dataloader whose generators are covered too.
    """

    def __init__(self, seed: int, loader: Any = None) -> None:
        samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        held = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
        self.generators = list({id(each): each for each in held if isinstance(each, torch.Generator)}.values())
        with self._kept():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            for generator in self.generators:
                generator.manual_seed(seed)
            self.state = self._state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from the own state inside the block."""
        with self._kept():
            self._restore(self.state)
            try:
                yield
            finally:
                self.state = self._state()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        before = self._state()
        try:
            yield
        finally:
            self._restore(before)

    def _state(self) -> tuple[Any, ...]:
        accelerator = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        own = [generator.get_state() for generator in self.generators]
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator, own

    def _restore(self, state: tuple[Any, ...]) -> None:
        python, numpy, torch_state, accelerator, own = state
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        if accelerator:
            torch.cuda.set_rng_state_all(accelerator)
        for generator, each in zip(self.generators, own, strict=True):
            generator.set_state(each)


class _Called(BaseException):
    """Ends a step as soon as it calls the network; no handler of `Exception` in the step is to see it."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.args_given, self.kwargs_given = args, dict(kwargs)


def recorded_call(
    trainer: Trainer, module: nn.Module, network: nn.Module, batch: Any, *, step: str, index: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Run a module's step up to the moment at which it calls the network, and return what it calls it with.

    Nothing of the step after that is run: no loss, no optimizer, no logging.

    Args:
        trainer: The run, which the module sees for that while.
        module: A copy of the run's LightningModule.
        network: The network in it.
        batch: A batch, as the step gets it.
        step: Name of the step, such as "training_step".
        index: The batch's number.

    Returns:
        Positional and keyword arguments; None where the step cannot be run outside of its loop, or calls the network by
        another way than its `__call__`.
    """
    own: Any = module
    if not is_overridden(own, step) or not getattr(own, "automatic_optimization", True):
        return None
    parameters = inspect.signature(getattr(own, step)).parameters
    if "dataloader_iter" in parameters:
        return None
    given = (batch, index) if len(parameters) > 1 else (batch,)
    handle = network.register_forward_pre_hook(_stop, with_kwargs=True, prepend=True)
    own.__dict__.update(dict.fromkeys(_SILENCED, _ignore))
    own._trainer = trainer
    try:
        with evaluating(own), torch.no_grad(), trainer.precision_plugin.train_step_context():
            getattr(own, step)(*given)
    except _Called as called:
        return called.args_given, called.kwargs_given
    except _STEP_ERRORS:
        return None
    finally:
        own._trainer = None
        handle.remove()
        for name in _SILENCED:
            del own.__dict__[name]
    return None


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    raise _Called(args, kwargs)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for what only works inside of a loop."""


class RunBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run.

    It can be read again and gives the same batches every time: a loader that shuffles or augments draws from a random
    state of its own. The run's random state and the loader's are left as they were.

    Args:
        loader: A dataloader, or any iterable of batches.
        trainer: The run.
        module: The LightningModule or a copy of it.
        network: Name of the network in it that will read them; None finds it out.
        inputs: Makes the network's inputs of a batch.
        step: Name of the step that calls the network, to take the inputs from there; the module is then a copy. None
            for the batch's first entry.
        seed: Seed of whatever the loader draws.
        limit: Read at most this many batches.
        alone: Yield the inputs alone.
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
        randomness = OwnRandomness(self.seed, self.loader)
        with randomness():
            iterator = islice(iter(self.loader), self.limit)
        index = 0
        while True:
            with randomness():
                try:
                    batch = self._transferred(next(iterator), index)
                except StopIteration:
                    return
            yield batch[0] if self.alone else batch
            index += 1

    def _transferred(self, batch: Any, index: int) -> tuple[Any, ...]:
        hooks = self.trainer.datamodule or self.trainer.lightning_module
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = hooks.on_before_batch_transfer(batch, 0)
        batch = hooks.transfer_batch_to_device(batch, device_of(self.network), 0)
        batch = hooks.on_after_batch_transfer(batch, 0)
        inputs = self._inputs(batch, index)
        return _in_precision(inputs, self.network), *_rest(batch)

    def _inputs(self, batch: Any, index: int) -> Any:
        if self.inputs is not None:
            return called_with(self.inputs(batch))
        if self.step is not None:
            call = recorded_call(self.trainer, self.module, self.network, batch, step=self.step, index=index)
            if call is not None:
                return Inputs(*call).sole
            self.step = None  # it will not call the network for the other batches either
        return batch[0] if isinstance(batch, (tuple, list)) else batch


def called_with(given: Any) -> Any:
    """Return the call that a user's function of a batch means: `(args, kwargs)`, a tuple of arguments, a dict, or a tensor."""
    pair = (
        isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], Mapping)
    )
    if pair:
        return Inputs(given[0], given[1]).sole
    if isinstance(given, Mapping):
        return Inputs((), given)
    return Inputs(tuple(given), {}).sole if isinstance(given, (tuple, list)) else given


def _rest(batch: Any) -> tuple[Any, ...]:
    """What comes with the inputs: everything after the first entry, or what a dict has under the name of labels."""
    if isinstance(batch, Mapping):
        return tuple(batch[key] for key in ("labels", "label", "y", "target", "targets") if key in batch)[:1]
    return tuple(batch[1:]) if isinstance(batch, (tuple, list)) else ()


def find_inputs(given: ToInputs | str | None) -> ToInputs | None:
    """Return the function that `network_inputs` names.

    Args:
        given: A function, or the dotted path of one, such as "my_project.data.inputs_of".

    Raises:
        ValueError: If the path cannot be imported.
        TypeError: If it is not a function.
    """
    found = imported("network_inputs", given) if isinstance(given, str) else given
    if found is not None and not callable(found):
        raise TypeError(
            f"network_inputs={given!r} is not a function; give one that makes the network's inputs of a batch, such as"
            ' lambda batch: batch["image"], or its dotted path'
        )
    return found


def calibration_batches(
    trainer: Trainer,
    module: nn.Module,
    network: str | None,
    *,
    num_samples: int,
    seed: int,
    inputs: ToInputs | None = None,
    limit: int | None = None,
) -> RunBatches:
    """Return the calibration data of a run; call it on all processes.

    Args:
        trainer: The run, with its data attached.
        module: A copy of its module.
        network: Name of the network in it; None finds it out.
        num_samples: How many samples to draw, where the datamodule can draw.
        seed: Seed of the draw.
        inputs: Makes the network's inputs of a batch; otherwise they are what the network gets in training.
        limit: Read at most this many batches.

    Returns:
        The datamodule's `calibration_dataloader(num_samples, seed)` where it has one, else the run's training data.

    Raises:
        ValueError: On every process, if one of them has no batch.
        TypeError: If there are several training dataloaders.
    """
    draw = getattr(trainer.datamodule, "calibration_dataloader", None)
    loader = draw(num_samples=num_samples, seed=seed) if callable(draw) else trainer.train_dataloader
    what = f"{type(trainer.datamodule).__name__}.calibration_dataloader" if callable(draw) else "the training data"
    if not callable(draw) and isinstance(loader, (list, tuple, dict)):
        raise TypeError(
            "calibration: there are several training dataloaders; give the datamodule a"
            " calibration_dataloader(num_samples, seed)"
        )
    batches = RunBatches(
        () if loader is None else loader,
        trainer=trainer,
        module=module,
        network=network,
        inputs=inputs,
        step=None if callable(draw) else "training_step",
        seed=seed,
        limit=limit,
        alone=True,
    )
    first = next(iter(batches), None)
    count = 0 if first is None else 1
    if isinstance(first, Inputs) or (isinstance(first, Tensor) and first.dim()):
        count = len(first)
    check_every_rank_has_data(trainer, count, what=what)
    return batches


def has_calibration_data(trainer: Trainer) -> bool:
    """Say whether a run has anything to calibrate on, without reading it."""
    return callable(getattr(trainer.datamodule, "calibration_dataloader", None)) or trainer.train_dataloader is not None


def samples_of_rank(trainer: Trainer, num_samples: int) -> int:
    """Return how many calibration samples one process reads: all of a drawn set, its share of the training data."""
    if callable(getattr(trainer.datamodule, "calibration_dataloader", None)):
        return num_samples
    return -(-num_samples // trainer.world_size)


def labelled_batches(
    trainer: Trainer,
    module: nn.Module,
    network: str | None,
    *,
    inputs: ToInputs | None = None,
    test: bool = True,
    labels: bool = True,
) -> tuple[RunBatches | None, str | None]:
    """Return labelled batches to measure accuracy on, and what to call them; call it on all processes.

    Args:
        trainer: The run.
        module: A copy of its module.
        network: Name of the network in it; None finds it out.
        inputs: Makes the network's inputs of a batch.
        test: Whether test data may be used, as it may where nothing is chosen by the outcome.
        labels: Whether batches without labels are passed over.

    Returns:
        The datamodule's test data where it has some, else the run's validation data; (None, None) where a process has
        none with labels.
    """
    splits = [("test", "test_step", _test_loader(trainer) if test else None)]
    splits += [("validation", "validation_step", trainer.val_dataloaders)]
    for split, step, loader in splits:
        batches = None
        if _is_loader(loader):
            batches = RunBatches(loader, trainer=trainer, module=module, network=network, inputs=inputs, step=step)
        first: Any = next(iter(batches or ()), ())
        known = batches is not None and len(first) >= 2 and _labelled(first, batches.network)
        if all(gathered(trainer, known or (not labels and len(first) > 0))):
            return batches, split
    return None, None


def _test_loader(trainer: Trainer) -> Any:
    """The datamodule's own test data; the module's, where the data is in the module."""
    source: Any = trainer.datamodule or trainer.lightning_module
    if not is_overridden(source, "test_dataloader"):
        return None
    if trainer.datamodule is not None:
        trainer.datamodule.setup("test")
    return source.test_dataloader()


def _is_loader(loader: Any) -> bool:
    return loader is not None and hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict))


def _labelled(batch: tuple[Any, ...], network: nn.Module) -> bool:
    """Whether a network gives logits for inputs that have class indices."""
    inputs, labels = batch[:2]
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        return False
    if not isinstance(inputs, Tensor):
        return False  # accuracies are measured of one input
    with evaluating(network), torch.no_grad():
        logits = network(inputs[:1])
    return (
        isinstance(logits, Tensor)
        and logits.dim() == 2
        and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
    )


def _in_precision(inputs: Any, network: nn.Module) -> Any:
    dtype = next(
        (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), torch.float32
    )

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if isinstance(inputs, Inputs):
        return inputs.mapped(cast)
    return cast(inputs) if isinstance(inputs, Tensor) else inputs


def _apart(loader: Any) -> Any:
    """A dataloader that shares no iterator and no generator with the one that the run is reading from."""
    if not isinstance(loader, DataLoader):
        return loader
    apart = copy.copy(loader)
    apart.__dict__["persistent_workers"] = False
    apart._iterator = None
    return apart
