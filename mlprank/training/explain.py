"""Which of the options is wrong, and what would be right: found by trying each by itself, not in the parser's words."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from mlprank.models import MODELS
from mlprank.utils.errors import did_you_mean, first_line

_PLAIN = (Tensor, bool, int, float, str, bytes, type(None), list, tuple, dict, set)
_INJECTED = frozenset({"self", "params", "optimizer", "args", "kwargs"})
_LONGEST = 60
_ARTICLES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def diagnose(
    parser: ArgumentParser, configs: Sequence[Mapping[str, Any]], options: Sequence[tuple[str, str | None]]
) -> str | None:
    """Find the first option that a parser does not take.

    Args:
        parser: The parser that has refused them all together.
        configs: What the configs hold, in order.
        options: Dotted options and what was typed for them, in order; None where nothing was.

    Returns:
        One line that names the option, what is wrong with it and what would be right; None where each is right by itself.
    """
    given: list[tuple[str, Any]] = [pair for config in configs for pair in _leaves(parser, config)]
    chosen: dict[str, type] = {}
    for key, value in [*given, *((key, _Typed(text)) for key, text in options)]:
        text = _check(parser, key, value, chosen)
        if text is not None:
            return text
    named = {name for config in configs for name in _names(config)} | {_short(key) for key, _ in options}
    for key, cls in chosen.items():
        for name in required(cls):
            if f"{_short(key)}.{name}" not in named:
                return f"{cls.__name__} needs {name}; give it with --{key}.{name}"
    return None


def _names(value: object, prefix: str = "") -> Iterator[str]:
    """Every option that a config names, without `init_args`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
            yield key
            yield from _names(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner, prefix)


def _short(key: str) -> str:
    return ".".join(word for word in key.rstrip("+").split(".") if word != "init_args")


class _Typed:
    """A value as it was typed."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    @property
    def value(self) -> Any:
        """What YAML makes of it; the text itself where it is not YAML."""
        try:
            return self.text if self.text is None else yaml.safe_load(self.text)
        except (yaml.YAMLError, RecursionError):
            return self.text


def _leaves(parser: ArgumentParser, config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options of a config with their values, down to those that the parser knows."""
    known = _types(parser)
    for name, value in config.items():
        key = f"{prefix}{name}"
        owned = any(key.startswith(f"{dest}.") for dest, hint in known.items() if hint is not None)
        if isinstance(value, Mapping) and value and key not in known and not owned:
            yield from _leaves(parser, value, f"{key}.")
        else:
            yield key, value


def _types(parser: ArgumentParser) -> dict[str, Any]:
    """The options of a parser with their types, without those that stand for a group."""
    actions = [action for action in parser._actions if not action.dest.endswith(".help") and action.dest != "help"]
    dests = [action.dest for action in actions]
    return {
        action.dest: getattr(action, "_typehint", None)
        for action in actions
        if not any(dest.startswith(f"{action.dest}.") for dest in dests)
    }


def _check(parser: ArgumentParser, key: str, value: Any, chosen: dict[str, type], *, shown: str = "") -> str | None:
    """Say what is wrong with one option, or return None."""
    known = _types(parser)
    plain = key.removesuffix("+")
    if plain in known:
        return _check_value(shown + plain, known[plain], value, chosen)
    owner = next((dest for dest in known if plain.startswith(f"{dest}.") and known[dest] is not None), None)
    if owner is None:
        if any(dest.startswith(f"{plain}.") for dest in known) and isinstance(value, _Typed):
            return f"{shown}{plain} is a group of options; give one of them, such as --{shown}{_first(known, plain)}"
        return f"there is no option {shown + key!r}{_nearest_option(key, list(known))}"
    cls = chosen.get(shown + owner) or _default_class(parser, owner)
    words = [word for word in plain.removeprefix(f"{owner}.").split(".") if word not in ("init_args", "dict_kwargs")]
    if not words:
        return None
    if words == ["class_path"]:
        return _check_value(shown + owner, known[owner], value, chosen)
    if cls is None:
        return f"there is no {shown}{owner} that could have the option {'.'.join(words)!r}; give --{shown}{owner} before it"
    return _check_argument(cls, ".".join(words), value, chosen, f"{shown}{owner}.")


def _check_argument(cls: type, name: str, value: Any, chosen: dict[str, type], shown: str) -> str | None:
    """Say what is wrong with an argument of a class."""
    parser, names = _parser_of(cls)
    first = name.partition(".")[0]
    if first not in names:
        return f"{cls.__name__} has no option {first!r}{did_you_mean(first, names)}; it has {', '.join(names)}"
    return _check(parser, name, value, chosen, shown=shown)


