"""Trials of a grid search, and its directory: one `result.json` a trial, whole or absent, is the truth.

```
OUT/grid.json                    which grid this is
OUT/lock                         held by the driver
OUT/trials/<key>/config.yaml     the trial's whole config
                 result.json     what came out; or failed.json
                 pruned.json     what its pruned network reaches, where trials are ranked by that
                 best.ckpt       the weights of its best epoch, of the best trials
                 lock            held by the process that trains it
OUT/stacks/<id>/                 a stack that is being trained: its trials and its last checkpoint
```
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from mlprank.grids.store import LOCK, only_writer, read_record, remove_drafts, short_hash, write_record
from mlprank.utils.charts import short_names
from mlprank.utils.errors import first_line
from mlprank.utils.files import locked, write_whole

MONITOR = "val_top1"
"""The metric that trials are selected by; higher is better."""
METRICS = ("train_loss", "val_loss", MONITOR, "val_top5", "lr")

_PLACES = frozenset({"data_dir", "default_root_dir", "dirpath", "save_dir", "ckpt_path", "logger", "config"})
_WITHOUT_EFFECT = ("PruningCallback", "ModelCheckpoint", "ProgressBar", "EpochLines")


@dataclass(frozen=True)
class Trial:
    """One training run of a grid; its key is a hash of its whole config and seed, without paths and logger."""

    key: str
    point: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The point in a few words, such as `lr=0.01 weight_decay=1e-05`."""
        return label(self.point)


@dataclass(frozen=True)
class Outcome:
    """What came out of a trial."""

    status: Literal["done", "diverged"]  # `done`, or `diverged` where a loss was no finite number
    # metrics of every epoch; NaN from the epoch on in which the trial diverged
    history: tuple[Mapping[str, float], ...]
    best_epoch: int  # epoch, from 0, of the best validation accuracy; -1 for a diverged trial
    duration_s: float  # wall time of the training; a stack's trials share its time
    engine: str  # which engine trained it
    device: str  # where, such as `cpu` or `NVIDIA H100`

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
    return " ".join(f"{name}={format_value(value)}" for name, value in zip(names, point.values(), strict=True))


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


GRID, RESULT, FAILED, PRUNED = "grid.json", "result.json", "failed.json", "pruned.json"
CONFIG, BEST, STACK, LAST = "config.yaml", "best.ckpt", "stack.json", "last.ckpt"


