"""A point of the grid, and what came out of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlprank.grids.store import short_hash

MONITOR = "val_top1"
"""The metric that trials are selected by; higher is better."""

_PLACES = frozenset({"data_dir", "default_root_dir", "dirpath", "save_dir", "ckpt_path", "logger", "config"})
_WITHOUT_EFFECT = ("PruningCallback", "ModelCheckpoint", "ProgressBar", "EpochLines")


@dataclass(frozen=True)
class Trial:
    """One training run of a grid.

    Attributes:
        key: Hash of its whole config and seed, without paths and logger.
        point: The grid's options and their values here.
        config: The whole resolved config of `mlprank fit`, in plain types.
    """

    key: str
    point: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The point in a few words, such as `lr=0.01 weight_decay=1e-05`."""
        return label(self.point)


@dataclass(frozen=True)
class Outcome:
    """What came out of a trial.

    Attributes:
        status: `done`, or `diverged` where a loss was no finite number.
        history: Metrics of every epoch; NaN from the epoch on in which the trial diverged.
        best_epoch: Epoch, from 0, of the best validation accuracy; -1 for a diverged trial.
        duration_s: Wall time of the training; a stack's trials share its time.
        engine: Which engine trained it.
        device: Where, such as `cpu` or `NVIDIA H100`.
    """

    status: Literal["done", "diverged"]
    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    duration_s: float
    engine: str
    device: str

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the best epoch; of a diverged trial NaN."""
        if self.status == "diverged" or not self.history:
            return {MONITOR: math.nan}
        return self.history[self.best_epoch]

    @property
    def score(self) -> float:
        """What trials are selected by; NaN for a diverged one."""
        return float(self.metrics.get(MONITOR, math.nan))


def label(point: Mapping[str, Any]) -> str:
    """Return a point in a few words: the shortest endings of the options that tell them apart, and their values."""
    names = short_names(list(point))
    return " ".join(f"{names[key]}={format_value(value)}" for key, value in point.items())


def short_names(keys: list[str]) -> dict[str, str]:
    """Return for every dotted option the shortest ending that no other has."""
    names = {}
    for key in keys:
        words = key.split(".")
        endings = [".".join(words[-length:]) for length in range(1, len(words) + 1)]
        others = [other for other in keys if other != key]
        names[key] = next(e for e in endings if e == key or not any(o == e or o.endswith("." + e) for o in others))
    return names


def format_value(value: Any) -> str:
    """Return a value as a person writes it, `1e-05` for 0.00001 and JSON for what is nested."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def trial_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a trial: that of `mlprank fit` without what acts after training or only shows it."""
    plain: dict[str, Any] = json.loads(json.dumps(config))
    trainer = plain.setdefault("trainer", {})
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    trainer["callbacks"] = [c for c in callbacks if not str(c.get("class_path")).endswith(_WITHOUT_EFFECT)] or None
    plain["ckpt_path"] = None
    return plain


def trial_key(config: Mapping[str, Any]) -> str:
    """Return the hash of a trial's config, without paths and logger: 16 hexadecimal digits."""
    return short_hash(json.dumps(without_places(config), sort_keys=True))


def without_places(value: Any) -> Any:
    """Return a copy of a plain value without paths and loggers."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key not in _PLACES}
    return [without_places(item) for item in value] if isinstance(value, list) else value


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome in plain types, NaN as None."""
    history = [
        {name: value if math.isfinite(value) else None for name, value in row.items()} for row in outcome.history
    ]
    return {
        "status": outcome.status,
        MONITOR: outcome.score if math.isfinite(outcome.score) else None,
        "best_epoch": outcome.best_epoch,
        "duration_s": outcome.duration_s,
        "engine": outcome.engine,
        "device": outcome.device,
        "history": history,
    }


def outcome_from_json(record: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `outcome_to_json` wrote.

    Raises:
        KeyError: If an entry is missing.
    """
    history = [{name: math.nan if value is None else value for name, value in row.items()} for row in record["history"]]
    return Outcome(
        status=record["status"],
        history=tuple(history),
        best_epoch=record["best_epoch"],
        duration_s=record["duration_s"],
        engine=record["engine"],
        device=record["device"],
    )
