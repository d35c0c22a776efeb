"""Records of a grid as JSON: keys that are equal on every machine, digests that tell damage, and typed decoding."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

DIGEST = "digest"
"""The entry of a record that holds the digest of all others."""


class CorruptRecordError(ValueError):
    """A record that is not whole, or not what was written; the text names its place."""


class SchemaVersionError(ValueError):
    """A record that another version of the schema wrote."""


def canonical(plain: Any) -> str:
    """Return plain types as the JSON text that digests and keys are taken of.

    Raises:
        ValueError: If a number is not finite; JSON has no NaN.

    Example:
        >>> canonical({"b": 1, "a": [0.5]})
        '{"a":[0.5],"b":1}'
    """
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text.

    Example:
        >>> short_hash("cell")
        '39d02b42938b2b75'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its digest, the SHA-256 of its canonical JSON.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> sealed({"score": 0.5})["digest"][:8]
        '2e4c25ff'
    """
    return {**record, DIGEST: hashlib.sha256(canonical(record).encode()).hexdigest()}


def unsealed(record: Mapping[str, Any], *, where: str, needed: bool = True) -> dict[str, Any]:
    """Return a record without its digest, after comparing it.

    Args:
        record: What was read.
        where: Its place, for the error.
        needed: Whether a record without a digest is damaged; version 0.1.0 wrote none.

    Raises:
        CorruptRecordError: If the digest is missing or another one.
    """
    plain = dict(record)
    digest = plain.pop(DIGEST, None)
    if digest is None and not needed:
        return plain
    try:
        expected = sealed(plain)[DIGEST]
    except ValueError as error:
        raise CorruptRecordError(f"{where}: {error}") from error
    if digest != expected:
        raise CorruptRecordError(f"{where}: its digest is not that of its content; something changed the file")
    return plain


def decode(kind: Any, value: Any, at: str) -> Any:
    """Turn plain JSON into a dataclass, tuple, mapping, optional or scalar, or say what is wrong where.

    Args:
        kind: The type. Fields of a dataclass that have defaults may be missing.
        value: What JSON gave.
        at: Its place, for the error.

    Raises:
        TypeError: If a value has another type.
        ValueError: If a field is missing, unknown, or rejected by the dataclass.

    Example:
        >>> decode(tuple[int, ...], [1, 2], "widths")
        (1, 2)
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise TypeError(f"{at}: expected an object, got {value!r}")
        hints = _hints(kind)
        needed, known = _fields(kind)
        if not needed <= value.keys() <= known:
            missing, extra = sorted(needed - value.keys()), sorted(value.keys() - known)
            raise ValueError(f"{at}: missing fields {missing}, unknown fields {extra}")
        return kind(**{name: decode(hints[name], value[name], f"{at}.{name}") for name in value})
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else decode(args[0], value, at)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{at}: expected a list, got {value!r}")
        return tuple(decode(args[0], entry, f"{at}[{index}]") for index, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise TypeError(f"{at}: expected an object, got {value!r}")
        return {name: decode(args[1], entry, f"{at}.{name}") for name, entry in value.items()}
    if kind is object:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{at}: expected {kind.__name__}, got {value!r}")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _fields(kind: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The fields that must be there, and all of them."""
    found = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    needed = frozenset(item.name for item in found if item.default is missing and item.default_factory is missing)
    return needed, frozenset(item.name for item in found)
