"""From a config to the objects that it asks for: trainer, module and data."""

from __future__ import annotations

import copy
import dataclasses
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned
from mlprank.models.classifier import ImageClassifier
from mlprank.models.registry import check_state
from mlprank.training.explain import root_of
from mlprank.training.loggers import place_loggers, prepare_wandb
from mlprank.training.networks import fill, weights_of
from mlprank.training.parser import (
    Parser,
    Request,
    check_described,
    choose_module,
    find_checkpoint,
    full_help,
    load_config,
    module_of,
    parse,
    trainer_parser,
    with_checkpoint,
)
from mlprank.training.runs import WholeCheckpointIO, beside_checkpoint
from mlprank.utils.errors import OptionError, did_you_mean

_OF_FIT = ("trainer", "weights_only", "ckpt_path", "config")
"""What a config of `mlprank fit` says of the training."""


@dataclass(frozen=True)
class Built:
    """What a config makes.

    Attributes:
        trainer: The trainer.
        model: The module, initialised from the config's seed.
        datamodule: The data.
        loggers: Those that the config asks for; the trainer has them only where it was asked to.
    """

    trainer: Trainer
    model: Any
    datamodule: Any
    loggers: tuple[Logger, ...]


@dataclass(frozen=True)
class Parts:
    """Module and data, and what a trainer is to be made of.

    Attributes:
        model: The module.
        data: The data.
        trainer: Arguments of the trainer; callbacks, plugins and loggers are lists of instances.
        others: The other options of the command.
    """

    model: LightningModule
    data: LightningDataModule
    trainer: dict[str, Any]
    others: Namespace


def build_parts(command: str, values: Mapping[str, Any], directory: Path | None) -> Parts:
    """Seed everything and build what a config describes, except for the trainer.

    Args:
        command: The command whose config it is.
        values: The config, in plain types.
        directory: Where loggers write that were given no place of their own; None leaves them alone.

    Returns:
        The parts.

    Raises:
        ValueError: If an argument is out of range, or network and data do not fit.
    """
    module = module_of(values)
    parser = trainer_parser(command, module)
    options = parser.parse_plain(values)
    if directory is not None:
        place_loggers(options.trainer.logger, directory)
        if "WandbLogger" in str(options.trainer.logger):
            prepare_wandb()
    seed(options.seed_everything)
    built = instantiate(parser, options)
    describe(built.model, values)
    check_fit(built.model, built.get("data"))
    trainer = {**vars(built.trainer)}
    for name in ("callbacks", "plugins"):
        trainer[name] = _listed(trainer.get(name))
    others = Namespace(**{key: value for key, value in vars(built).items() if key not in ("model", "data", "trainer")})  # type: ignore[no-untyped-call]
    return Parts(built.model, built.get("data"), trainer, others)


