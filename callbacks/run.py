"""A Lightning run as pruning sees it: network, checkpoints, processes, directory and batches.

Modules, data modules, loggers and strategies may come from `lightning.pytorch` or from `pytorch_lightning`, which have
a class hierarchy each; so what they are is told by the names of their classes.
"""

import copy
import hashlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed import all_gather_object
from torch.utils.data import DataLoader
from torchmetrics import Metric

from mlprank.artifact.checkpoint import read_weights
from mlprank.costs.metrics import is_labelled
from mlprank.graph.program import Inputs, as_inputs
from mlprank.pruning.evaluation import Evaluation, scalars
from mlprank.pruning.recipe import Recipe
from mlprank.surgery.masks import masked_parameters, match_masks, refresh_masked, without_compiled
from mlprank.surgery.narrow import with_state
from mlprank.utils.errors import FAILURES, first_line
from mlprank.utils.modules import Hook, device_of, evaluating, users_hooks

_LIGHTNING = ("lightning", "pytorch_lightning")
ToInputs = Callable[[Any], Any] | None
"""Makes the inputs of a batch; None for what the network gets from a step of the module, else the first entry."""
_SILENCED = ("log", "log_dict", "print", "manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer")
"""Methods of a LightningModule that do nothing while its step is only watched."""


def is_lightning(value: object, *names: str) -> bool:
    """Say whether an object is an instance of one of Lightning's classes, of either package, by the class's name."""
    return any(cls.__name__ in names and cls.__module__.partition(".")[0] in _LIGHTNING for cls in type(value).__mro__)


def is_overridden(owner: object, method: str) -> bool:
    """Say whether a module or a data module has a method of its own and not only Lightning's."""
    function = vars(owner).get(method) or getattr(type(owner), method, None)
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
    context, own = module._compiler_ctx, module.__dict__
    names = ("forward", "training_step", "validation_step", "test_step", "predict_step")
    steps: dict[str, Any] = {name: own.pop(name) for name in names if context and name in own}
    module._compiler_ctx = None
    try:
        with without_compiled(module):
            yield
    finally:
        own.update(steps)
        module._compiler_ctx = context


def copied(module: LightningModule, hooks: Collection[Hook] = ()) -> nn.Module:
    """Copy a LightningModule with its masks, without trainer and `torch.compile`, and with none but some hooks."""
    with uncompiled(module):
        refresh_masked(module)
        copy = with_state(module, {})
    for name, kind, key in set(users_hooks(copy)) - set(hooks):
        del getattr(copy.get_submodule(name), kind)[key]
    for metric in (each for each in copy.modules() if isinstance(each, Metric)):
        state = metric.__getstate__()  # without `update` and `compute`, which belong to the metric that was copied
        metric.__dict__.clear()
        metric.__setstate__(state)
    return copy


def run_directory(trainer: Trainer, dirpath: str | None) -> Path:
    """Return the directory of a run: the user's, else the first logger's, else the trainer's `default_root_dir`.

    Something is written to it and taken away again, before hours are spent on what could not be kept. Call it on all
    processes: the first one tries, and all of them fail together.
    """
    logger, root = trainer.loggers[0] if trainer.loggers else None, Path(trainer.default_root_dir)
    if dirpath is not None or logger is None:
        directory = Path(dirpath or root)
    elif is_lightning(logger, "CSVLogger", "TensorBoardLogger"):
        directory = Path(trainer.log_dir or root)
    else:
        directory = Path(logger.save_dir or root)
        if directory.resolve() == Path.cwd() or directory.resolve() != root.resolve():  # other runs may write there
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            directory = directory / str(logger.name) / version
        directory = Path(trainer.strategy.broadcast(str(directory)))
    problem = None
    try:
        if trainer.is_global_zero and not trainer.fast_dev_run:
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
    return directory


