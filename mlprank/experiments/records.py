"""The record of one finished cell, and the results directory that holds them, as docs/records.md has it; no torch."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mlprank.grids import store
from mlprank.utils.errors import check_amount
from mlprank.utils.files import write_csv, write_whole

RECORDS_NAME = "records.jsonl"
SCORES_PREFIX, KEPT_PREFIX = "scores/", "kept/"
Array = np.ndarray[Any, np.dtype[Any]]
DENSE = "dense"
"""The `measure` of a record that holds the dense baseline: amount 0, nothing removed."""


@dataclass(frozen=True, kw_only=True)
class CellParameters:
    """What was run: a trained network, its data, and the fields of the `Recipe`; the same parameters are the same cell.

    Arguments are those that were given; the path of the checkpoint is not a part of the key.
    """

    model: str
    dataset: str
    measure: str
    measure_args: Mapping[str, object] = field(default_factory=dict)
    method: str
    method_args: Mapping[str, object] = field(default_factory=dict)
    amount: float
    compensation: str
    graph: str
    protect_output: bool
    calibration_samples: int
    calibration_seed: int
    checkpoint: str
    checkpoint_sha256: str
    compensation_args: Mapping[str, object] = field(default_factory=dict)
    recipe_args: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_amount(self.amount)

    @functools.cached_property
    def key(self) -> str:
        """Hash of the parameters without the checkpoint's path: 16 hexadecimal digits, equal on every machine."""
        plain: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        plain["amount"] = float(self.amount)
        # fields that version 0.1.0 did not know count where they were given, so that its keys stay what they were
        empty = {name for name in ("compensation_args", "recipe_args") if not plain[name]}
        kept = {name: plain[name] for name in plain if name not in empty | {"checkpoint"}}
        return store.short_hash(store.canonical(kept))

    @property
    def label(self) -> str:
        """The cell in one line."""
        output = "" if self.protect_output else ", output pruned too"
        way = f"{self.measure}, {self.method}, {100 * self.amount:g} %{output}, seed {self.calibration_seed}"
        return f"{self.model} on {self.dataset}, {DENSE if self.measure == DENSE else way}"


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """One layer: its neurons before (`width`) and after (`kept`) pruning."""

    name: str
    width: int
    kept: int

    def __post_init__(self) -> None:
        if not 0 <= self.kept <= self.width:
            raise ValueError(f'layer "{self.name}": kept must be in [0, {self.width}], got {self.kept}')


