"""Things that users name: classes by short name or dotted path, instances, and errors that say what would work."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from mlprank.utils.errors import OptionError, did_you_mean, first_line

_Kind = TypeVar("_Kind")


class Registry(dict[str, type[Any]], Generic[_Kind]):
    """The classes of one kind by short name, open to classes of other packages.

    `kind` is what they are, such as "measure"; `protocol` what their instances satisfy, a runtime-checkable protocol or
    a base class; `classes` are our own. `published` are names of the thesis: a short name, and parameters that go with
    it unless others are given.
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

        Raises:
            TypeError: If `cls` is not a class, lacks a method of the protocol, or does not inherit from the base class.
            ValueError: If the name is empty or belongs to another class.

        Examples:
            >>> from mlprank.measures import Norm, register_measure
            >>> register_measure("norm", Norm)  # a name keeps its class
        """
        self._check_class(name, cls)
        if not name:
            raise ValueError(f"the name of the {self.kind} {cls.__name__} is empty; give it a short name")
        taken = self.get(name) or self.get(self.published.get(name, ("", {}))[0])
        if taken is not None and taken is not cls:
            raise ValueError(f'{self.kind} name "{name}" is taken by {taken.__name__}; choose another')
        self[name] = cls

    def _check_class(self, name: str, cls: Any) -> None:
        if getattr(self.protocol, "_is_protocol", False):
            functions = [name for name, value in vars(self.protocol).items() if inspect.isfunction(value)]
            methods = [name for name in functions if name == "__call__" or name[0] != "_"]
            fits, what = set(methods) <= set(dir(cls)), f"a class with {', '.join(methods)}"
        else:
            fits = isinstance(cls, type) and issubclass(cls, self.protocol)
            what = f"a subclass of {self.protocol.__name__}"
        if not isinstance(cls, type) or not fits:
            raise TypeError(f'{self.kind} "{name}": {cls!r} is not {what}')

    def find(self, given: object, **parameters: Any) -> _Kind:
        """Return the instance that a user means, with parameters given beside a name or a class.

        `given` is a short name, a name of the thesis, a dotted path to a class or instance, a description as YAML has
        it (`{name: norm, p: 2}` or `{class_path: Norm, init_args: {p: 2}}`), a class, or an instance, which is returned
        as it is.

        Raises:
            TypeError: If it is none of these.
            ValueError: If the name is unknown, a parameter is unknown or out of its range, or parameters were given
                beside an instance.

        Examples:
            >>> from mlprank.measures import get_measure
            >>> get_measure("norm", p=2) == get_measure({"class_path": "mlprank.measures.Norm", "init_args": {"p": 2}})
            True
        """
        called = given
        if isinstance(given, str | Mapping):
            given, own = self.read(given)
            parameters = own | parameters
            if isinstance(given, str):
                called, given = called if isinstance(called, str) else given, self[given]
        if isinstance(given, type):
            signature = inspect.signature(given)
            try:
                signature.bind(**parameters)
            except TypeError as error:
                name = called if isinstance(called, str) else given.__name__
                accepted = ", ".join(map(str, signature.parameters.values())) or "none"
                raise ValueError(f'{self.kind} "{name}": {error}; its parameters: {accepted}') from error
            given, parameters = given(**parameters), {}
        if not isinstance(given, self.protocol):
            raise TypeError(
                f"{self.kind}={given!r} is not a name, a class or an instance of a {self.kind}; the names are "
                f"{', '.join(self)}"
            )
        if parameters:
            raise ValueError(
                f"{self.kind}={given!r} is an instance, so the parameters {sorted(parameters)} have no place; give "
                "them when you make it"
            )
        found: _Kind = given
        return found

    def find_class(self, name: str) -> type[Any]:
        """Return the class of a short name or a dotted path, which must lead to one of this kind.

        Examples:
            >>> from mlprank.models import get_model
            >>> get_model("TwoLayerMLP").__name__
            'TwoLayerMLP'
        """
        named, _ = self.read(name)
        found: type[Any] = self[named] if isinstance(named, str) else named
        self._check_class(name, found)
        return found

    def read(self, given: str | Mapping[str, Any]) -> tuple[str | Any, dict[str, Any]]:
        """Return what a name or description stands for, a short name or what a path leads to, and all parameters."""
        own: dict[str, Any] = {}
        if isinstance(given, str):
            named = given
        elif isinstance(given.get("class_path"), str) and set(given) <= {"class_path", "init_args"}:
            named, own = given["class_path"], dict(given.get("init_args") or {})
        elif isinstance(given.get("name"), str):
            named, own = given["name"], {key: value for key, value in given.items() if key != "name"}
        else:
            raise ValueError(
                f"{self.kind}={dict(given)} is not a description; write {{name: ..., parameter: ...}} or "
                "{class_path: ..., init_args: {...}}"
            )
        short, usual = self.published.get(named, (named, {}))
        short = next((name for name, cls in self.items() if short in (name, cls.__name__)), short)
        if short in self:
            return short, {**usual, **own}
        if "." in named:
            found = imported(self.kind, named)
            return next((name for name, cls in self.items() if cls is found), found), own
        known = [*self, *self.published]
        hint = did_you_mean(named, known) or "."
        raise ValueError(f'unknown {self.kind} "{named}"{hint} Known names: {", ".join(known)}')

    def describe(self, instance: Any) -> dict[str, Any]:
        """Return an instance as plain types, from which `find` makes it again: its name and its parameters."""
        named = instance if inspect.isfunction(instance) else type(instance)
        name = next((short for short, cls in self.items() if cls is named), f"{named.__module__}.{named.__qualname__}")
        given = dataclasses.asdict(instance) if dataclasses.is_dataclass(named) else {}
        plain = {key: value for key, value in given.items() if isinstance(value, bool | int | float | str | None)}
        return {"name": name, **plain}


def imported(kind: str, path: str) -> Any:
    """Return what a dotted path leads to; modules in the current folder are found, too."""
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"{kind}: {path!r} is not a dotted path to a class, such as my_package.{path}")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise OptionError(f"{kind}: {module} cannot be imported ({first_line(error)})") from error
    if not hasattr(found, name):
        raise OptionError(f"{kind}: {module} has no {name!r}{did_you_mean(name, vars(found))}")
    return getattr(found, name)