class Store:
    """The results of one grid search."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def directory(self, key: str) -> Path:
        """Return the directory of a trial."""
        return self.out / "trials" / key

    def prepare(self, trial: Trial) -> Path:
        """Make a trial's directory with its config."""
        directory = self.directory(trial.key)
        if not (directory / CONFIG).is_file():
            write_whole(directory / CONFIG, yaml.safe_dump(dict(trial.config), sort_keys=False))
        return directory

    def load(self, key: str) -> Trial:
        """Read a prepared trial back, without its point."""
        return Trial(key, {}, yaml.safe_load((self.directory(key) / CONFIG).read_text()))

    def outcome(self, key: str) -> Outcome | None:
        """Return what came out of a trial, or None where it has not finished."""
        path = self.directory(key) / RESULT
        record = read_record(path)
        if record is None:
            return None
        nan = {None: math.nan}
        try:  # records of version 0.1.0 have no digest that would tell
            rows = tuple({name: nan.get(value, value) for name, value in row.items()} for row in record["history"])
            return Outcome(**{field.name: record[field.name] for field in fields(Outcome)} | {"history": rows})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); delete it, and its trial runs again") from error

    def failure(self, key: str) -> str | None:
        """Return why a trial failed, or None."""
        record = read_record(self.directory(key) / FAILED)
        return None if record is None else str(record.get("error"))

    def is_open(self, key: str) -> bool:
        """Whether a trial has neither finished nor failed."""
        return self.outcome(key) is None and self.failure(key) is None

    def finish(self, trial: Trial, outcome: Outcome) -> bool:
        """Record what came out of a trial, on the disk when this returns; say whether it had no record yet."""
        path = self.prepare(trial) / RESULT
        if path.is_file():
            return False
        score = outcome.score if math.isfinite(outcome.score) else None
        rows = [{name: v if math.isfinite(v) else None for name, v in row.items()} for row in outcome.history]
        record = {"key": trial.key, "point": dict(trial.point), "mlprank": version("mlprank"), MONITOR: score}
        write_record(path, record | vars(outcome) | {"history": rows})
        self.forget_failure(trial.key)
        return True

    def fail(self, trial: Trial, error: BaseException) -> str:
        """Record that a trial cannot be trained, so that it is not tried again, and return why."""
        text = f"{type(error).__name__}: {first_line(error) if str(error).strip() else 'no message'}"
        write_record(self.prepare(trial) / FAILED, {"key": trial.key, "point": dict(trial.point), "error": text})
        return text

    def forget_failure(self, key: str) -> None:
        """Let a failed trial run again."""
        (self.directory(key) / FAILED).unlink(missing_ok=True)

    def pruned(self, key: str, cut: Mapping[str, Any]) -> dict[str, float] | None:
        """Return what a trial's pruned network reaches, or None where that was not measured for this cut."""
        record = read_record(self.directory(key) / PRUNED)
        return None if record is None or record["metric"] != dict(cut) else dict(record["values"])

    def record_pruned(self, key: str, cut: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Record what a trial's pruned network reaches; nothing where it cannot be pruned so."""
        write_record(self.directory(key) / PRUNED, {"key": key, "metric": dict(cut), "values": dict(values)})

    def stack_directory(self, keys: Sequence[str]) -> Path:
        """Return the directory of the stack of these trials, in order."""
        return self.out / "stacks" / short_hash("\n".join(keys))

    def stacks(self) -> dict[Path, list[str]]:
        """Return the directory of every stack that was begun, and the keys of its trials; not of damaged ones."""
        found: dict[Path, list[str]] = {}
        for path in sorted((self.out / "stacks").glob(f"*/{STACK}")):
            with suppress(ValueError, KeyError):
                found[path.parent] = list(json.loads(path.read_bytes())["keys"])
        return found

    def check_grid(self, identity: Mapping[str, Any]) -> None:
        """Check that this is the directory of a grid, or of none yet; more values than before extend a grid."""
        found, ours, problem = read_record(self.out / GRID), identity["grid"], ""
        if found is None:
            if self.out.is_dir() and any(not name.startswith((LOCK, ".")) for name in os.listdir(self.out)):
                problem = "other files and no grid.json"
        elif list(found["grid"]) != list(ours):
            problem = f"another grid, over {', '.join(found['grid'])}, not over {', '.join(ours)}"
        elif found["base"] != identity["base"]:
            problem = "the same grid of another config (see its trials/*/config.yaml)"
        elif lost := [f"{key} = {v}" for key, values in found["grid"].items() for v in values if v not in ours[key]]:
            problem = (
                f"trials with {lost[0]}, which this grid leaves out (it can be extended, not reduced; add the value)"
            )
        if problem:
            raise ValueError(f"--tune.out {self.out} holds {problem}; give another --tune.out")

    def claim_grid(self, identity: Mapping[str, Any]) -> None:
        """Make this the directory of a grid; `check_grid` raises where it is not."""
        self.check_grid(identity)
        write_record(self.out / GRID, {"mlprank": version("mlprank"), **identity})

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the directory as its only driver for a block; errors are those of `only_writer`."""
        with only_writer(self.out, called="--tune.out"):
            for stack, keys in self.stacks().items():
                if all(self.outcome(key) is not None for key in keys):
                    shutil.rmtree(stack, ignore_errors=True)
            try:
                yield
            finally:  # trials that have ended are trained by nobody who would clean up
                for record in self.out.glob(f"trials/*/{RESULT}"):
                    remove_drafts(record.parent)

    @contextmanager
    def training(self, key: str) -> Iterator[None]:
        """Hold a trial as the only process that trains it; wait for another that does."""
        directory = self.directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / LOCK, busy=None):
            remove_drafts(directory)
            yield