@dataclass(frozen=True, kw_only=True)
class CellMetrics:
    """What came out. Accuracies and amounts are fractions in [0, 1], sizes bytes, latencies seconds."""

    top1: float
    top5: float
    dense_top1: float
    dense_top5: float
    achieved_amount: float
    num_parameters_before: int
    num_parameters_after: int
    flops_before: int
    flops_after: int
    size_bytes_before: int
    size_bytes_after: int
    latency_s_before: float | None
    latency_s_after: float | None
    layers: tuple[LayerWidth, ...]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "layers" and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        for name in ("top1", "top5", "dense_top1", "dense_top5", "achieved_amount"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a fraction in [0, 1], got {value!r}; divide a percentage by 100")

    @property
    def retention(self) -> float:
        """Top-1 accuracy as a fraction of the dense network's; 0 where the dense network gets nothing right."""
        return self.top1 / self.dense_top1 if self.dense_top1 else 0.0


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One finished cell. `timings` are seconds, `versions` and `machine` texts by name, `timestamp` ISO 8601 in UTC."""

    parameters: CellParameters
    status: str
    metrics: CellMetrics | None = None
    error: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str]
    machine: Mapping[str, str] = field(default_factory=dict)
    timestamp: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.status not in ("ok", "failed"):
            raise ValueError(f'status must be "ok" or "failed", got {self.status!r}')
        if (self.status == "ok") != (self.metrics is not None):
            raise ValueError(f'a record has metrics if and only if its status is "ok", got status {self.status!r}')
        if self.status == "failed" and not self.error:
            raise ValueError('a record whose status is "failed" needs the text of its error')

    @property
    def key(self) -> str:
        """The key of the cell, see `CellParameters.key`."""
        return self.parameters.key


def to_line(record: CellRecord) -> str:
    """One line of JSON with its digest, and the newline."""
    plain = {"schema_version": store.SCHEMA, "key": record.key, **dataclasses.asdict(record)}
    try:
        return json.dumps(store.sealed(plain), allow_nan=False, separators=(",", ":")) + "\n"
    except ValueError as error:
        raise ValueError(
            f"cell {record.key}: a record holds finite numbers only ({error}); give None for a latency that was not "
            "measured, and record a cell that gave NaN as failed"
        ) from error


def from_line(line: str | bytes, where: str) -> CellRecord:
    """Read one line, checking its digest, every field, its type, and that the key is that of the parameters.

    A CorruptRecordError names `where` it is not a whole record, a ValueError one of another schema version.
    """
    plain = store.unsealed(line, where, version="schema_version")
    if plain.pop("schema_version", None) is None:
        raise store.CorruptRecordError(f"{where}: not a record of an experiment: it has no schema_version")
    key = plain.pop("key", None)
    try:
        metrics, parameters = plain["metrics"], CellParameters(**plain["parameters"])
        named: dict[str, Any] = {name: {**plain[name]} for name in ("timings", "versions", "machine") if name in plain}
        if metrics is not None:
            if not isinstance(metrics["layers"], list):
                raise TypeError(f"layers must be a list, got {metrics['layers']!r}")
            metrics = CellMetrics(**metrics | {"layers": tuple(LayerWidth(**layer) for layer in metrics["layers"])})
        record = CellRecord(**(plain | named | {"parameters": parameters, "metrics": metrics}))
    except (TypeError, ValueError, KeyError) as error:
        raise store.CorruptRecordError(f"{where}: {error}") from error
    if key != record.key:
        raise store.CorruptRecordError(
            f"{where}: key {key!r} is not that of the parameters ({record.key}); the line was edited by hand"
        )
    return record


class RecordStore:
    """The one writer of a results directory, which is made where it is missing.

    Opening takes the lock, takes away what a killed process left, and repairs a last line that kill -9 tore: its bytes
    are moved to `records.torn-N.jsonl` and `notice` says so. Closing, or the death of the process, gives the lock back.
    A BusyError names another process that holds the directory; other errors are those of `read_records`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._path = self.directory / RECORDS_NAME
        with ExitStack() as stack:
            stack.enter_context(store.only_writer(self.directory, called="results directory"))
            store.remove_drafts(self.directory / "scores")
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            stack.callback(os.close, self._file)
            # complete a last line that lacks its end, or move it aside
            self.notice: str | None = None
            data = self._path.read_bytes()
            if tail := data[data.rfind(b"\n") + 1 :]:
                try:
                    from_line(tail, str(self._path))
                except store.CorruptRecordError:
                    asides = (self._path.with_suffix(f".torn-{number}.jsonl") for number in itertools.count(1))
                    aside = next(path for path in asides if not path.exists())
                    write_whole(aside, tail)
                    os.ftruncate(self._file, len(data) - len(tail))
                    done = f"was torn ({len(tail)} bytes); moved to {aside.name}, its cell runs again"
                else:
                    os.write(self._file, b"\n")
                    done = "lacked its end; the record was whole and is kept"
                os.fsync(self._file)
                self.notice = f"{self._path}: the last line {done}"
            self._latest = {record.key: record for record in read_records(self._path)}
            # keys of the cells that ended well; the others may be run and appended again
            self.finished = {key for key, record in self._latest.items() if record.status == "ok"}
            self.close = stack.pop_all().close

    @property
    def records(self) -> tuple[CellRecord, ...]:
        """The latest record of every cell, in order of first appearance."""
        return tuple(self._latest.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(
        self, record: CellRecord, *, scores: Mapping[str, Array] | None = None, kept: Mapping[str, Array] | None = None
    ) -> None:
        """Write the scores and the masks, then one line, whole and on the disk when this returns; a cell once."""
        if record.key in self.finished:
            raise ValueError(f"cell {record.key} is already finished in {self.directory}; a cell is recorded once")
        if scores is not None:
            tensors = {SCORES_PREFIX + name: np.ascontiguousarray(value) for name, value in scores.items()}
            for name, value in (kept or {}).items():
                tensors[KEPT_PREFIX + name] = np.ascontiguousarray(value, dtype=np.bool_)
            write_whole(self.directory / "scores" / f"{record.key}.safetensors", save(tensors))
        line, size = to_line(record).encode(), os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(f"{self._path}: wrote {written} of {len(line)} bytes; is the disk full?")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise
        self._latest[record.key] = record
        if record.status == "ok":
            self.finished.add(record.key)


def read_records(source: str | Path) -> tuple[CellRecord, ...]:
    """Read the records of a results directory, without taking its lock or changing it.

    A last line without its end belongs to a writer that is still at it, or was killed; it is left out. Where a cell
    was recorded more than once (failed, then run again), the latest counts. Errors are those of `from_line`, with the
    number of the line, and a FileNotFoundError.
    """
    path = Path(source)
    path = path / RECORDS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no results at {source}: {path} is missing; `mlprank experiment --out DIR` makes it")
    data, latest = path.read_bytes(), dict[str, CellRecord]()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        record = from_line(line, f"{path} line {number}")
        latest[record.key] = record
    return tuple(latest.values())


def read_scores(directory: str | Path, key: str) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Scores and kept masks of a cell by layer name; None where the cell has no file, masks empty where not stored."""
    path = Path(directory) / "scores" / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise store.CorruptRecordError(f"{path}: not a whole safetensors file ({error}); delete it") from error
    scores, kept = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in (SCORES_PREFIX, KEPT_PREFIX)
    )
    return scores, kept


def to_csv(records: Iterable[CellRecord], path: str | Path) -> Path:
    """Write one row a record, all fields flat (`parameters.amount`, `metrics.top1`, …); nested ones as JSON."""
    rows: list[dict[str, object]] = []
    for record in records:
        row: dict[str, object] = {"key": record.key, "status": record.status, "timestamp": record.timestamp}
        plain = dataclasses.asdict(record)
        for group in ("parameters", "metrics", "versions", "timings", "machine"):
            row |= {f"{group}.{name}": value for name, value in (plain[group] or {}).items()}
        row["error"] = record.error
        rows.append({name: json.dumps(v) if isinstance(v, dict | tuple | list) else v for name, v in row.items()})
    return write_csv(path, rows)