def summed(trainer: Trainer, total: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, on its own device; call it on all of them."""
    if trainer.world_size == 1:
        return total
    moved = total.detach().to(trainer.strategy.root_device, copy=True)
    return trainer.strategy.reduce(moved, reduce_op="sum").to(total.device)


def gathered(trainer: Trainer, value: object) -> list[object]:
    """Return every process's value, in the order of ranks; call it on all of them."""
    values: list[object] = [value] * trainer.world_size
    if trainer.world_size > 1:
        all_gather_object(values, value)
    return values


def check_same_masks(trainer: Trainer, masks: Mapping[str, Tensor]) -> None:
    """Compare a hash of the masks over all processes; call it on all of them."""
    plain = repr([(name, masks[name].cpu().flatten().tolist()) for name in sorted(masks)])
    digests = gathered(trainer, hashlib.sha256(plain.encode()).hexdigest())
    different = [rank for rank, each in enumerate(digests) if each != digests[0]]
    if different:
        raise RuntimeError(
            f"the ranks {different} chose other neurons to prune than rank 0; give every rank the same weights before "
            "pruning, and calibration data that can be read twice"
        )


@contextmanager
def own_randomness(seed: int, loader: Any) -> Iterator[None]:
    """Seed torch, numpy, Python and what generators a dataloader and its samplers hold; the states before come back."""
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    held = {getattr(holder, "generator", None) for holder in (loader, *samplers)}
    generators = [(each, each.get_state()) for each in held if isinstance(each, torch.Generator)]
    states = _collect_rng_states(include_cuda=torch.cuda.is_initialized())
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        for generator, _ in generators:
            generator.manual_seed(seed)
        yield
    finally:
        _set_rng_states(states)
        for generator, state in generators:
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


@dataclass(eq=False)
class RunBatches:
    """A dataloader whose batches have gone through the transfer hooks of a run.

    It can be read again and gives the same batches every time: a loader that shuffles or augments draws from a random
    state of its own. The run's random state and the loader's are left as they were.
    """

    loader: Any
    trainer: Trainer
    module: nn.Module  # a copy of the run's
    network: nn.Module  # the one in it
    inputs: ToInputs = None
    step: str | None = None  # such as "training_step"
    seed: int = 0
    limit: int | None = None  # read so many batches at most
    alone: bool = False  # yield inputs without what comes with them

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
        owner: Any = self.trainer.lightning_module
        batch = owner._on_before_batch_transfer(self.trainer.precision_plugin.convert_input(batch))
        batch = owner._apply_batch_transfer_handler(batch, device_of(self.network))
        inputs, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
        if isinstance(batch, Mapping):
            names = ("labels", "label", "y", "target", "targets")
            rest = [batch[name] for name in names if name in batch][:1]
        if self.inputs is not None:
            match inputs := self.inputs(batch):  # (args, kwargs), keyword arguments, a sequence, or the only argument
                case (tuple() as args, Mapping() as kwargs):
                    inputs = Inputs(args, kwargs)
                case Mapping() as kwargs:
                    inputs = Inputs((), kwargs)
                case tuple() | list() as args:
                    inputs = Inputs(tuple(args), {})
        elif self.step is not None:
            call = self._recorded(batch, index, self.step)
            if call is None:
                self.step = None  # it will not call the network for the other batches either
            inputs = inputs if call is None else call
        if isinstance(inputs, (Tensor, Inputs)):
            dtype = next((each.dtype for each in self.network.parameters() if each.is_floating_point()), torch.float32)
            cast = as_inputs(inputs).mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
            inputs = cast.sole
        return inputs, *rest

    def _recorded(self, batch: Any, index: int, step: str) -> Inputs | None:
        """Run a step up to its call of the network, and return what that gets.

        Nothing of the step after that is run: no loss, no optimizer, no logging. None where the step cannot be run
        outside of its loop, or calls the network by another way than its `__call__`.
        """
        own: Any = self.module
        trainer = self.trainer
        parameters = inspect.signature(getattr(own, step)).parameters if is_overridden(own, step) else None
        if parameters is None or "dataloader_iter" in parameters:
            return None

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Called(args, kwargs)

        ignored = [_Ignored() for _ in trainer.optimizers]
        silenced: dict[str, Any] = dict.fromkeys(_SILENCED, _Ignored())
        for name in ("optimizers", "lr_schedulers"):  # of manual optimization
            silenced[name] = lambda *_, **__: ignored if len(ignored) > 1 else _Ignored()
        handle = self.network.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        own.__dict__.update(silenced)
        own._trainer = trainer
        try:
            with evaluating(own), torch.no_grad(), trainer.precision_plugin.train_step_context():
                getattr(own, step)(*((batch, index) if len(parameters) > 1 else (batch,)))
        except _Called as called:
            return Inputs(*called.args)
        except (*FAILURES, MisconfigurationException) as error:
            rank_zero_warn(
                f"{type(own).__name__}.{step} cannot be run outside of its loop ({first_line(error)}), so the "
                "network's inputs are taken to be the first entry of every batch; if they are not, say so by "
                "PruningCallback(network_inputs=...)"
            )
        finally:
            own._trainer = None
            handle.remove()
            for name in silenced:
                del own.__dict__[name]
        return None


def calibration(
    trainer: Trainer, module: nn.Module, network: nn.Module, recipe: Recipe, inputs: ToInputs, limit: int | None = None
) -> RunBatches:
    """Return the calibration data for the network in a copy of a run's module; call it on all processes.

    It is the datamodule's `calibration_dataloader(num_samples, seed)` where it has one, else the run's training data,
    with the inputs that the network gets in training unless a function makes them.
    """
    loader, what = trainer.train_dataloader, "the training data"
    data: Any = trainer.datamodule
    own = "a calibration_dataloader(num_samples, seed)"
    step = None if draws(trainer) else "training_step"
    if step is None:
        loader = data.calibration_dataloader(num_samples=recipe.num_samples or sys.maxsize, seed=recipe.seed)
        what = f"{type(data).__name__}.calibration_dataloader"
    elif isinstance(loader, (list, tuple, dict)):
        raise TypeError(f"calibration: there are several training dataloaders; give the datamodule {own}")
    loader = () if loader is None else loader
    batches = RunBatches(loader, trainer, module, network, inputs, step, recipe.seed, limit, alone=True)
    first: Any = next(iter(batches), None)
    sized = isinstance(first, Inputs) or (isinstance(first, Tensor) and first.dim())
    sizes = gathered(trainer, len(first) if sized else int(first is not None))  # all agree before any waits
    if empty := ", ".join(str(rank) for rank, size in enumerate(sizes) if size == 0):
        where = "" if len(sizes) == 1 else f" on rank {empty} of {len(sizes)}"
        raise ValueError(f"calibration: {what} is empty{where}; give at least one sample, or the datamodule {own}")
    return batches


def labelled(
    trainer: Trainer, module: nn.Module, network: nn.Module, inputs: ToInputs, *, choosing: bool = False
) -> tuple[RunBatches | None, str | None]:
    """Return labelled batches to measure accuracy on, and what to call them; call it on all processes.

    They are the datamodule's test data where it has some, else the run's validation data; (None, None) where a process
    has none with labels. Where something is chosen by the outcome, they are validation data, with or without labels.
    """
    source: Any = trainer.datamodule or trainer.lightning_module  # the data may be in the module
    splits: list[tuple[str, Any]] = [("validation", trainer.val_dataloaders)]
    if not choosing and is_overridden(source, "test_dataloader"):
        if trainer.datamodule is not None:
            source.setup("test")
        splits.insert(0, ("test", source.test_dataloader()))
    for split, loader in splits:
        batches = None
        if hasattr(loader, "__iter__") and not isinstance(loader, (list, tuple, dict)):
            batches = RunBatches(loader, trainer, module, network, inputs, f"{split}_step")
        first: Any = next(iter(batches or ()), ())
        fits = choosing and len(first) > 0
        if not fits and is_labelled(first):  # does the network give logits for the inputs, one a class?
            images, labels = first[:2]
            with evaluating(network), torch.no_grad():
                logits = network(images[:1])
            fits = isinstance(logits, Tensor) and logits.dim() == 2
            fits = fits and 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]
        if all(gathered(trainer, fits)):
            return batches, split
    return None, None


