"""The directory of a grid search: one `result.json` a trial, whole or absent, is the truth.

```
OUT/grid.json                    which grid this is
OUT/lock                         held (flock) by the driver
OUT/trials/<key>/config.yaml     the trial's whole config
                 result.json     what came out; or failed.json
                 best.ckpt       the weights of its best epoch, of the best trials
                 lock            held (flock) by the process that trains it
OUT/stacks/<id>/                 a stack that is being trained: its trials and its last checkpoint
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mlprank.grids.durable import locked, write_whole
from mlprank.tuning.trial import Outcome, Trial, outcome_from_json, outcome_to_json

SCHEMA = 1
RESULT, FAILED, CONFIG, BEST, PROGRESS = "result.json", "failed.json", "config.yaml", "best.ckpt", "progress.json"


class Store:
    """The results of one grid search.

    Args:
        out: The directory; made where it is missing.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def directory(self, key: str) -> Path:
        """Return the directory of a trial.

        Args:
            key: The trial's key.
        """
        return self.out / "trials" / key

    def stack_directory(self, keys: Sequence[str]) -> Path:
        """Return the directory of the stack of these trials.

        Args:
            keys: The trials' keys in the order of the stack.
        """
        return self.out / "stacks" / hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]

    def prepare(self, trial: Trial) -> Path:
        """Make a trial's directory with its config.

        Args:
            trial: The trial.

        Returns:
            The directory.
        """
        directory = self.directory(trial.key)
        if not (directory / CONFIG).is_file():
            write_whole(directory / CONFIG, yaml.safe_dump(dict(trial.config), sort_keys=False).encode())
        return directory

    def outcome(self, key: str) -> Outcome | None:
        """Return what came out of a trial, or None where it has not finished.

        Args:
            key: The trial's key.

        Raises:
            ValueError: If the file is damaged or of another version.
        """
        path = self.directory(key) / RESULT
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text())
            if record["schema"] == SCHEMA:
                return outcome_from_json(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and its trial runs again") from error
        raise ValueError(f"{path} has schema {record['schema']}, this version of mlprank reads {SCHEMA}")

    def failure(self, key: str) -> str | None:
        """Return why a trial failed, or None.

        Args:
            key: The trial's key.
        """
        path = self.directory(key) / FAILED
        return str(json.loads(path.read_text())["error"]) if path.is_file() else None

    def progress(self, key: str) -> dict[str, float] | None:
        """Return the last epoch of a trial that another process trains now, or None.

        Args:
            key: The trial's key.
        """
        path = self.directory(key) / PROGRESS
        try:
            row: dict[str, float] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return row

    def finish(self, trial: Trial, outcome: Outcome) -> bool:
        """Record what came out of a trial, once; the record is on the disk when this returns.

        Args:
            trial: The trial.
            outcome: What came out.

        Returns:
            Whether it is new; an earlier record stays as it is.

        Raises:
            OSError: If it cannot be written; it names the file.
        """
        path = self.prepare(trial) / RESULT
        if path.is_file():
            return False
        record = {"schema": SCHEMA, "key": trial.key, "point": dict(trial.point), "mlprank": version("mlprank")}
        write_whole(path, _json(record | outcome_to_json(outcome)))
        (path.parent / FAILED).unlink(missing_ok=True)
        return True

    def fail(self, trial: Trial, error: BaseException) -> None:
        """Record that a trial cannot be trained; it is not tried again.

        Args:
            trial: The trial.
            error: What was raised.
        """
        text = (str(error).strip() or "no message").splitlines()[0]
        record = {
            "schema": SCHEMA,
            "key": trial.key,
            "point": dict(trial.point),
            "error": f"{type(error).__name__}: {text}",
        }
        write_whole(self.prepare(trial) / FAILED, _json(record))

    def forget_failure(self, key: str) -> None:
        """Let a failed trial run again.

        Args:
            key: The trial's key.
        """
        (self.directory(key) / FAILED).unlink(missing_ok=True)

    def forget_stack(self, keys: Sequence[str]) -> None:
        """Delete the checkpoint of a stack whose trials have all finished.

        Args:
            keys: The trials' keys in the order of the stack.
        """
        shutil.rmtree(self.stack_directory(keys), ignore_errors=True)

    def open_stacks(self) -> list[list[str]]:
        """Return the keys of every stack that was interrupted after a checkpoint."""
        paths = sorted((self.out / "stacks").glob("*/stack.json"))
        return [json.loads(path.read_text())["keys"] for path in paths if (path.parent / "last.ckpt").is_file()]

    def claim_grid(self, identity: Mapping[str, Any]) -> None:
        """Make this the directory of a grid, or check that it is; more values than before extend it.

        Args:
            identity: `base`, hash of the config without the grid's options, and `grid`, values by option.

        Raises:
            ValueError: If the directory is that of another grid, of another version, or holds other files.
        """
        path = self.out / "grid.json"
        claimed = {"schema": SCHEMA, "mlprank": version("mlprank"), **identity}
        if path.is_file():
            _check_same(path, json.loads(path.read_text()), claimed)
        elif any(name for name in os.listdir(self.out) if name != "lock"):
            raise ValueError(f"--tune.out {self.out} holds other files and no grid.json; give a directory of its own")
        write_whole(path, _json(claimed))

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the directory as its only driver for the time of a block.

        Raises:
            BusyError: If another driver holds it.
            OSError: If the directory cannot be made.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"--tune.out {self.out} cannot be made: {error.strerror}; give another") from error
        busy = f"--tune.out {self.out} is in use by process {{holder}}; wait until it ends, stop it, or give another"
        with locked(self.out / "lock", busy=busy):
            yield

    @contextmanager
    def training(self, key: str) -> Iterator[None]:
        """Hold a trial as the only process that trains it; wait for another that does.

        Args:
            key: The trial's key.
        """
        directory = self.directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / "lock", busy=None):
            yield


def _check_same(path: Path, found: Mapping[str, Any], claimed: Mapping[str, Any]) -> None:
    remedy = "give another --tune.out"
    for name in ("schema", "mlprank"):
        if found.get(name) != claimed[name]:
            raise ValueError(
                f"{path} was written by another version ({name} {found.get(name)}, this is {claimed[name]}); {remedy}"
            )
    if list(found["grid"]) != list(claimed["grid"]):
        ours, theirs = (", ".join(grid) for grid in (claimed["grid"], found["grid"]))
        raise ValueError(f"{path.parent} holds another grid, over {theirs}, not over {ours}; {remedy}")
    if found["base"] != claimed["base"]:
        raise ValueError(
            f"{path.parent} holds the same grid of another config (see its trials/*/config.yaml); {remedy}"
        )
    for key, values in found["grid"].items():
        missing = [value for value in values if value not in claimed["grid"][key]]
        if missing:
            raise ValueError(
                f"{path.parent} holds trials with {key} = {missing[0]}, which this grid leaves out; a grid can be "
                f"extended, not reduced: add the value or {remedy}"
            )


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
