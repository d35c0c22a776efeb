"""From a name and parameters to an instance, with errors that say what would have worked."""

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
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


def read_spec(kind: str, spec: Mapping[str, Any]) -> tuple[str | type[Any], dict[str, Any]]:
    """Read what YAML or the command line says, `{name: norm, p: 2}` or `{class_path: Norm, init_args: {p: 2}}`.

    Args:
        kind: What is described, such as ``"measure"``.
        spec: The description.

    Returns:
        A name, or the class where a class of somebody else's is named by its full path; and the parameters.

    Raises:
        ValueError: If the description is neither of the two, or names a class that cannot be imported.
    """
    if "class_path" in spec and set(spec) <= {"class_path", "init_args"}:
        path, parameters = str(spec["class_path"]), dict(spec.get("init_args") or {})
        module, _, name = path.rpartition(".")
        return (
            (name, parameters)
            if not module or module.startswith("mlprank.")
            else (_imported(kind, module, name), parameters)
        )
    if isinstance(spec.get("name"), str):
        return spec["name"], {key: value for key, value in spec.items() if key != "name"}
    raise ValueError(
        f"{kind}={dict(spec)} is no description; write {{name: ..., parameter: ...}} or {{class_path: ..., init_args: {{...}}}}"
    )


def registered_name(name: str, registry: Mapping[str, type[Any]], aliases: Mapping[str, Any]) -> str:
    """Return the short name for a short name, an alias or the name of a registered class; other names as they are."""
    if name in registry or name in aliases:
        return name
    return next((short for short, cls in registry.items() if cls.__name__ == name), name)


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