def instantiate(parser: Parser, options: Namespace) -> Namespace:
    """Build the objects of parsed options; what is out of range is told as its class tells it.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If it has a wrong type.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="jsonargparse")
            built: Namespace = parser.arguments.instantiate(options)
            return built
    except (ValueError, TypeError) as error:
        reason = root_of(error)
        if reason is error:
            raise
        raise reason from None


def seed(value: bool | int) -> None:
    """Seed everything; `True` draws a seed, `False` leaves the generators alone."""
    if value is not False:
        seed_everything(None if value is True else value, workers=True, verbose=False)


def describe(model: LightningModule, values: Mapping[str, Any]) -> None:
    """Let checkpoints of the image classifier describe the network as the config does."""
    if isinstance(model, ImageClassifier) and "model" in values["model"]:
        described = {name: values["model"][name] for name in ("model", "optimizer", "lr_scheduler")}
        model.save_hyperparameters({**model.hparams, **described}, logger=False)  # the config is logged whole


def check_fit(model: LightningModule, data: object) -> None:
    """Refuse a network that does not fit the data.

    Raises:
        ValueError: If the size of the images or the number of classes differs.
    """
    network, shape = getattr(model, "model", model), getattr(data, "in_shape", None)
    features, classes = getattr(network, "in_features", None), getattr(data, "num_classes", None)
    num_classes = getattr(model, "num_classes", None)
    if shape is not None and isinstance(features, int) and shape[0] * shape[1] * shape[2] != features:
        raise ValueError(
            f"{type(network).__name__} takes in_features={features}, but {type(data).__name__} gives images of "
            f"{'×'.join(map(str, shape))} = {shape[0] * shape[1] * shape[2]} values; give other data with --data, or "
            "another network"
        )
    if classes is not None and isinstance(num_classes, int) and classes > num_classes:
        raise ValueError(
            f"{type(network).__name__} has num_classes={num_classes}, but {type(data).__name__} has {classes} classes; "
            "give other data with --data, or another network"
        )


def with_weights(model: LightningModule, path: Path) -> LightningModule:
    """Return a module with the weights of a checkpoint: dense, masked or narrow, of the module or of its network.

    Raises:
        ValueError: If the checkpoint is of another network; layer and sizes are named.
    """
    content = read_checkpoint(path)
    state = dict(weights_of(content, path))
    if all(name.startswith("module.") for name in state):  # DistributedDataParallel's names
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = content.get("mlprank")
    if isinstance(own, Mapping) and "slices" in own and not isinstance(model, ImageClassifier):
        narrow = load_pruned(path, model)
        assert isinstance(narrow, LightningModule)
        return narrow
    if not isinstance(model, ImageClassifier):
        if set(state) <= set(model.state_dict()):
            model.on_load_checkpoint({**content, "state_dict": state})
        fill(model, state, path)
        return model
    if not set(state) & set(model.state_dict()) and set(state) & set(model.model.state_dict()):
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        if isinstance(own, Mapping) and "slices" in own:
            slices = {f"model.{name}": kept for name, kept in own["slices"].items()}
            own = {**own, "slices": slices, "biases": [f"model.{name}" for name in own.get("biases", ())]}
    content = {**content, "state_dict": state, **({} if own is None else {"mlprank": own})}
    model.on_load_checkpoint(content)
    check_state(model.state_dict(), state, source=str(path))
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class Opened:
    """A checkpoint with what a command needs to work on it.

    Attributes:
        options: The parsed options of the command.
        checkpoint: The checkpoint.
        module: The module with its weights, in evaluation mode, on the device that was asked for.
        data: The data, set up.
        values: The options as plain types, for `config.yaml`.
    """

    options: Namespace
    checkpoint: Path
    module: LightningModule
    data: Any
    values: dict[str, Any]


def open_checkpoint(
    command: str, arguments: Sequence[str], add_options: Callable[[LightningArgumentParser], None]
) -> Opened:
    """Parse the command line of a command that works on a checkpoint, and open the checkpoint.

    The checkpoint is read first, so that what is wrong with it is said before options are asked for. Model and data are
    those that were typed, else of the config that was typed, else of the config beside the checkpoint, else what the
    checkpoint says of itself. What a config of `mlprank fit` says of the training is passed over; where it has a
    PruningCallback, its arguments are the defaults of options of the same names.

    Args:
        command: The command.
        arguments: Its options.
        add_options: Adds the options of the command to a parser that has `--ckpt_path`, `--accelerator`, `--model` and
            `--data` already.

    Returns:
        Options, module and data.

    Raises:
        OptionError: If an option is unknown, missing or has a wrong value.
        ValueError: If the checkpoint is damaged or of another network.
        FileNotFoundError: If a config or the checkpoint does not exist.
    """
    request = Request.of(arguments)
    if request.asks_help:
        parser = Parser(command, choose_module(request)[0])
        _add_all(parser, add_options)
        print(full_help(parser.arguments), end="")
        raise SystemExit(0)
    checkpoint = find_checkpoint(command, request)
    fitted = request.configs[-1:] or [str(path) for path in [beside_checkpoint(checkpoint)] if path is not None]
    request, taken = with_checkpoint(request, checkpoint, whole=False)
    module, request = choose_module(request)
    parser = Parser(command, module)
    _add_all(parser, add_options)
    known = {action.dest.partition(".")[0] for action in parser.arguments._actions}
    configs = [
        {key: value for key, value in load_config(text).items() if key not in _OF_FIT} for text in request.configs
    ]
    defaults = {key: value for text in fitted for key, value in of_callback(load_config(text)).items() if key in known}
    inline = tuple(yaml.safe_dump(config, sort_keys=False) for config in [defaults, *configs] if config)
    options = parser.parse(dataclasses.replace(request, configs=inline))
    check_described(request, module)
    device = device_of(options.accelerator)
    if taken is not None:
        print(f"mlprank {command}: takes model and data from {taken}", flush=True)
    values = parser.plain(options)
    seed(options.seed_everything)
    built = instantiate(parser, options)
    describe(built.model, values)
    data = built.get("data")
    check_fit(built.model, data)
    opened = with_weights(built.model, checkpoint).to(device).eval()
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return Opened(built, checkpoint, opened, data, {**values, "ckpt_path": None})


def _add_all(parser: Parser, add_options: Callable[[LightningArgumentParser], None]) -> None:
    add_options(parser.arguments)
    parser.arguments.add_argument("--ckpt_path", type=str, default=None, help="The checkpoint, dense or pruned.")
    parser.arguments.add_argument("--accelerator", type=str, default="cpu", help="Where to compute: cpu, gpu or auto.")
    parser.add_module_and_data()


def of_callback(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config of `mlprank fit` says to its PruningCallback."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    for entry in _listed(callbacks):
        if isinstance(entry, Mapping) and str(entry.get("class_path", "")).rpartition(".")[2] == "PruningCallback":
            return dict(entry.get("init_args") or {})
    return {}


def device_of(accelerator: str) -> torch.device:
    """Return the device that an accelerator's name stands for.

    Args:
        accelerator: "cpu", "gpu", "cuda", "mps", or "auto" for the best that there is; a number chooses one, as in "cuda:1".

    Raises:
        OptionError: If there is no such device here.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    name, _, index = accelerator.partition(":")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    best = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind = {"gpu": "cuda" if best == "cpu" else best, "auto": best}.get(name, name)
    if kind not in available:
        words = ["cpu", "gpu", "cuda", "mps", "auto"]
        raise OptionError(f"accelerator={accelerator!r} is not one of {', '.join(words)}{did_you_mean(name, words)}")
    if not available[kind]:
        raise OptionError(f"accelerator={accelerator!r}: there is no such device here; give cpu, or auto")
    if index and not (index.isdecimal() and kind == "cuda" and int(index) < torch.cuda.device_count()):
        raise OptionError(f"accelerator={accelerator!r}: there is no device {index!r} of that kind here")
    return torch.device(f"{kind}:{index}" if index else kind)


