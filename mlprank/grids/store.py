"""The directory of a grid: one writer at a time, files that are whole or absent, and lines that are appended whole.

A record is a JSON file of its own where many processes write (`read_record`, `write_record`), or a line of a `Journal` where one does.
What a killed process leaves (drafts of files, half a line) is taken away by the next that holds the lock.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from mlprank.grids.records import CorruptRecordError, sealed, unsealed
from mlprank.utils.files import BusyError, locked, write_whole

LOCK = "lock"
_DRAFTS = (".[0-9]*-*", ".*.[0-9]*.tmp")
"""Names of drafts: those of `mlprank.utils.files`, and those of version 0.1.0."""


class Keyed(Protocol):
    """Anything with the key of a cell."""

    @property
    def key(self) -> str:
        """The key."""


_Record = TypeVar("_Record", bound=Keyed)


@contextmanager
def only_writer(directory: Path, *, called: str) -> Iterator[None]:
    """Hold a directory as its only writer for the time of a block, and take away what a killed one left.

    Args:
        directory: Made where it is missing.
        called: What errors call it, such as "--tune.out".

    Raises:
        BusyError: If another process holds it; its process id is named.
        OSError: If the directory cannot be made.
    """
    busy = f"{called} {directory} is in use by process {{holder}}; wait until it ends, stop it, or give another"
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(directory / LOCK, busy=busy))
        except OSError as error:
            raise type(error)(
                f"{called} {directory} cannot be written: {error.strerror or error}; give another"
            ) from error
        remove_drafts(directory)
        yield


def remove_drafts(directory: Path) -> None:
    """Delete half-written files of killed processes; only whoever holds the directory's lock may call this."""
    for pattern in _DRAFTS:
        for draft in directory.glob(pattern):
            draft.unlink(missing_ok=True)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its digest to a file of its own; it is on the disk when this returns.

    Raises:
        ValueError: If a number is not finite.
        OSError: If it cannot be written; it names the file.
    """
    write_whole(path, json.dumps(sealed(record), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a record without its digest, or None where there is no file. Version 0.1.0 wrote no digests.

    Raises:
        CorruptRecordError: If the file is damaged.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptRecordError(f"{path} is damaged ({error})") from error
    if not isinstance(record, dict):
        raise CorruptRecordError(f"{path} is damaged (it holds no record)")
    return unsealed(record, where=str(path), needed=record.get("schema", 1) != 1)


class Journal(Generic[_Record]):
    """A file of records, one a line, for its one writer.

    Opening repairs a last line that a killed writer tore: its bytes are moved to `NAME.torn-N.SUFFIX` and `notice` says so.

    Args:
        path: The file; made where it is missing.
        read: Turns a line and its place into a record, or raises `CorruptRecordError`.
        write: Turns a record into a line with its end.

    Attributes:
        latest: The latest record of every key, in the order of first appearance.
        notice: What was repaired, if anything.

    Raises:
        CorruptRecordError: If an inner line is not a whole record.
    """

    def __init__(self, path: Path, *, read: Callable[[str, str], _Record], write: Callable[[_Record], str]) -> None:
        self.path, self._read, self._write = path, read, write
        self.notice: str | None = None
        self._mutex = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            self.notice = self._repair()
            self.latest = {record.key: record for record in read_lines(path, read)}
        except BaseException:
            self.close()
            raise

    def append(self, record: _Record) -> None:
        """Write one line, whole and on the disk when this returns; any thread may call it.

        Raises:
            ValueError: If a number is not finite.
            OSError: If the disk is full; the file is then as it was before.
        """
        line = self._write(record).encode()
        with self._mutex:
            size = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    raise OSError(f"{self.path}: wrote {written} of {len(line)} bytes; is the disk full?")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self.latest[record.key] = record

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repair(self) -> str | None:
        data = self.path.read_bytes()
        tail = data[data.rfind(b"\n") + 1 :]
        if not tail:
            return None
        try:
            self._read(tail.decode(), str(self.path))
        except (CorruptRecordError, UnicodeDecodeError):
            number = 1
            while (aside := self.path.with_suffix(f".torn-{number}{self.path.suffix}")).exists():
                number += 1
            write_whole(aside, tail)
            os.ftruncate(self._file, len(data) - len(tail))
            notice = (
                f"{self.path}: the last line was torn ({len(tail)} bytes); moved to {aside.name}, its cell runs again"
            )
        else:
            os.write(self._file, b"\n")
            notice = f"{self.path}: the last line lacked its end; the record was whole and is kept"
        os.fsync(self._file)
        return notice


def read_lines(path: Path, read: Callable[[str, str], _Record]) -> list[_Record]:
    """Read the records of a journal without changing it; half a last line belongs to a writer and is left out.

    Raises:
        CorruptRecordError: If an inner line is not a whole record, with its number.
    """
    data = path.read_bytes()
    records = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise CorruptRecordError(f"{where}: not UTF-8 text ({error})") from error
        records.append(read(text, where))
    return records


__all__ = ["BusyError", "Journal", "only_writer", "read_lines", "read_record", "remove_drafts", "write_record"]
