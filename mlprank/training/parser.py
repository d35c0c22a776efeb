"""From a command line to a checked config: what was typed, configs, and what a checkpoint says of itself."""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

import mlprank.datamodules.sets
import mlprank.models.schedule  # noqa: F401  (short class names work for what is imported)
from mlprank.artifact.record import is_plain
from mlprank.artifact.spec import class_path_of, resolve_class
from mlprank.callbacks import PruningCallback
from mlprank.models import MODELS, recognise, weights_of
from mlprank.models.classifier import ImageClassifier
from mlprank.training import runs
from mlprank.training.explain import Option, describe_type, explain, find_class, text_value
from mlprank.training.loggers import rows_of
from mlprank.utils.errors import OptionError
from mlprank.utils.files import load_config

AddOptions = Callable[[LightningArgumentParser], None]


@dataclass
class Request:
    """A command line, taken apart: what is typed wins over the configs, wherever it stands."""

    contents: list[dict[str, Any]]  # what the configs hold, in order
    options: list[Option]  # with what was typed for them, None where nothing was, in order
    first_config: Path | None = None  # which gives its runs their name

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Request:
        """Take a command line apart.

        Examples:
            >>> Request.of(["--trainer.max_epochs", "1", "--config={trainer: {devices: 1}}"]).options
            [('trainer.max_epochs', '1')]
        """
        request, rest = cls([], []), list(arguments)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                raise OptionError(f"{word!r} is not an option; options start with --, as in --ckpt_path {word}")
            key, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            while not equals and rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            if key != "config":
                given = f"[{', '.join(values)}]" if len(values) > 1 else values[0] if values else None
                request.options.append((key, given))
            elif values:
                request.contents += map(load_config, values)
                request.first_config = request.first_config or Path(values[0])
            else:
                raise OptionError("--config needs a value: a file, or a name that `mlprank configs` lists")
        return request

    def typed(self, key: str) -> str | None:
        """Return what was typed for an option, the last where it was typed twice; None where it was not."""
        return next((value for name, value in reversed(self.options) if name == key), None)


@dataclass(frozen=True)
class Config:
    """What a command is to do, parsed and checked; nothing has been built."""

    command: str  # the command
    parser: LightningArgumentParser  # what has parsed it
    options: Namespace  # every option with its value
    values: Mapping[str, Any]  # the same in plain types; what a run directory keeps as `config.yaml`
    base: Path  # directory of the runs of this config
    checkpoint: Path | None = None  # the checkpoint to start from, if there is one
    resumed: Path | None = None  # the run directory that goes on, if one does
    goes_on: bool = False  # whether a training goes on from the checkpoint, which holds more than weights
    rows: Sequence[Mapping[str, float]] = ()  # the metrics of the part of the run that the checkpoint ends
    taken: Path | None = None  # the config beside the checkpoint that model and data were taken from, if they were