def _check_value(key: str, hint: Any, value: Any, chosen: dict[str, type]) -> str | None:
    """Say what is wrong with the value of a known option."""
    typed = isinstance(value, _Typed)
    if typed and value.text is None:
        return None if hint is None else f"{key} needs a value, as in --{key}={_example(hint)}"
    bases = list(_bases(hint))
    content = value.value if typed else value
    if bases:
        if isinstance(content, Mapping) or (isinstance(content, str) and not _takes(hint, value)):
            return _check_class(key, bases, content, chosen)
        if isinstance(content, str):
            chosen[key] = _resolve(content, bases) or object
        if isinstance(content, list):
            for item in content:
                problem = _check_value(key, _without_lists(hint), item, chosen)
                if problem:
                    return problem
    return None if hint is None or _takes(hint, value) else _wrong(key, hint, value.text if typed else value)


def _check_class(key: str, bases: list[type], content: Any, chosen: dict[str, type]) -> str | None:
    """Say what is wrong with a class by name, or with `class_path` and `init_args`."""
    name = content if isinstance(content, str) else content.get("class_path")
    arguments = {} if isinstance(content, str) else content.get("init_args", content if name is None else {})
    cls = chosen.get(key) if name is None else _resolve(str(name), bases)
    if cls is None:
        return None if name is None else _unknown_class(key, str(name), bases)
    chosen[key] = cls
    for argument, value in (arguments or {}).items():
        problem = _check_argument(cls, str(argument), value, chosen, f"{key}.")
        if problem:
            return problem
    return None


def _unknown_class(key: str, name: str, bases: list[type]) -> str:
    """Say why a class cannot be used under an option."""
    module_path, _, word = name.rpartition(".")
    if module_path:
        try:
            found = getattr(importlib.import_module(module_path), word)
        except ImportError as error:
            return f"{key}: {module_path} cannot be imported ({first_line(error)})"
        except AttributeError:
            known = [
                each for each, value in vars(importlib.import_module(module_path)).items() if isinstance(value, type)
            ]
            return f"{key}: {module_path} has no class {word!r}{did_you_mean(word, known)}"
        return f"{key}: {name} is not a {' or '.join(base.__name__ for base in bases)}" if found else ""
    names = {cls.__name__ for base in bases for cls in _subclasses(base)} | (set(MODELS) if _networks(bases) else set())
    return f"{key}: {name!r} is not a class that is known here{did_you_mean(name, sorted(names))}; another needs its import path"


def _networks(bases: list[type]) -> bool:
    return any(base.__name__ == "Module" for base in bases)


def _resolve(name: str, bases: list[type]) -> type | None:
    """Return the class that a short name or an import path stands for, if it is of a fitting kind."""
    module_path, _, word = name.rpartition(".")
    if not module_path:
        found = MODELS.get(name) if _networks(bases) else None
        return found or next((cls for base in bases for cls in _subclasses(base) if cls.__name__ == name), None)
    try:
        cls = getattr(importlib.import_module(module_path), word, None)
    except ImportError:
        return None
    return cls if isinstance(cls, type) and any(issubclass(cls, base) for base in bases) else None


def _default_class(parser: ArgumentParser, owner: str) -> type | None:
    """The class that an option has where nothing is said about it."""
    default = parser.get_default(owner)
    path = default.get("class_path") if isinstance(default, Mapping) or hasattr(default, "get") else None
    hint = _types(parser).get(owner)
    if isinstance(default, type):
        return default
    return _resolve(str(path), list(_bases(hint))) if path else None


def _parser_of(cls: type) -> tuple[ArgumentParser, list[str]]:
    """A parser of a class's arguments, and their names."""
    parser = ArgumentParser(exit_on_error=False)
    skipped = {name for name in inspect.signature(cls).parameters if name in _INJECTED}
    parser.add_class_arguments(cls, fail_untyped=False, skip=set(skipped))
    return parser, list(dict.fromkeys(dest.partition(".")[0] for dest in _types(parser)))


def describe_type(hint: Any) -> str:
    """Say in a few words what values a type takes."""
    words, kinds = list(_words(hint)), list(dict.fromkeys(_kinds(hint)))
    return " or ".join([*([f"one of {', '.join(words)}"] if words else []), *kinds])


