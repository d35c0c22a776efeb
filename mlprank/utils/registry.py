"""Things that users name: classes by short name or dotted path, instances as they are, and errors that say what would have worked."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

from mlprank.utils.errors import did_you_mean


class Registry(dict[str, type[Any]]):
    """The classes of one kind by short name, open to classes of other packages.

    Args:
        kind: What the classes are, such as ``"measure"``.
        protocol: What their instances satisfy: a runtime-checkable protocol or a base class.
        classes: Our own, by short name.
        published: Names of the thesis: a short name, and parameters that go with it unless others are given.

    Examples:
        >>> from mlprank.measures import MEASURES
        >>> MEASURES.find("norm", p=2)
        Norm(p=2)
        >>> MEASURES.find({"class_path": "mlprank.measures.Norm", "init_args": {"p": 2}})
        Norm(p=2)
        >>> MEASURES.describe(MEASURES.find("norm"))
        {'name': 'norm', 'p': 1}
    """

    def __init__(
        self,
        kind: str,
        protocol: type[Any],
        classes: Mapping[str, type[Any]],
        published: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        super().__init__(classes)
        self.kind, self.protocol, self.published = kind, protocol, dict(published or {})

    def register(self, name: str, cls: type[Any]) -> None:
        """Make a class known by a name, for Python, YAML and the command line.

        Args:
            name: Its short name, not yet taken.
            cls: A class whose instances are of this kind.

        Raises:
            TypeError: If `cls` is not a class, or lacks a method of the protocol.
            ValueError: If the name is empty or belongs to another class.
        """
        lacking = [name for name in _members(self.protocol) if name not in dir(cls)]
        if not isinstance(cls, type) or lacking:
            what = f"a class with {', '.join(lacking) or 'the methods of a ' + self.kind}"
            raise TypeError(f'{self.kind} "{name}": {cls!r} is not {what}')
        if not name:
            raise ValueError(f"the name of the {self.kind} {cls.__name__} is empty; give it a short name")
        taken = self.get(name) or self.get(self.published.get(name, ("", {}))[0])
        if taken is not None and taken is not cls:
            raise ValueError(f'{self.kind} name "{name}" is taken by {taken.__name__}; choose another')
        self[name] = cls

    def find(self, given: object, **parameters: Any) -> Any:
        """Return the instance that a user means.

        Args:
            given: A short name, a name of the thesis, a dotted path to a class or instance, a description as YAML has it
                (``{name: norm, p: 2}`` or ``{class_path: Norm, init_args: {p: 2}}``), a class, or an instance, which is
                returned as it is.
            **parameters: Parameters given beside a name or a class.

        Raises:
            TypeError: If it is none of these.
            ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given
                beside an instance.
        """
        if isinstance(given, str | Mapping):
            named, parameters = self.read(given, parameters)
            if isinstance(named, str):
                return self.build(given if isinstance(given, str) else named, self[named], parameters)
            given = named
        if isinstance(given, type):
            return self._checked(self.build(given.__name__, given, parameters))
        self._checked(given)
        if parameters:
            raise ValueError(
                f"{self.kind}={given!r} is an instance, so the parameters {sorted(parameters)} have no place; give them"
                " when you make it"
            )
        return given

    def find_class(self, name: str) -> type[Any]:
        """Return the class of a short name or a dotted path.

        Raises:
            ValueError: If the name is unknown; all are listed and the nearest is named.
            TypeError: If the path leads to something else.
        """
        named, _ = self.read(name)
        found = self[named] if isinstance(named, str) else named
        if not isinstance(found, type):
            raise TypeError(f"{self.kind}={name!r} is not a class")
        return found

    def read(
        self, given: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> tuple[str | Any, dict[str, Any]]:
        """Return the short name that a name or description stands for, or what its dotted path leads to, and all parameters.

        Raises:
            ValueError: If the name is unknown, or the path cannot be imported.
        """
        named, own = self._described(given) if isinstance(given, Mapping) else (given, dict(parameters or {}))
        if not isinstance(named, str):
            return named, own
        short, usual = self.published.get(named, (named, {}))
        short = next((name for name, cls in self.items() if short in (name, cls.__name__)), short)
        if short in self:
            return short, {**usual, **own}
        if "." in named:
            return self._registered(imported(self.kind, named)), own
        known = [*self, *self.published]
        hint = did_you_mean(named, known) or "."
        raise ValueError(f'unknown {self.kind} "{named}"{hint} Known names: {", ".join(known)}')

    def build(self, name: str, cls: type[Any], parameters: Mapping[str, Any]) -> Any:
        """Make an instance.

        Args:
            name: What the user called it.
            cls: Its class.
            parameters: Keyword arguments of the class.

        Raises:
            ValueError: If the class has no parameter of a name, needs one that is not given, or rejects a value.
        """
        signature = inspect.signature(cls)
        try:
            signature.bind(**parameters)
        except TypeError as error:
            accepted = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "none"
            raise ValueError(f'{self.kind} "{name}": {error}; its parameters: {accepted}') from error
        return cls(**parameters)

    def describe(self, instance: Any) -> dict[str, Any]:
        """Return an instance as plain types, from which `find` makes it again: its name and its parameters."""
        cls = type(instance)
        name = next((short for short, known in self.items() if known is cls), f"{cls.__module__}.{cls.__qualname__}")
        if inspect.isfunction(instance):
            name = f"{instance.__module__}.{instance.__qualname__}"
        given = dataclasses.asdict(instance) if dataclasses.is_dataclass(cls) else {}
        plain = {key: value for key, value in given.items() if isinstance(value, bool | int | float | str | None)}
        return {"name": name, **plain}

    def _described(self, spec: Mapping[str, Any]) -> tuple[str | Any, dict[str, Any]]:
        """Read a description: a name or what its class path leads to, and parameters."""
        if isinstance(spec.get("class_path"), str) and set(spec) <= {"class_path", "init_args"}:
            path = spec["class_path"]
            known = next((key for key, cls in self.items() if path in _paths(cls)), None)
            return known or (imported(self.kind, path) if "." in path else path), dict(spec.get("init_args") or {})
        if isinstance(spec.get("name"), str):
            return spec["name"], {key: value for key, value in spec.items() if key != "name"}
        raise ValueError(
            f"{self.kind}={dict(spec)} is not a description; write {{name: ..., parameter: ...}} or"
            " {class_path: ..., init_args: {...}}"
        )

    def _registered(self, found: Any) -> str | Any:
        """The short name of a class that is registered; anything else as it is."""
        return next((name for name, cls in self.items() if cls is found), found)

    def _checked(self, instance: Any) -> Any:
        if not isinstance(instance, self.protocol):
            raise TypeError(
                f"{self.kind}={instance!r} is not a name, a class or an instance of a {self.kind};"
                f" the names are {', '.join(self)}"
            )
        return instance


def imported(kind: str, path: str) -> Any:
    """Return what a dotted path leads to; modules in the current folder are found, too.

    Args:
        kind: What is looked up, for messages.
        path: The path, such as ``"my_package.measures.Mine"``.

    Raises:
        ValueError: If it cannot be imported, with the reason.

    Examples:
        >>> imported("measure", "mlprank.measures.Norm").__name__
        'Norm'
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{kind}: {path!r} is not a dotted path to a class, such as my_package.{path}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind}: {path} cannot be imported ({error})") from error


def _paths(cls: type[Any]) -> tuple[str, str, str]:
    """The paths by which a class may be named: its bare name, its own, and through the package that shows it."""
    package = cls.__module__.rpartition(".")[0]
    return cls.__name__, f"{cls.__module__}.{cls.__name__}", f"{package}.{cls.__name__}"


def _members(protocol: type[Any]) -> set[str]:
    """The methods that a protocol asks for."""
    return {name for name, value in vars(protocol).items() if inspect.isfunction(value) and _asked(name)}


def _asked(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")
