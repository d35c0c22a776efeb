"""The parser of the Lightning commands: short names that work, and errors that name the nearest right option."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlprank.models import MODELS
from mlprank.training.run_directories import beside_checkpoint
from mlprank.utils.errors import OptionError, did_you_mean

_NOISE = re.compile(
    r"^\s*(- )?(Does not validate against any of the Union|Subtypes: |Errors:|Given value( type)?: |"
    r"Expected a (<class 'NoneType'>|dot import path string)|Expected a path but |Expected a <class 'coll)"
)
_UNKNOWN_KEY = re.compile(r"(?i:does not accept option '|unrecognized arguments: --|option ')([\w.]+)")
_CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")
_KEY = re.compile(r'Parser key "([\w.]+)"')
_VALUE = re.compile(r"Expected a path but (.+?) either not accessible|Given value: (.+)")
_CHOICES = re.compile(r"Expected a typing\.Literal\[(.+?)\]")
_CHOSEN = re.compile(r"(?:Got|Given) value: (.+)")
_NOT_TYPED = ("NoneType", "list", "collections.abc.Iterable")
_BASES: tuple[type, ...] = (Callback, LightningDataModule, Logger, LRScheduler, Optimizer)
_NEEDS_PLACE = ("CSVLogger", "TensorBoardLogger")


class Parser(LightningArgumentParser):
    """Lightning's parser; what it cannot parse is an `OptionError` of a few lines, without the list of all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error with the nearest known option."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise OptionError(explain(message, known=_options(parser))) from ex


def explain(message: str, *, known: Iterable[str]) -> str:
    """Shorten the parser's message to what helps, and add the nearest known option to an unknown one.

    Args:
        message: What the parser says.
        known: The options of the command, dotted.

    Returns:
        The text for the user.
    """
    choices, chosen = _CHOICES.findall(message), _CHOSEN.search(message)
    if choices and chosen:
        return _wrong_choice(".".join(dict.fromkeys(_KEY.findall(message))), chosen.group(1), choices, message)
    unknown = _UNKNOWN_KEY.search(message)
    bases = {base.__name__ for base in _BASES}
    class_paths = [path for path in _CLASS_PATH.findall(message) if path.rpartition(".")[2] not in bases]
    if unknown is None:
        keys, value = _KEY.findall(message), _VALUE.search(message)
        if keys and value and "Problem with given class_path" not in message:
            return _wrong_value(".".join(dict.fromkeys(keys)), value.group(1) or value.group(2), message)
        text = "\n".join(line for line in message.splitlines() if line.strip() and not _NOISE.match(line))
        if "are required" in text and "model.model" in text:
            text += "; give a config, as in --config configs/quickstart.yaml, or --model.model=MLP and its options"
        return text or message
    key = unknown.group(1)
    if "is not accepted" in message and class_paths:
        names = _parameters(class_paths[-1])
        where = class_paths[-1].rpartition(".")[2]
        return f"{where} has no option {key!r}{did_you_mean(key, names)}; it has {', '.join(names)}"
    return f"there is no option {key!r}{_nearest_option(key, list(known))}"


def reason_of(error: Exception) -> Exception:
    """Return what went wrong while a class was built, without the parser's account of the types that it has tried.

    Args:
        error: What the parser raised.

    Returns:
        The error of the class, or `error` itself where the parser tells of none.
    """
    while str(error).startswith("Does not validate against any of the Union") and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__
    return error


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Complete the command line with what can be told from it.

    A network's short name becomes its path (torchvision has an `MLP` too), a logger of files gets a place, and where
    a checkpoint is given without a config, the config of its run is taken.
    """
    prepared = list(arguments)
    for index, argument in enumerate(prepared):
        key, equals, value = argument.partition("=")
        if not equals and index + 1 < len(prepared):
            value = prepared[index + 1]
        if key in ("--model.model", "--model.model.class_path") and value in MODELS:
            full = f"mlprank.models.{value}"
            prepared[index : index + (1 if equals else 2)] = [f"{key}={full}"]
    for index, argument in reversed(list(enumerate(prepared))):
        key, equals, value = argument.partition("=")
        if key.rstrip("+") == "--trainer.logger" and equals and value.rpartition(".")[2] in _NEEDS_PLACE:
            prepared.insert(index + 1, "--trainer.logger.save_dir=.")
    checkpoints = values_of(prepared, "--ckpt_path")
    if checkpoints and config_of(prepared) is None:
        config = beside_checkpoint(checkpoints[-1])
        if config is not None:
            prepared.insert(1, f"--config={config}")
    return prepared


def config_of(arguments: list[str]) -> Path | None:
    """Return the first config that the command line names, which gives its runs their name."""
    configs = values_of(arguments, "--config", "-c")
    return Path(configs[0]) if configs else None


def values_of(arguments: list[str], *keys: str) -> list[str]:
    """Return the values that the options were given, as `--key=value` or `--key value`, in order."""
    following = [*arguments[1:], ""]
    pairs = [(argument.partition("="), after) for argument, after in zip(arguments, following, strict=True)]
    return [value if equals else after for (key, equals, value), after in pairs if key in keys]


def _options(parser: LightningArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions]


def _wrong_choice(key: str, value: str, choices: list[str], message: str) -> str:
    """Say which words and types an option takes, and which word was meant."""
    words = list(dict.fromkeys(word.strip(" '\"") for choice in choices for word in choice.split(",")))
    types = "".join(f" and no {name}" for name in _types(message))
    return f"{key}: {value!r} is none of {', '.join(words)}{types}{did_you_mean(value, words)}"


def _wrong_value(key: str, value: str, message: str) -> str:
    """Say which types an option takes, or which class was meant."""
    types = _types(message)
    if types and not (types == ["bool"] and "Expected a dot import path" in message):
        return f"{key}: {value!r} is no {' or '.join(types)}"
    names = {*MODELS, *(cls.__name__ for base in _BASES for cls in _subclasses(base))}
    return f"{key}: {value!r} is no class that is known here{did_you_mean(value, names)}; another needs its import path"


def _types(message: str) -> list[str]:
    """Return the plain types that the parser would have taken."""
    types = re.findall(r"Expected an? <class '([\w.]+)'>", message)
    return [name for name in dict.fromkeys(types) if name not in _NOT_TYPED]


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def _nearest_option(key: str, known: list[str]) -> str:
    """Name the nearest option: of the same group where the group exists, else of the same last word."""
    hint = did_you_mean(key, known)
    group = key.rpartition(".")[0]
    if group:
        siblings = [option for option in known if option.rpartition(".")[0] == group]
        hint = did_you_mean(key, siblings) or hint
    return hint


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    return (
        []
        if cls is None
        else [p for p in inspect.signature(cls).parameters if p not in ("self", "params", "optimizer")]
    )
