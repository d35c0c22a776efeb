"""A results directory: records appended one whole line each, scores beside them, one writer at a time.

```
DIRECTORY/records.jsonl              one line a finished cell
DIRECTORY/scores/<key>.safetensors   the scores of that cell
DIRECTORY/lock                       held (flock) by the process that writes
```
"""

import csv
import dataclasses
import fcntl
import io
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mlprank.experiments.records import CellRecord, CorruptRecordError, from_line, to_line

RECORDS_NAME = "records.jsonl"
SCORES_PREFIX, KEPT_PREFIX = "scores/", "kept/"
Array = np.ndarray[Any, np.dtype[Any]]


class ResultsLockedError(OSError):
    """Another process writes into the results directory; the text names it."""


class RecordStore:
    """The one writer of a results directory.

    Opening takes the lock and repairs a last line that kill -9 tore: its bytes are moved to `records.torn-N.jsonl`
    and `notice` says so. Closing, or the death of the process, gives the lock back.

    Args:
        directory: Made where it is missing.

    Raises:
        ResultsLockedError: If another process holds the directory.
        SchemaVersionError: If another schema version wrote a record.
        CorruptRecordError: If an inner line is no whole record.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.path = self.directory / RECORDS_NAME
        self.notice: str | None = None
        self._mutex = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self.directory)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise type(error)(
                f"results directory {self.directory} cannot be written ({error}); give a directory of your own"
            ) from error
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                self.notice = self._repair()
                self._records = {record.key: record for record in read_records(self.directory)}
                _sync_directory(self.directory)
            except BaseException:
                os.close(self._file)
                raise
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def records(self) -> tuple[CellRecord, ...]:
        """The latest record of every cell, in order of first appearance."""
        return tuple(self._records.values())

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the cells that ended well."""
        return frozenset(key for key, record in self._records.items() if record.status == "ok")

    @property
    def failed(self) -> frozenset[str]:
        """Keys of the cells whose latest record is a failure; they may be run and appended again."""
        return frozenset(self._records) - self.finished

    def append(
        self,
        record: CellRecord,
        *,
        scores: Mapping[str, Array] | None = None,
        kept: Mapping[str, Array] | None = None,
    ) -> None:
        """Write the scores, then the line, whole and on the disk when this returns.

        Args:
            record: The finished cell.
            scores: Scores (n_out,) by layer name; `.numpy()` of what `mlprank.score` returns.
            kept: Boolean masks (n_out,) by layer name, True is kept.

        Raises:
            ValueError: If the cell is already recorded as finished, or a number is not finite.
            OSError: If the disk is full; the file is then as it was before.
        """
        line = to_line(record).encode()
        with self._mutex:
            if record.key in self.finished:
                raise ValueError(f"cell {record.key} is already finished in {self.path}; a cell is recorded once")
            if scores is not None:
                write_scores(self.directory, record.key, scores, kept=kept)
            size = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    raise OSError(f"{self.path}: wrote {written} of {len(line)} bytes; is the disk full?")
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self._records[record.key] = record

    def close(self) -> None:
        """Give the directory back to others. Closing twice is harmless."""
        if self._lock >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._lock = self._file = -1

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
            from_line(tail.decode(), where=str(self.path))
        except (CorruptRecordError, UnicodeDecodeError):
            number = 1
            while (aside := self.directory / f"records.torn-{number}.jsonl").exists():
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


def read_records(source: str | Path) -> tuple[CellRecord, ...]:
    """Read the records of a results directory, without taking its lock or changing it.

    A last line without its end belongs to a writer that is still at it, or was killed; it is left out. Where a cell
    was recorded more than once (failed, then run again), the latest counts.

    Args:
        source: The results directory or its `records.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file.
        SchemaVersionError: If another schema version wrote a record.
        CorruptRecordError: If an inner line is no whole record, with its number.
    """
    path = Path(source)
    path = path / RECORDS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no results at {source}: {path} is missing; `mlprank experiment --out DIR` makes it")
    data = path.read_bytes()
    records: dict[str, CellRecord] = {}
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise CorruptRecordError(f"{where}: not UTF-8 text ({error})") from error
        record = from_line(text, where=where)
        records[record.key] = record
    return tuple(records.values())


def write_scores(
    directory: str | Path, key: str, scores: Mapping[str, Array], *, kept: Mapping[str, Array] | None = None
) -> Path:
    """Write one cell's scores (and masks) to `scores/<key>.safetensors`, whole or not at all; returns the path."""
    path = Path(directory) / "scores" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {SCORES_PREFIX + name: np.ascontiguousarray(value) for name, value in scores.items()}
    for name, value in (kept or {}).items():
        tensors[KEPT_PREFIX + name] = np.ascontiguousarray(value, dtype=np.bool_)
    write_whole(path, save(tensors))
    return path


def read_scores(directory: str | Path, key: str) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Scores and kept masks of a cell by layer name; None where the cell has no file, masks empty where not stored.

    Raises:
        CorruptRecordError: If the file is no safetensors file.
    """
    path = Path(directory) / "scores" / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CorruptRecordError(f"{path}: not a whole safetensors file ({error}); delete it") from error
    scores = {name.removeprefix(SCORES_PREFIX): tensors[name] for name in tensors if name.startswith(SCORES_PREFIX)}
    kept = {name.removeprefix(KEPT_PREFIX): tensors[name] for name in tensors if name.startswith(KEPT_PREFIX)}
    return scores, kept


def to_csv(records: Iterable[CellRecord], path: str | Path) -> Path:
    """Write one row a record, all fields flat (`parameters.amount`, `metrics.top1`, …); nested ones as JSON."""
    rows: list[dict[str, object]] = []
    for record in records:
        row: dict[str, object] = {"key": record.key, "status": record.status, "timestamp": record.timestamp}
        for group in ("parameters", "metrics", "versions"):
            part = getattr(record, group)
            row |= {f"{group}.{name}": value for name, value in (dataclasses.asdict(part) if part else {}).items()}
        row |= {f"timings.{name}": value for name, value in record.timings.items()}
        row |= {f"machine.{name}": value for name, value in record.machine.items()}
        row["error"] = record.error
        rows.append({name: json.dumps(v) if isinstance(v, dict | tuple | list) else v for name, v in row.items()})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(Path(path), buffer.getvalue().encode())
    return Path(path)


def _take_lock(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 32).decode().strip() or "unknown"
        os.close(lock)
        raise ResultsLockedError(
            f"results directory {directory} is in use by process {holder}; wait until it ends, stop it, or give "
            "another directory"
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent: beside its place, synced, then moved there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
