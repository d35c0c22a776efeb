"""Which of the options is wrong, and what would be right: found by trying each by itself, not in the parser's words."""

import collections.abc
import inspect
import itertools
import re
import traceback
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Literal, NoReturn, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from mlprank.models import MODELS
from mlprank.utils.errors import OptionError, did_you_mean
from mlprank.utils.registry import imported

Option = tuple[str, str | None]
"""A dotted option and what was typed for it; None where nothing was."""

_PLAIN = (Tensor, bool, int, float, str, bytes, type(None), list, tuple, dict, set)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


class _Typed(str):
    """A value as it was typed."""


def explain(
    parser: ArgumentParser, options: Sequence[Option], error: Exception, configs: Iterable[Mapping[str, Any]] = ()
) -> NoReturn:
    """Raise for the first option that a parser does not take; where each is right by itself, in the parser's words."""
    checker, typed = _Checker(), ((key, ... if text is None else _Typed(text)) for key, text in options)
    for key, value in itertools.chain(*(config.items() for config in configs), typed):
        checker.check(parser, key, value)
    if lacking := re.search(r'Parser key "([\w.]+)".*required: (\w+)', str(error), re.DOTALL):
        key, name = lacking.groups()
        owner = checker.chosen[key].__name__ if key in checker.chosen else key
        raise OptionError(f"{owner} needs {name}; give it with --{key}.{name}") from error
    raise OptionError(f"the options do not fit together: {' '.join(str(error).split())[:300]}") from error


def text_value(text: str | None) -> Any:
    """Return what YAML makes of a text; the text itself where it is not YAML."""
    try:
        return text if text is None else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return text


class _Checker:
    """Tries options one by one, and remembers the classes that are chosen on the way."""

    def __init__(self) -> None:
        self.chosen: dict[str, type] = {}

    def check(self, parser: ArgumentParser, key: str, value: Any, place: str = "", cls: type | None = None) -> None:
        """Check one option of a parser, which may be that of a class, chosen by the option that `place` begins with."""
        actions = [action for action in parser._actions if not f".{action.dest}".endswith(".help")]
        groups, key = {action.dest.rpartition(".")[0] for action in actions}, key.removesuffix("+")
        known = {action.dest: getattr(action, "_typehint", None) for action in actions if action.dest not in groups}
        owner = next((dest for dest in known if key == dest or (key.startswith(f"{dest}.") and known[dest])), None)
        if owner is None:
            names, first = list(dict.fromkeys(dest.partition(".")[0] for dest in known)), key.partition(".")[0]
            within = next((dest for dest in known if dest.startswith(f"{key}.")), None)
            if cls is not None and first not in names:
                hint = did_you_mean(first, names)
                raise OptionError(f"{cls.__name__} has no option {first!r}{hint}; it has {', '.join(names)}")
            if isinstance(value, Mapping) and value:
                for name, inner in value.items():
                    self.check(parser, f"{key}.{name}", inner, place, cls)
                return
            if within:
                example = f"such as --{place}{within}"
                raise OptionError(f"{place}{key} is a group of options; give one of them, {example}")
            raise OptionError(f"there is no option {place + key!r}{did_you_mean(key, known)}")
        words = key.removeprefix(owner).split(".")[1:]
        name = ".".join(word for word in words if word not in ("init_args", "dict_kwargs"))
        option = place + owner
        if (not words or name == "class_path") and known[owner] is not None:
            self._value(option, known[owner], value)
        elif name:
            default: Any = parser.get_default(owner)
            if hasattr(default, "get") and default.get("class_path"):
                default = find_class(str(default["class_path"]), _bases(known[owner]), owner)
            chosen = self.chosen.get(option, default)
            if not isinstance(chosen, type):
                raise OptionError(f"there is no {option} that could have {name!r}; give --{option} before it")
            self._argument(chosen, name, value, f"{option}.")

    def _argument(self, cls: type, name: str, value: Any, place: str) -> None:
        """Check an argument of a class."""
        parser = ArgumentParser(exit_on_error=False)
        injected = {"self", "params", "optimizer", "args", "kwargs"} & set(inspect.signature(cls).parameters)
        parser.add_class_arguments(cls, fail_untyped=False, skip=injected)
        self.check(parser, name, value, place, cls)

    def _value(self, key: str, hint: Any, value: Any) -> None:
        """Check the value of a known option; `...` stands for none."""
        if value is ...:
            raise OptionError(f"{key} needs a value: {describe_type(hint)}")
        content, bases = text_value(value) if isinstance(value, _Typed) else value, _bases(hint)
        parser, takes = ArgumentParser(exit_on_error=False), True
        parser.add_argument("--value", type=hint)
        try:
            if isinstance(value, _Typed):
                parser.parse_args([f"--value={value}"])
            else:
                parser.parse_object({"value": value})
        except (ArgumentError, RecursionError):
            takes = False
        if bases and isinstance(content, str):
            with suppress(OptionError) if takes else nullcontext():  # it may be a word of another kind, such as a path
                self.chosen[key] = find_class(content, bases, key)
            return  # the arguments of a class are looked at with those of the others
        if bases and isinstance(content, Mapping):
            if "class_path" in content:
                self.chosen[key] = find_class(str(content["class_path"]), bases, key)
            arguments = content.get("init_args", {} if "class_path" in content else content)
            for argument, inner in (arguments or {}).items() if key in self.chosen else ():
                self._argument(self.chosen[key], str(argument), inner, f"{key}.")
        elif bases and isinstance(content, list):
            opened = [typing.get_args(part) if typing.get_origin(part) is list else (part,) for part in _parts(hint)]
            for item in content:
                self._value(key, Union[tuple(itertools.chain(*opened))], item)  # noqa: UP007  (made at run time)
        if not takes:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
            near = did_you_mean(content, words) if (words := _words(hint)) and isinstance(content, str) else ""
            raise OptionError(f"{key}: {shown} is not {describe_type(hint)}{near}")


