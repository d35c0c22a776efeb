"""Networks as plain types: what built them, so that a file can hold it, and how to build them again."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

PUBLIC_MODULE = "mlprank.models"
T = TypeVar("T")


def describe_model(model: nn.Module) -> dict[str, Any] | None:
    """Say how a network was built, in plain types: `{"class_path": str, "init_args": dict}`.

    Classes record their constructor's arguments as `init_args`, as ours do; None for one that records nothing.
    """
    init_args = getattr(model, "init_args", None)
    if not isinstance(init_args, Mapping):
        return None
    return {"class_path": class_path_of(type(model)), "init_args": dict(init_args)}


def class_path_of(cls: type) -> str:
    """Return the import path of a class, the public one for what `mlprank.models` exports."""
    public = getattr(sys.modules.get(PUBLIC_MODULE), cls.__name__, None) is cls
    return f"{PUBLIC_MODULE if public else cls.__module__}.{cls.__qualname__}"


def build_model(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network from what `describe_model` wrote, with weights freshly drawn; errors are those of `build`."""
    return build(spec, nn.Module)


def build(spec: Mapping[str, Any], base: type[T], *positional: Any) -> T:
    """Call the class that `spec` names, a subclass of `base`, with `positional` arguments before its `init_args`.

    A ValueError says where the spec is malformed, the class may not be resolved or the arguments do not fit it.
    """
    if not {"class_path"} <= set(spec) <= {"class_path", "init_args"}:
        raise ValueError(
            f"a description of a {base.__name__} holds class_path and init_args, but this one holds {sorted(spec)}"
        )
    cls = resolve_class(spec["class_path"], base)
    return construct(cls, spec.get("init_args") or {}, *positional, named=str(spec["class_path"]))


def construct(cls: Callable[..., T], arguments: Mapping[str, Any], *positional: Any, named: str, remedy: str = "") -> T:
    """Call a class after comparing the arguments with its signature; a ValueError names the one that does not fit."""
    try:
        inspect.signature(cls).bind(*positional, **arguments)
    except TypeError as error:
        raise ValueError(f"{named} cannot be built from {dict(arguments)}: {error}{remedy}") from error
    return cls(*positional, **arguments)


def resolve_class(class_path: object, base: type[T]) -> type[T]:
    """Find the class that a file names, without running anybody's code.

    Only modules of mlprank are imported; any other module must already be, so that a file cannot choose what runs.
    """
    given = f"class_path={class_path!r}"
    if not isinstance(class_path, str) or "." not in class_path:
        raise ValueError(f"{given} must be an import path such as {PUBLIC_MODULE}.MLP")
    module_path, _, name = class_path.rpartition(".")
    if module_path.partition(".")[0] == "mlprank":
        try:
            importlib.import_module(module_path)
        except ModuleNotFoundError as error:
            raise ValueError(f"{given}: this version of mlprank has no module {module_path}") from error
    found = getattr(sys.modules.get(module_path), name, None)
    if found is None:
        raise ValueError(f"{given} is not imported; import {module_path} yourself if you trust the file")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{given} is not a subclass of {base.__module__}.{base.__name__}")
    return found