def required(cls: type) -> list[str]:
    """The arguments that a class cannot be built without, what its owner passes aside."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = inspect.signature(cls).parameters.items()
    return [n for n, p in given if p.default is p.empty and p.kind in kinds and n not in _INJECTED]


def _takes(hint: Any, value: Any) -> bool:
    """Whether a type takes a value."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        if isinstance(value, _Typed):
            parser.parse_args([f"--value={value.text}"])
        else:
            parser.parse_object({"value": value})
    except (ArgumentError, RecursionError):
        return False
    return True


def _wrong(key: str, hint: Any, value: Any) -> str:
    """Say which words and kinds of values an option takes, and which word was meant."""
    words = list(_words(hint))
    shown = repr(value) if len(repr(value)) <= _LONGEST else f"{repr(value)[:_LONGEST]}…"
    text = f"{key}: {shown} is not {describe_type(hint)}"
    return text + (did_you_mean(value, words) if words and isinstance(value, str) else "")


def _words(hint: Any) -> Iterator[str]:
    """The words that a type takes."""
    if typing.get_origin(hint) is Literal:
        yield from (str(word) for word in typing.get_args(hint))
    elif _is_union(hint):
        for part in typing.get_args(hint):
            yield from _words(part)


def _kinds(hint: Any) -> Iterator[str]:
    """The kinds of values that a type takes besides words, as a person says them."""
    origin = typing.get_origin(hint)
    if _is_union(hint):
        for part in typing.get_args(hint):
            yield from _kinds(part)
    elif origin is typing.get_origin(Callable[..., Any]):
        yield from (f"a {base.__name__}" for base in _bases(hint))
    elif origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Iterable) and origin is not dict):
        if not (isinstance(origin, type) and issubclass(origin, Mapping)):
            yield "a list such as [1, 2]"
        else:
            yield "a mapping such as {name: value}"
    elif origin is dict or hint is dict:
        yield "a mapping such as {name: value}"
    elif isinstance(hint, type) and hint is not type(None) and hint.__name__ != "Tensor":
        yield _ARTICLES.get(hint.__name__, f"a {hint.__name__}")


def _example(hint: Any) -> str:
    words = list(_words(hint))
    if words:
        return words[0]
    names = [part.__name__ for part in [*typing.get_args(hint), hint] if isinstance(part, type)]
    return next(
        ({"int": "1", "float": "0.5", "bool": "true", "str": "TEXT"}[n] for n in names if n in _ARTICLES), "VALUE"
    )


def _bases(hint: Any) -> Iterator[type]:
    """The classes whose subclasses a type takes by name."""
    origin = typing.get_origin(hint)
    if _is_union(hint) or origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        for part in typing.get_args(hint):
            yield from _bases(part)
    elif origin is not None and origin is typing.get_origin(Callable[..., Any]):
        yield from _bases(typing.get_args(hint)[-1])
    elif isinstance(hint, type) and not issubclass(hint, _PLAIN) and not getattr(hint, "_is_protocol", False):
        yield hint


def _without_lists(hint: Any) -> Any:
    """A union of types with what its lists hold in place of the lists."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    opened = [
        inner for part in parts for inner in (typing.get_args(part) if typing.get_origin(part) is list else (part,))
    ]
    return Union[tuple(opened)]  # noqa: UP007  (made at run time)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield from _subclasses(subclass)


def _first(known: Iterable[str], group: str) -> str:
    return next(dest for dest in known if dest.startswith(f"{group}."))


def _nearest_option(key: str, known: list[str]) -> str:
    """Name the nearest option: of the same group where the group exists, else of the same last word."""
    group, _, word = key.rpartition(".")
    siblings = [option for option in known if option.rpartition(".")[0] == group]
    ends = [option for option in known if option.rpartition(".")[2] == word]
    hint = did_you_mean(key, siblings) if group and siblings else ""
    return hint or (f"; did you mean {ends[0]!r}?" if len(ends) == 1 else "") or did_you_mean(key, known)


def root_of(error: Exception) -> Exception:
    """Return what went wrong in the class that was being built, without the parser's account of what it has tried.

    Args:
        error: What the parser raised while it built objects.

    Returns:
        The first error of the chain that was raised outside the parser; `error` itself where there is none.
    """
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        trace = link.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
        if (
            isinstance(link, (ValueError, TypeError, ImportError, OSError))
            and where.partition(".")[0] != "jsonargparse"
        ):
            return link
    return error