def find_class(name: str, bases: Sequence[type], key: str) -> type[Any]:
    """Import the class that an import path or a short name stands for, a subclass of one of the `bases`.

    A short name is that of a class that is imported; of networks, of one of mlprank's. Errors name the option `key`.

    Examples:
        >>> find_class("torch.nn.Linear", [nn.Module], "model").__name__
        'Linear'
    """
    if "." in name:
        found = imported(key, name)
        if not isinstance(found, type) or not issubclass(found, tuple(bases)):
            raise OptionError(f"{key}: {name} is not a {' or '.join(base.__name__ for base in bases)}")
        return found
    known: dict[str, type] = dict(MODELS) if nn.Module in bases else {}
    rest = [] if known else list(bases)
    while rest:
        cls = rest.pop()
        known.setdefault(cls.__name__, cls)
        rest += type.__subclasses__(cls)
    if name not in known:
        raise OptionError(
            f"{key}: {name!r} is not a class that is known here{did_you_mean(name, sorted(known))}; another needs its "
            "import path, as in my_package.MyModule"
        )
    return known[name]


def describe_type(hint: Any) -> str:
    """Say in a few words what values a type takes.

    Examples:
        >>> describe_type(int | list[int] | None)
        'a whole number or a list such as [1, 2]'
    """
    kinds = [f"one of {', '.join(words)}"] if (words := _words(hint)) else []
    for part in _parts(hint):
        origin = typing.get_origin(part) or part
        if origin is collections.abc.Callable:
            kinds += [f"a {base.__name__}" for base in _bases(part)]
        elif not isinstance(origin, type) or origin in (type(None), Tensor):
            continue
        elif issubclass(origin, Mapping):
            kinds.append("a mapping such as {name: value}")
        elif issubclass(origin, Iterable) and typing.get_origin(part):
            kinds.append("a list such as [1, 2]")
        else:
            kinds.append(_KINDS.get(origin.__name__, f"a {origin.__name__}"))
    return " or ".join(dict.fromkeys(kinds))


def _parts(hint: Any) -> list[Any]:
    """The types of a union, those of unions in it too."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    return [leaf for part in typing.get_args(hint) for leaf in _parts(part)]


def _words(hint: Any) -> list[str]:
    """The words that a type takes."""
    return [str(word) for part in _parts(hint) if typing.get_origin(part) is Literal for word in typing.get_args(part)]


def _bases(hint: Any) -> list[type]:
    """The classes whose subclasses a type takes by name."""
    found: list[type] = []
    for part in _parts(hint):
        origin, inner = typing.get_origin(part), typing.get_args(part)
        if origin is collections.abc.Callable:
            found += _bases(inner[-1])
        elif isinstance(origin, type) and issubclass(origin, Iterable):
            found += [base for each in inner for base in _bases(each)]
        elif isinstance(part, type) and not issubclass(part, _PLAIN) and not getattr(part, "_is_protocol", False):
            found.append(part)
    return found


def root_of(error: Exception) -> Exception:
    """Return what went wrong in the class that was being built, without the parser's account of what it has tried."""
    link: BaseException | None = error
    while link is not None:
        frames = [frame for frame, _ in traceback.walk_tb(link.__traceback__)]
        where = frames[-1].f_globals.get("__name__", "") if frames else ""
        if isinstance(link, (ValueError, TypeError, ImportError, OSError)) and not where.startswith("jsonargparse"):
            return link
        link = link.__cause__ or link.__context__
    return error
