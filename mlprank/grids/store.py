"""The directory of a grid: one writer at a time, records that are whole or absent, with digests that tell damage.

A record is a JSON file of its own where many processes write (`read_record`, `write_record`). The drafts that a killed
process leaves are taken away by the next that holds the lock.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mlprank.utils.files import locked, write_whole

SCHEMA = 2
"""Of records; 1 is that of version 0.1.0, which had no digest."""
LOCK, DIGEST = "lock", "digest"
_DRAFTS = (".[0-9]*-*", ".*.[0-9]*.tmp")
"""Names of drafts: those of `mlprank.utils.files`, and those of version 0.1.0."""
_REMEDY = "restore it, or delete it, and what it records runs again"


class CorruptRecordError(ValueError):
    """A record that is not whole, or not what was written; the text names its place."""


def check_share(name: str, value: float | None) -> None:
    """Raise a ValueError where a number of cores or GPUs is neither a fraction nor whole."""
    if value is not None and not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise ValueError(f"{name}={value} must be a fraction in (0, 1) or a whole number of at least 1")


def canonical(plain: Any) -> str:
    """Return plain types as the JSON text that digests and keys are taken of."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its digest, the SHA-256 of its canonical JSON."""
    return {**record, DIGEST: hashlib.sha256(canonical(record).encode()).hexdigest()}


def unsealed(text: str | bytes, where: str, *, version: str = "schema") -> dict[str, Any]:
    """Read a record and compare its digest, which is left out; `version` names the entry that has its schema's.

    A CorruptRecordError names `where` a damaged one is, a ValueError one that another version of mlprank wrote.
    """
    try:
        plain = json.loads(text)
        if not isinstance(plain, dict):
            raise TypeError("it is not an object")
        digest, written = plain.pop(DIGEST, None), plain.get(version, 1)
        expected = None if written == 1 and digest is None else sealed(plain)[DIGEST]
    except (ValueError, TypeError) as error:
        raise CorruptRecordError(f"{where}: not a whole record ({error}); {_REMEDY}") from error
    if written not in (1, SCHEMA):
        raise ValueError(
            f"{where}: schema version {written!r}, but this mlprank reads version {SCHEMA}; use the mlprank that wrote "
            "it, or another results directory"
        )
    if digest != expected:
        raise CorruptRecordError(f"{where}: its digest is not that of its content; {_REMEDY}")
    return plain


@contextmanager
def only_writer(directory: Path, *, called: str) -> Iterator[None]:
    """Hold a directory, made where it is missing, as its only writer for a block, and take away what a killed one left.

    A BusyError names the process that holds it.
    """
    busy = f"{called} {directory} is in use by process {{holder}}; wait until it ends, stop it, or give another"
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory / LOCK, busy=busy))
        except OSError as error:
            why = error.strerror or error
            raise type(error)(f"{called} {directory} cannot be written: {why}; give another") from error
        remove_drafts(directory)
        yield


def remove_drafts(directory: Path) -> None:
    """Delete half-written files of killed processes; only whoever holds the directory's lock may call this."""
    for pattern in _DRAFTS:
        for draft in directory.glob(pattern):
            draft.unlink(missing_ok=True)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its schema and digest to a file of its own; it is on the disk when this returns."""
    write_whole(path, json.dumps(sealed({"schema": SCHEMA, **record}), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_record` wrote, or None where there is no file; errors are those of `unsealed`."""
    try:
        return unsealed(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
