"""From a config to the objects that it asks for: trainer, module and data."""

import math
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned
from mlprank.models import fill, weights_of
from mlprank.models.classifier import ImageClassifier
from mlprank.training.explain import root_of
from mlprank.training.loggers import place_loggers, prepare_wandb
from mlprank.training.parser import AddOptions, Config, Parser, module_of, parse, trainer_parser
from mlprank.training.runs import WholeCheckpointIO
from mlprank.utils.errors import OptionError, first_line


@dataclass(frozen=True)
class Built:
    """What a config makes."""

    trainer: Trainer  # the trainer
    model: Any  # the module, initialised from the config's seed
    datamodule: Any  # the data
    loggers: tuple[Logger, ...] = ()  # of a trial: those that the config asks for, which its trainer has not


def build_parts(
    command: str, values: Mapping[str, Any], directory: Path | None
) -> tuple[LightningModule, LightningDataModule, dict[str, Any]]:
    """Seed everything and build what a config describes; of the trainer its arguments, with lists of instances."""
    parser = trainer_parser(command, module_of(values))  # type: ignore[arg-type]
    options = parser.parse_plain(values)
    if directory is not None:
        place_loggers(options.trainer.logger, directory)
        if "WandbLogger" in str(options.trainer.logger):
            prepare_wandb()
    built = _instantiate(parser, options, values)
    listed = {name: _listed(built.trainer.get(name)) for name in ("callbacks", "plugins")}
    return built.model, built.get("data"), {**vars(built.trainer), **listed}


def _instantiate(parser: Parser, options: Namespace, values: Mapping[str, Any]) -> Namespace:
    """Seed everything and build the objects of parsed options; what is out of range is told as its class tells it."""
    if options.seed_everything is not False:
        drawn = options.seed_everything is True
        seed_everything(None if drawn else options.seed_everything, workers=True, verbose=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="jsonargparse")
            built: Namespace = parser.arguments.instantiate(options)
    except (ValueError, TypeError) as error:
        reason = root_of(error)
        if reason is error:
            raise
        raise reason from None
    if isinstance(built.model, ImageClassifier) and "model" in values["model"]:
        # Checkpoints of the image classifier describe the network as the config does; the config is logged whole.
        described = {name: values["model"][name] for name in ("model", "optimizer", "lr_scheduler")}
        built.model.save_hyperparameters({**built.model.hparams, **described}, logger=False)
    model, data = built.model, built.get("data")
    network, shape = getattr(model, "model", model), getattr(data, "in_shape", None)
    features, num_classes = getattr(network, "in_features", None), getattr(model, "num_classes", None)
    classes, problem = getattr(data, "num_classes", None), ""
    if shape is not None and isinstance(features, int) and math.prod(shape) != features:
        given = f"images of {'×'.join(map(str, shape))} = {math.prod(shape)} values"
        problem = f"takes in_features={features}, but {type(data).__name__} gives {given}"
    elif classes is not None and isinstance(num_classes, int) and classes > num_classes:
        problem = f"has num_classes={num_classes}, but {type(data).__name__} has {classes} classes"
    if problem:
        raise ValueError(f"{type(network).__name__} {problem}; give other data with --data, or another network")
    return built


def with_weights(model: LightningModule, path: Path) -> LightningModule:
    """Return a module with the weights of a checkpoint: dense, masked or narrow, of the module or of its network."""
    content = read_checkpoint(path)
    state = weights_of(content, path)
    own: Any = content.get("mlprank")
    is_narrow = isinstance(own, Mapping) and "slices" in own
    if all(name.startswith("module.") for name in state):  # DistributedDataParallel's names
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not isinstance(model, ImageClassifier):
        if is_narrow:
            narrow: Any = load_pruned(path, model)
            return narrow  # type: ignore[no-any-return]
        if set(state) <= set(model.state_dict()):
            model.on_load_checkpoint({**content, "state_dict": state})
        fill(model, state, path)
        return model
    if not set(state) & set(model.state_dict()) and set(state) & set(model.model.state_dict()):
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        if is_narrow:
            slices = {f"model.{name}": kept for name, kept in own["slices"].items()}
            own = {**own, "slices": slices, "biases": [f"model.{name}" for name in own.get("biases", ())]}
    model.on_load_checkpoint({**content, "state_dict": state, **({} if own is None else {"mlprank": own})})
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class Opened:
    """A checkpoint with what a command needs to work on it."""

    config: Config
    checkpoint: Path
    options: Namespace  # with instances in place of classes
    module: LightningModule  # in evaluation mode, on the device that was asked for
    data: Any  # set up


def open_checkpoint(command: str, arguments: Sequence[str], add_options: AddOptions) -> Opened:
    """Parse the command line of a command that works on a checkpoint, as `parse` does, and open the checkpoint."""
    config = parse(command, arguments, add_options)
    device = device_of(config.options.accelerator)
    if config.taken is not None:
        print(f"mlprank {command}: takes model and data from {config.taken}", flush=True)
    built = _instantiate(config.parser, config.options, config.values)
    assert config.checkpoint is not None
    module, data = with_weights(built.model, config.checkpoint).to(device).eval(), built.get("data")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return Opened(config, config.checkpoint, built, module, data)


def device_of(accelerator: str) -> torch.device:
    """Return the device of "cpu", "gpu", "cuda", "mps" or "auto", the best that there is; "cuda:1" chooses one."""
    name, _, index = accelerator.partition(":")
    if index and not index.isdecimal():
        raise OptionError(f"accelerator={accelerator!r}: {index!r} is not the number of a device, as 0 is in cuda:0")
    try:
        return Fabric(accelerator=name, devices=[int(index)] if index else 1).device
    except (ValueError, TypeError, RuntimeError) as error:
        raise OptionError(f"accelerator={accelerator!r}: {first_line(error)}") from error


def build_trial(
    config: Mapping[str, Any],
    directory: Path,
    *,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
) -> Built:
    """Seed everything and build what `parse_fit` returned: silent, and writing nowhere by itself.

    Loggers write to the directory, the trainer's root. `callbacks` are added to the config's, and options of the
    `trainer` override them.
    """
    model, data, given = build_parts("fit", config, directory)
    ours: dict[str, Any] = {
        "default_root_dir": str(directory),
        "callbacks": [*given["callbacks"], *callbacks],
        "plugins": [*given["plugins"], WholeCheckpointIO()],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loggers = tuple(logger for logger in _listed(given["logger"]) if isinstance(logger, Logger))
    return Built(Trainer(**{**given, **ours, **(trainer or {})}), model, data, loggers)


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C into a KeyboardInterrupt."""
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _listed(value: Any) -> list[Any]:
    """None as no item, one item as a list of it."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