def draws(trainer: Trainer) -> bool:
    """Say whether the datamodule draws calibration data of its own."""
    return callable(getattr(trainer.datamodule, "calibration_dataloader", None))


def refused_strategy(strategy: Strategy) -> str | None:
    """Say why pruning cannot go along with a strategy, and what to do; None where it can."""
    name = type(strategy).__name__
    if is_lightning(strategy, "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"):
        return (
            f"strategy: {name} splits the weights over processes, and ranking neurons needs whole layers; train without"
            " the PruningCallback and prune the checkpoint (mlprank prune --ckpt_path ..., or mlprank.prune), or use"
            ' strategy="ddp"'
        )
    if is_lightning(strategy.launcher, "_MultiProcessingLauncher"):
        return (
            f"strategy: {name} trains in processes of its own, which end with fit and take with them what the"
            ' PruningCallback has measured and written down; in a script use strategy="ddp", in a notebook one device'
            " (devices=1), or train without the callback and call mlprank.prune(module, data) afterwards"
        )
    return None


def checkpoint_text(trainer: Trainer, path: Path) -> str:
    """Say which network a checkpoint holds."""
    checkpoints: Any = trainer.checkpoint_callback
    monitor, scores = getattr(checkpoints, "monitor", None), getattr(checkpoints, "best_k_models", {})
    score = scores.get(str(path), getattr(checkpoints, "best_model_score", None))
    epoch = read_weights(path).get("epoch", 0) + 1  # as the lines of the training count
    value = "" if score is None or monitor is None else f" by {monitor} ({float(score):.4g})"
    return f"the dense network of epoch {epoch}, " + (f"the best{value}" if monitor else "the last checkpoint")


