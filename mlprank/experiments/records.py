"""The record of one finished cell: network, data and recipe, what came out, and on what; one line of JSON.

The schema is written down in `docs/records.md`. Nothing here needs torch.
"""

import dataclasses
import functools
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from mlprank.grids.store import CorruptRecordError, SchemaVersionError, canonical, decode, sealed, short_hash, unsealed

SCHEMA_VERSION = 2
"""Of a record; 1 is that of version 0.1.0, which had no digest."""
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
        if not 0.0 <= self.amount < 1.0:
            raise ValueError(f"amount must be in [0, 1), got {self.amount!r}; 0.5 takes half of the neurons out")

    @functools.cached_property
    def key(self) -> str:
        """Hash of the parameters without the checkpoint's path: 16 hexadecimal digits, equal on every machine."""
        plain: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain |= {name: dict(value) for name, value in plain.items() if isinstance(value, Mapping)}
        plain["amount"] = float(self.amount)
        # fields that version 0.1.0 did not know count where they were given, so that its keys stay what they were
        empty = {name for name in ("compensation_args", "recipe_args") if not plain[name]}
        return short_hash(canonical({name: plain[name] for name in plain if name not in empty | {"checkpoint"}}))

    @property
    def label(self) -> str:
        """The cell in one line."""
        network = f"{self.model} on {self.dataset}"
        if self.measure == DENSE:
            return f"{network}, dense"
        output = "" if self.protect_output else ", output pruned too"
        return (
            f"{network}, {self.measure}, {self.method}, {100 * self.amount:g} %{output}, seed {self.calibration_seed}"
        )


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
        for name in ("top1", "top5", "dense_top1", "dense_top5", "achieved_amount"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a fraction in [0, 1], got {value!r}; divide a percentage by 100")

    @property
    def retention(self) -> float:
        """Top-1 accuracy as a fraction of the dense network's; 0 where the dense network gets nothing right."""
        return self.top1 / self.dense_top1 if self.dense_top1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The versions that a cell ran with."""

    python: str
    torch: str
    lightning: str
    mlprank: str


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One finished cell. `timings` are seconds by name, `machine` free text by name, `timestamp` ISO 8601 in UTC."""

    parameters: CellParameters
    status: str
    metrics: CellMetrics | None = None
    error: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Versions
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


@functools.cache
def current_versions() -> Versions:
    """Versions of what is installed here, without importing any of it; "not installed" where it is missing."""

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    python = platform.python_version()
    return Versions(python=python, torch=version("torch"), lightning=version("lightning"), mlprank=version("mlprank"))


def to_line(record: CellRecord) -> str:
    """One line of JSON with its digest, and the newline."""
    plain = {"schema_version": SCHEMA_VERSION, "key": record.key, **dataclasses.asdict(record)}
    try:
        return json.dumps(sealed(plain), allow_nan=False, separators=(",", ":")) + "\n"
    except ValueError as error:
        raise ValueError(
            f"cell {record.key}: a record holds finite numbers only ({error}); give None for a latency that was not "
            "measured, and record a cell that gave NaN as failed"
        ) from error


def from_line(line: str, where: str) -> CellRecord:
    """Read one line, checking its digest, every field, its type, and that the key is that of the parameters.

    Raises:
        SchemaVersionError: If another schema version wrote it.
        CorruptRecordError: If it is not a whole record.
    """
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise CorruptRecordError(
            f"{where}: not a whole record ({error}); somebody or something cut the file; restore it, or delete this "
            "line and run the experiment again: only the lost cells are run"
        ) from error
    if not isinstance(plain, dict) or "schema_version" not in plain:
        raise CorruptRecordError(f"{where}: not a record of an experiment: it has no schema_version")
    version = plain["schema_version"]
    if version not in (1, SCHEMA_VERSION):
        raise SchemaVersionError(
            f"{where}: schema version {version!r}, but this mlprank reads version {SCHEMA_VERSION}; use the mlprank "
            "that wrote it, or another results directory"
        )
    plain = unsealed(plain, where=where, needed=version > 1)
    del plain["schema_version"]
    key = plain.pop("key", None)
    try:
        record: CellRecord = decode(CellRecord, plain, "record")
    except (TypeError, ValueError) as error:
        raise CorruptRecordError(f"{where}: {error}") from error
    if key != record.key:
        raise CorruptRecordError(
            f"{where}: key {key!r} is not that of the parameters ({record.key}); the line was edited by hand"
        )
    return record