class TrialBuilder:
    """Parses and builds trials as `mlprank fit` does, as often as asked.

    Attributes:
        environment: Where the trainers believe to run; None lets Lightning find out.
    """

    def __init__(self) -> None:
        self.environment: ClusterEnvironment | None = None

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse options and configs as `mlprank fit` does.

        Args:
            arguments: The options, without the command.

        Returns:
            The whole resolved config in plain types.

        Raises:
            ValueError: If an option is unknown or has a wrong value; the text names it.
        """
        return dict(parse("fit", arguments).values)

    def build(
        self,
        config: Mapping[str, Any],
        directory: Path,
        *,
        callbacks: Sequence[Callback] = (),
        trainer: Mapping[str, Any] | None = None,
    ) -> Built:
        """Seed everything and build what a resolved config asks for: silent, and writing nowhere by itself.

        Args:
            config: What `parse` returned.
            directory: Where loggers write; the trainer's root.
            callbacks: To add to the config's.
            trainer: Options of the Trainer that override the config's.

        Returns:
            Trainer, module and data.

        Raises:
            ValueError: If an argument is out of range or network and data do not fit.
        """
        parts = build_parts("fit", copy.deepcopy(dict(config)), directory)
        environment = [] if self.environment is None else [self.environment]
        ours: dict[str, Any] = {
            "default_root_dir": str(directory),
            "callbacks": [*parts.trainer["callbacks"], *callbacks],
            "plugins": [*parts.trainer["plugins"], WholeCheckpointIO(), *environment],
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        loggers = tuple(logger for logger in _listed(parts.trainer["logger"]) if isinstance(logger, Logger))
        return Built(Trainer(**{**parts.trainer, **ours, **(trainer or {})}), parts.model, parts.data, loggers)


@contextmanager
def interruptible(trainer: Trainer, *, kept: str = "") -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C into a KeyboardInterrupt.

    Args:
        trainer: The trainer that runs within the block.
        kept: What the interrupt is to say.

    Raises:
        KeyboardInterrupt: If the user interrupted the run.
    """
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt(kept) from None


def _listed(value: Any) -> list[Any]:
    """None as no item, one item as a list of it."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