def best_path(trainer: Trainer) -> Path | None:
    """Return the best checkpoint of a run, if there is one."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path and Path(path).is_file() else None


def plain_state_dicts(module: nn.Module) -> None:
    """Let the state dict of a module have the module's own keys, with pruned rows at zero, whether it has masks or not.

    Checkpoints can then be loaded by whoever knows nothing of masks. A module under masks takes such a state dict and
    keeps the masks whose rows are zero in it; the others go. It takes state dicts with torch's masks as well.
    """
    if not any(hook is _without_masks for hook in module._state_dict_hooks.values()):
        module.register_state_dict_post_hook(_without_masks)
        module.register_load_state_dict_pre_hook(_match)
        module.register_load_state_dict_post_hook(_refresh)


def _without_masks(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    masks = {name.removesuffix("_mask") for name in state if name.startswith(prefix) and name.endswith("_mask")}
    masked = {name for name in masks if f"{name}_orig" in state}
    values = dict(state) if masked else {}
    for key in values:  # in place, as the module around this one holds the same dict, and in the order of the entries
        value, name = state.pop(key), key.removesuffix("_orig")
        if key.endswith("_orig") and name in masked:
            state[name] = value.detach() * (values[f"{name}_mask"] >= 0.5)  # an average of masks may be blurred
        elif key.removesuffix("_mask") not in masked:
            state[key] = value


def _match(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Give a state dict the masks of the module that fit, and the module the masks that the state dict has."""
    for name, (owner, own) in masked_parameters(module).items():
        value: Any = state.get(prefix + name)
        mask = owner.get_buffer(f"{own}_mask")
        fits = isinstance(value, Tensor) and value.shape == mask.shape
        if fits and not bool((value.to(mask.device) != 0)[mask == 0].any()):
            state[f"{prefix}{name}_orig"], state[f"{prefix}{name}_mask"] = state.pop(prefix + name), mask.clone()
    match_masks(
        module, {name.removeprefix(prefix): value for name, value in state.items() if isinstance(value, Tensor)}
    )


def _refresh(module: nn.Module, incompatible: object) -> None:
    refresh_masked(module)


def averaged_modules(trainer: Trainer) -> list[LightningModule]:
    """Return the averaged copies of the module that the trainer's callbacks keep."""
    averages = [callback._average_model for callback in _averaging(trainer)]
    return [average.module for average in averages if average is not None]


def _averaging(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.callbacks if is_lightning(callback, "WeightAveraging")]


@contextmanager
def averaging_done(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint hold the module although the trainer averages weights; the average is in it by then."""
    averages = [(callback, callback._average_model) for callback in _averaging(trainer)]
    for callback, _ in averages:
        callback._average_model = None
    try:
        yield
    finally:
        for callback, average in averages:
            callback._average_model = average


def described(pruning: Mapping[str, Any]) -> str:
    """Say in words what an epoch has pruned, of an entry of `PruningCallback.history`."""
    layers = ", ".join(f"{name} {wide} to {left}" for name, (wide, left) in pruning["widths"].items() if left < wide)
    epoch, achieved = pruning["epoch"] + 1, pruning["achieved"]  # as the lines of the training count
    said = f"Epoch {epoch}: {achieved:.1%} of the neurons of the prunable layers are pruned"
    return f"{said}: {layers}" if layers else said


def log_pruning(
    trainer: Trainer, evaluation: Evaluation, files: Mapping[str, Path], *, dense_path: Path | None
) -> None:
    """Log the numbers of a pruning to every logger, and tables, histograms, picture and files where they fit."""
    result = evaluation.result
    for logger in trainer.loggers:
        logger.log_metrics(scalars(evaluation), step=trainer.global_step)
        if is_lightning(logger, "TensorBoardLogger"):
            for name, score in result.scores.items():
                logger.experiment.add_histogram(f"centrality/{name}", score.cpu(), trainer.global_step)
        elif is_lightning(logger, "WandbLogger"):
            import wandb

            session: Any = logger.experiment
            rows = [[name, wide, narrow] for name, (wide, narrow) in result.widths.items()]
            content: dict[str, Any] = {
                "pruning/layers": wandb.Table(columns=["layer", "before", "after"], data=rows),
                "pruning/picture": wandb.Image(str(files["picture"])),
            }
            content |= {f"centrality/{name}": wandb.Histogram(score.tolist()) for name, score in result.scores.items()}
            session.log(content)
            metadata = {"recipe": result.recipe.plain(), "achieved": result.achieved, "source": str(dense_path)}
            if dense_path is not None and dense_path.is_file():
                dense = wandb.Artifact(f"dense-{session.id}", type="model")
                dense.add_file(str(dense_path))
                session.log_artifact(dense)
                if not session.offline:
                    session.use_artifact(dense)
            path = files["pruned network"]
            pruned = wandb.Artifact(f"{path.stem}-{session.id}", type="pruned-model", metadata=metadata)
            pruned.add_file(str(path))
            session.log_artifact(pruned)
        logger.save()