@functools.cache
def command_parser(
    command: str, *, foreign: bool = False, add_options: AddOptions | None = None
) -> LightningArgumentParser:
    """Return the parser of a command, made once: it takes a tenth of a second.

    `foreign` is for someone's LightningModule in place of the image classifier. `add_options` adds the options of a
    command that works on a checkpoint; None stands for Trainer's commands.
    """
    parser = LightningArgumentParser(prog=f"mlprank {command}", allow_abbrev=False, exit_on_error=False, description="")
    text = "A config: a file, or a name that `mlprank configs` lists."
    parser.add_argument("-c", "--config", action="config", help=text)
    text = "Seed of initialisation, shuffling and augmentation; true draws one."
    parser.add_argument("--seed_everything", type=bool | int, default=0, help=text)
    if add_options is None:
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({"trainer.enable_model_summary": False})
    else:
        add_options(parser)
        parser.add_argument("--ckpt_path", type=str, default=None, help="The checkpoint, dense or pruned.")
        parser.add_argument("--accelerator", type=str, default="cpu", help="Where to compute: cpu, gpu or auto.")
    module = LightningModule if foreign else ImageClassifier
    parser.add_lightning_class_args(module, "model", subclass_mode=foreign, required=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser.set_defaults({"data": {"class_path": "mlprank.datamodules.DigitsDataModule"}})
    if add_options is None:
        objects = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        parser.add_method_arguments(Trainer, command, skip=objects)
    return parser


def parse(command: str, arguments: Sequence[str], add_options: AddOptions | None = None) -> Config:
    """Parse and check a command line; nothing is built or written.

    The checkpoint is read first, so that what is wrong with it is said before options are asked for. Model and data are
    those that were typed, else of the config that was typed, else of the config beside the checkpoint, else what the
    checkpoint says of itself.

    A command that works on a checkpoint adds its options to a parser by `add_options`. What a config says of the
    training is passed over then; where it has a PruningCallback, its arguments are defaults of options of the same
    names.
    """
    request = Request.of(arguments)
    base, resumed, taken, checkpoint = runs_of(request), None, None, None
    content: Mapping[str, Any] = {}
    fitted = request.contents[-1:]
    given = request.typed("ckpt_path")
    asks_only = any(key.rpartition(".")[2] in ("help", "print_config") for key, _ in request.options)
    if not asks_only and (command != "fit" or given is not None):
        if given is None:
            raise OptionError(f"mlprank {command} needs --ckpt_path: a file, or `best` or `last` of the newest run")
        checkpoint = runs.find_checkpoint(base, given, config=request.first_config)
        resumed = checkpoint.parent.parent if given == "last" and command == "fit" else None
        content = runs.read_trained(checkpoint)
        beside = runs.beside_checkpoint(checkpoint)
        if request.first_config is None:
            fitted = [] if beside is None else [load_config(str(beside))]
            taken = _add_checkpoint(request, checkpoint, content, beside, whole=command == "fit")
    foreign = _choose_module(request)
    parser = command_parser(command, foreign=foreign, add_options=add_options)
    if any(key == "help" for key, _ in request.options):
        print(full_help(parser), end="")
        raise SystemExit(0)
    if add_options is None:
        _complete(request)
    else:
        known = {action.dest.partition(".")[0] for action in parser._actions}
        recipes = [entry.get("init_args") or {} for content in fitted for entry in _pruning_callbacks(content)]
        defaults = {key: value for key, value in (recipes or [{}])[0].items() if key in known}
        of_fit = ("trainer", "weights_only", "ckpt_path", "config")  # what a config says of the training
        plain = [{key: value for key, value in each.items() if key not in of_fit} for each in request.contents]
        request.contents = [defaults, *plain]
    named = any(key.split(".")[:2] == ["model", "model"] or key == "model" for key, _ in request.options)
    if not (asks_only or named or any(each.get("model") for each in request.contents)):
        raise OptionError(
            "there is no network; give a config, as in --config quickstart, or --model MLP and its options, or "
            "--model my_package.MyModule"
        )
    configs = [each for each in request.contents if each]
    words = [f"--config={yaml.safe_dump(each, sort_keys=False)}" for each in configs]
    words += [f"--{key}" if value is None else f"--{key}={value}" for key, value in request.options]  # typed wins
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of the parser's that a user cannot act on
            options = parser.parse_args(words)
    except (ArgumentError, RecursionError) as error:
        explain(parser, request.options, error, configs)
    values = {**yaml.safe_load(parser.dump(options, skip_unset=False)), "ckpt_path": None}  # a saved config starts anew
    goes_on, rows = command == "fit" and "optimizer_states" in content, rows_of(content, resumed) if resumed else ()
    return Config(command, parser, options, values, base, checkpoint, resumed, goes_on, rows, taken)


def parse_fit(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse options and configs as `mlprank fit` does; return the whole resolved config in plain types."""
    return dict(parse("fit", arguments).values)


def runs_of(request: Request) -> Path:
    """Return the directory of a config's runs: `trainer.default_root_dir`, else `runs/` and the config's name."""
    trainers = [content["trainer"] for content in request.contents if isinstance(content.get("trainer"), Mapping)]
    given = [request.typed("trainer.default_root_dir"), *(trainer.get("default_root_dir") for trainer in trainers)]
    config = request.first_config
    usual = Path("runs") / (config.stem if config else "default")
    return Path(next((str(path) for path in given if path), usual))


def _add_checkpoint(
    request: Request, checkpoint: Path, content: Mapping[str, Any], beside: Path | None, *, whole: bool
) -> Path | None:
    """Add what a checkpoint says of its network, where no config was typed; return the config it was taken from.

    The config beside it counts `whole` for a training; an evaluation takes its model and data alone: callbacks, loggers
    and plugins of someone's run have no place there. Without one the checkpoint itself may record its module.
    """
    if beside is not None:
        saved = load_config(str(beside))
        if not whole:
            saved = {name: saved[name] for name in ("model", "data") if saved.get(name) is not None}
        for key, value in request.options:  # the user has named them
            if value is not None and key in ("model", "model.model", "data") and "." in value:
                find_class(value, [object], key)
        _check_classes(saved, beside)
        request.contents = [saved]
        typed_both = request.typed("model") is not None and request.typed("data") is not None
        return None if typed_both and not whole else beside
    recorded, own = content.get("hyper_parameters"), content.get("mlprank")
    hyper_parameters = dict(recorded) if isinstance(recorded, Mapping) else {}
    network = own.get("model") if isinstance(own, Mapping) else None
    name = request.typed("model")
    if name is not None and "model.model" not in dict(request.options):
        names = inspect.signature(find_class(name, [nn.Module], "model")).parameters
        plain = {key: value for key, value in hyper_parameters.items() if key in names and is_plain(value)}
        request.contents = [{"model": plain}] if plain else []
        return None
    model: dict[str, Any] = {}
    if isinstance(hyper_parameters.get("model"), Mapping):
        names = inspect.signature(ImageClassifier).parameters
        model = {key: value for key, value in hyper_parameters.items() if key in names}
    elif isinstance(network, Mapping):
        model = {"model": dict(network)}
    elif (known := recognise(weights_of(content, checkpoint))) is not None:
        model = {"model": {"class_path": class_path_of(known)}}
    _check_classes(model, checkpoint)
    request.contents = [{"model": model}] if model else []
    return None


def _choose_module(request: Request) -> bool:
    """Say whether someone's LightningModule is meant, and write the options so that the parser takes them.

    `--model my_pkg.MyModule` is someone's LightningModule. `--model my_pkg.Net` is a plain network for the image
    classifier, in short for `--model.model my_pkg.Net`, and its options come along.
    """
    models = [content["model"] for content in request.contents if isinstance(content.get("model"), Mapping)]
    named = [str(model["class_path"]) for model in models if model.get("class_path")]
    typed = request.typed("model")
    name = typed or (named[-1] if named else None)
    if name is None or name.endswith((".yaml", ".yml", ".json")):
        return False
    cls = find_class(name, [nn.Module], "model")
    is_module, own = issubclass(cls, LightningModule), inspect.signature(ImageClassifier).parameters

    def rewritten(config: dict[str, Any]) -> dict[str, Any]:
        model = config.get("model")
        if not isinstance(model, Mapping) or not model or (not is_module and set(model) & set(own)):
            return config
        described = model if "class_path" in model else {"class_path": class_path_of(cls), "init_args": dict(model)}
        return {**config, "model": described if is_module else {"model": described}}

    request.contents = [rewritten(content) for content in request.contents]
    if typed:
        names, options = inspect.signature(cls).parameters, request.options
        request.options = [("model" if is_module else "model.model", class_path_of(cls))]  # before its own options
        for key, value in options:
            group, _, argument = key.partition(".")
            word = argument.partition(".")[0]
            if group == "model" and word and not is_module and (word in names or word not in own):
                key = f"model.{key}"  # of the network, or at least not of the classifier around it
            request.options += [(key, value)] if key != "model" else []
    return is_module


def _check_classes(content: object, source: Path, option: str = "") -> None:
    """Refuse a file that names classes which would have to be imported: it was found, and not named by the user."""
    path = content.get("class_path") if isinstance(content, Mapping) else None
    if isinstance(path, str) and "." in path:
        try:
            resolve_class(path, object)
        except ValueError as error:
            typed = f", or --{option} {path}" if option in ("model", "data") else ""
            raise OptionError(
                f"{source} names {path}, which is imported only where you name it yourself: give --config "
                f"{source}{typed}"
            ) from error
    inner = content.items() if isinstance(content, Mapping) else enumerate(content if isinstance(content, list) else ())
    for key, value in inner:
        _check_classes(value, source, option or str(key))


def _complete(request: Request) -> None:
    """Complete short names, and give the fields of a recipe that were typed by themselves to the PruningCallback."""
    options: list[Option] = []
    for key, value in request.options:
        if key in ("model.model", "model.model.class_path") and value in MODELS:  # others have an `MLP`, too
            value = f"mlprank.models.{value}"
        options.append((key, value))
        name = str(value).rpartition(".")[2]
        if key.rstrip("+") == "trainer.logger" and name in ("CSVLogger", "TensorBoardLogger"):
            options.append(("trainer.logger.save_dir", "."))
    names = [name for name in inspect.signature(PruningCallback).parameters if name not in ("network", "dirpath")]
    fields = {key: value for key, value in options if key in names}
    classes = ("model.model", "model.optimizer", "model.lr_scheduler", "data")
    options = [(key, value) for key, value in options if key not in fields]
    options.sort(key=lambda typed: typed[0] not in classes)  # a class, then its options, wherever they stand
    entries = [entry for content in request.contents[::-1] for entry in _pruning_callbacks(content)]
    if fields and entries:
        entry = entries[0]
        entry["init_args"] = {**(entry.get("init_args") or {}), **{k: text_value(v) for k, v in fields.items()}}
    elif fields:
        options.append(("trainer.callbacks+", class_path_of(PruningCallback)))
        options += [(f"trainer.callbacks.{key}", value) for key, value in fields.items()]
    request.options = options


def _pruning_callbacks(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of PruningCallbacks in a config of `mlprank fit`."""
    trainer = content.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    return [e for e in entries if isinstance(e, dict) and str(e.get("class_path")).split(".")[-1] == "PruningCallback"]


def typed_network(arguments: Sequence[str]) -> tuple[nn.Module, list[str]]:
    """Build the network that `--model my_package.Net --model.width 64` describes."""
    typed: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        mine = word.partition("=")[0].split(".")[0] == "--model"
        (typed if mine else rest).append(word)
        typed += itertools.islice(words, 1) if mine and "=" not in word else ()
    request = Request.of(typed)
    cls = find_class(request.typed("model") or "", [nn.Module], "model")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(nn.Module, "model", required=True)
    options = [("model", class_path_of(cls)), *((key, value) for key, value in request.options if key != "model")]
    try:
        network: nn.Module = parser.instantiate(parser.parse_args([f"--{key}={value}" for key, value in options])).model
    except (ArgumentError, RecursionError) as error:
        explain(parser, options, error)
    return network, rest


def full_help(parser: ArgumentParser) -> str:
    """Return every option of a parser with its kind, its default and the first line of its description."""
    lines: list[str] = []
    group = ""
    for action in parser._actions:
        key, default = action.dest, action.default
        is_group = key in ("model", "trainer") and not hasattr(action, "_typehint")
        if is_group or key in ("help", "config") or key.endswith(".help") or action.help == argparse.SUPPRESS:
            continue
        if key.partition(".")[0] != group:
            group = key.partition(".")[0]
            lines += [""] if lines else []
        path = default.get("class_path") if isinstance(default, (Mapping, Namespace)) else None
        text = " ".join(str(action.help or "").split("%(")[0].split())
        if default not in (None, argparse.SUPPRESS):
            text += f" (default {path or getattr(default, '__name__', default)})"
        kind = describe_type(getattr(action, "_typehint", None))
        lines += [f"--{key} {kind}", *textwrap.wrap(text, 76, initial_indent="    ", subsequent_indent="    ")]
    lines += ["", "--data.help CLASS, --model.optimizer.help CLASS and so on show the options of a class"]
    return "\n".join(lines) + "\n"
