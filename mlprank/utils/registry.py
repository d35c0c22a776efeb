"""From a name and parameters to an instance, with errors that say what would have worked."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is not registered, with the nearest that is.

    Args:
        kind: What was looked up, such as ``"measure"``.
        name: The name that the user gave.
        known: Every name that would have worked.

    Returns:
        The error, to be raised by the caller.
    """
    names = list(known)
    lowered = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f'; did you mean "{lowered[close[0]]}"?' if close else "."
    return ValueError(f'unknown {kind} "{name}"{hint} Known names: {", ".join(names)}')


def find(
    kind: str,
    given: object,
    parameters: Mapping[str, Any],
    *,
    registry: Mapping[str, type[Any]],
    published: Mapping[str, tuple[str, Mapping[str, Any]]],
    is_one: Callable[[object], bool],
) -> Any:
    """Find what a user means by a name, a class, a description as YAML has it, or an instance.

    A description is `{name: norm, p: 2}` or `{class_path: Norm, init_args: {p: 2}}`; a class of somebody else's is named by its full path.

    Args:
        kind: What is looked up, such as ``"measure"``.
        given: What the user gave.
        parameters: Parameters given beside a name or a class.
        registry: The classes by short name.
        published: Names of the thesis: a short name, and parameters that go with it unless others are given.
        is_one: Tells an instance from anything else.

    Returns:
        An instance; the given one where it is one.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given beside an instance.
    """
    if isinstance(given, str | Mapping):
        named, parameters = read_name(kind, given, parameters, registry=registry, published=published)
        typed = given if isinstance(given, str) else named if isinstance(named, str) else named.__name__
        return build(kind, typed, registry[named] if isinstance(named, str) else named, parameters)
    if isinstance(given, type):
        return build(kind, given.__name__, given, parameters)
    if not is_one(given):
        raise TypeError(
            f"{kind}={given!r} is not a name, a class or an instance of a {kind}; the names are {', '.join(registry)}"
        )
    if parameters:
        raise ValueError(
            f"{kind}={given!r} is an instance, so the parameters {sorted(parameters)} have no place; give them when you make it"
        )
    return given


def read_name(
    kind: str,
    given: str | Mapping[str, Any],
    parameters: Mapping[str, Any],
    *,
    registry: Mapping[str, type[Any]],
    published: Mapping[str, tuple[str, Mapping[str, Any]]],
) -> tuple[str | type[Any], dict[str, Any]]:
    """Return the short name that a name or a description stands for, or somebody else's class, and all parameters; see `find`."""
    named, own = _described(kind, given, registry) if isinstance(given, Mapping) else (given, dict(parameters))
    if not isinstance(named, str):
        return named, own
    short, usual = published.get(named, (named, {}))
    short = next((name for name, cls in registry.items() if short in (name, cls.__name__)), short)
    if short not in registry:
        raise unknown_name(kind, named, [*registry, *published])
    return short, {**usual, **own}


def _described(
    kind: str, spec: Mapping[str, Any], registry: Mapping[str, type[Any]]
) -> tuple[str | type[Any], dict[str, Any]]:
    """Read a description: a name or a class, and parameters."""
    if isinstance(spec.get("class_path"), str) and set(spec) <= {"class_path", "init_args"}:
        module, _, name = spec["class_path"].rpartition(".")
        short = next((key for key, cls in registry.items() if cls.__name__ == name and module in _homes(cls)), None)
        if short is None and not module:
            raise unknown_name(f"{kind} class", name, [cls.__name__ for cls in registry.values()])
        return short or _imported(kind, module, name), dict(spec.get("init_args") or {})
    if isinstance(spec.get("name"), str):
        return spec["name"], {key: value for key, value in spec.items() if key != "name"}
    raise ValueError(
        f"{kind}={dict(spec)} is no description; write {{name: ..., parameter: ...}} or {{class_path: ..., init_args: {{...}}}}"
    )


def _homes(cls: type[Any]) -> tuple[str, str, str]:
    """The modules that a class may be named by: none, its own, and the package that shows it."""
    return "", cls.__module__, cls.__module__.rpartition(".")[0]


def _imported(kind: str, module: str, name: str) -> type[Any]:
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind}: class_path {module}.{name} cannot be imported ({error})") from error
    if not isinstance(cls, type):
        raise ValueError(f"{kind}: class_path {module}.{name} is no class")
    return cls


def build(kind: str, name: str, cls: type[Any], parameters: Mapping[str, Any]) -> Any:
    """Make an instance and name the parameters that its class does not have.

    Args:
        kind: What is made, such as ``"measure"``.
        name: What the user called it.
        cls: Its class.
        parameters: Keyword arguments of the class.

    Returns:
        The instance.

    Raises:
        ValueError: If the class has no parameter of a name, needs one that is not given, or rejects a value.
    """
    signature = inspect.signature(cls)
    try:
        signature.bind(**parameters)
    except TypeError as error:
        accepted = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "none"
        raise ValueError(f'{kind} "{name}": {error}; its parameters: {accepted}') from error
    return cls(**parameters)
