"""A results directory: records appended one whole line each, scores beside them, one writer at a time.

```
DIRECTORY/records.jsonl              one line a finished cell
DIRECTORY/scores/<key>.safetensors   the scores of that cell
DIRECTORY/incoming/<key>.json        a cell of another process, until the writer has appended it
DIRECTORY/lock                       held by the process that writes
```
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mlprank.experiments.records import CellRecord, from_line, to_line
from mlprank.grids.store import CorruptRecordError, Journal, only_writer, read_lines, remove_drafts, write_csv
from mlprank.utils.files import BusyError, write_whole

RECORDS_NAME = "records.jsonl"
SCORES_PREFIX, KEPT_PREFIX = "scores/", "kept/"
Array = np.ndarray[Any, np.dtype[Any]]


class ResultsLockedError(OSError):
    """Another process writes into the results directory; the text names it."""


class RecordStore:
    """The one writer of a results directory.

    Opening takes the lock, takes away what a killed process left, and repairs a last line that kill -9 tore: its bytes
    are moved to `records.torn-N.jsonl` and `notice` says so. Closing, or the death of the process, gives the lock back.

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
        with ExitStack() as stack:
            try:
                stack.enter_context(only_writer(self.directory, called="results directory"))
            except BusyError as error:
                raise ResultsLockedError(str(error)) from error
            for folder in ("scores", "incoming"):
                remove_drafts(self.directory / folder)
            self._journal = stack.enter_context(closing(Journal(self.path, read=from_line, write=to_line)))
            self.notice = self._journal.notice
            self.absorb()
            self._open = stack.pop_all()

    @property
    def records(self) -> tuple[CellRecord, ...]:
        """The latest record of every cell, in order of first appearance."""
        return tuple(self._journal.latest.values())

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the cells that ended well."""
        return frozenset(key for key, record in list(self._journal.latest.items()) if record.status == "ok")

    @property
    def failed(self) -> frozenset[str]:
        """Keys of the cells whose latest record is a failure; they may be run and appended again."""
        return frozenset(self._journal.latest) - self.finished

    def append(
        self, record: CellRecord, *, scores: Mapping[str, Array] | None = None, kept: Mapping[str, Array] | None = None
    ) -> None:
        """Write the scores, then the line, whole and on the disk when this returns."""
        if self.is_finished(record.key):
            raise ValueError(f"cell {record.key} is already finished in {self.path}; a cell is recorded once")
        if scores is not None:
            write_scores(self.directory, record.key, scores, kept=kept)
        self._journal.append(record)

    def is_finished(self, key: str) -> bool:
        """Whether a cell ended well."""
        record = self._journal.latest.get(key)
        return record is not None and record.status == "ok"

    def absorb(self) -> list[CellRecord]:
        """Append what other processes of this experiment have recorded, and return it.

        Raises:
            CorruptRecordError: If a file is damaged; it is named.
        """
        found = []
        for path in sorted((self.directory / "incoming").glob("[!.]*.json")):
            record = from_line(path.read_text("utf-8"), str(path))
            if not self.is_finished(record.key):
                self._journal.append(record)
                found.append(record)
            path.unlink()
        return found

    def close(self) -> None:
        """Give the directory back to others. Closing twice is harmless."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Outbox:
    """Records of a process that does not write its directory: they wait in `incoming/` for the one that does."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def is_finished(self, key: str) -> bool:
        """Whether this cell was recorded here and waits for the writer."""
        return (self.directory / "incoming" / f"{key}.json").is_file()

    def append(
        self, record: CellRecord, *, scores: Mapping[str, Array] | None = None, kept: Mapping[str, Array] | None = None
    ) -> None:
        """Write the scores, then the record, whole and on the disk when this returns."""
        if scores is not None:
            write_scores(self.directory, record.key, scores, kept=kept)
        write_whole(self.directory / "incoming" / f"{record.key}.json", to_line(record))


def read_records(source: str | Path) -> tuple[CellRecord, ...]:
    """Read the records of a results directory, without taking its lock or changing it.

    A last line without its end belongs to a writer that is still at it, or was killed; it is left out. Where a cell
    was recorded more than once (failed, then run again), the latest counts.

    Raises:
        FileNotFoundError: If there is no such file.
        SchemaVersionError: If another schema version wrote a record.
        CorruptRecordError: If an inner line is no whole record, with its number.
    """
    path = Path(source)
    path = path / RECORDS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no results at {source}: {path} is missing; `mlprank experiment --out DIR` makes it")
    return tuple({record.key: record for record in read_lines(path, from_line)}.values())


def write_scores(
    directory: str | Path, key: str, scores: Mapping[str, Array], *, kept: Mapping[str, Array] | None = None
) -> Path:
    """Write one cell's scores (and masks) to `scores/<key>.safetensors`, whole or not at all; returns the path."""
    path = Path(directory) / "scores" / f"{key}.safetensors"
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
    return write_csv(Path(path), rows)
