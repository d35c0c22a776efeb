"""The trials in order of their validation accuracy, and the files that show it."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlprank.grids.durable import write_whole
from mlprank.tuning.store import BEST, Store
from mlprank.tuning.trial import MONITOR, Outcome, Trial, format_value, short_names
from mlprank.utils.files import whole_file

Ranked = list[tuple[Trial, Outcome]]


def rank(trials: Sequence[Trial], store: Store) -> Ranked:
    """Return the trials that ended well, the best first; of equal ones the first in the grid.

    Args:
        trials: In the order of the grid.
        store: Their records.
    """
    pairs = [(trial, outcome) for trial in trials if (outcome := store.outcome(trial.key)) is not None]
    finite = [pair for pair in pairs if math.isfinite(pair[1].score)]
    return sorted(finite, key=lambda pair: -pair[1].score)


def keep_best_checkpoints(trials: Sequence[Trial], store: Store, *, keep: int) -> None:
    """Delete the checkpoints of all but the best finished trials.

    Args:
        trials: In the order of the grid.
        store: Their records.
        keep: How many stay.
    """
    for trial, _ in rank(trials, store)[keep:]:
        (store.directory(trial.key) / BEST).unlink(missing_ok=True)


def copy_best(best: Trial, store: Store) -> Path:
    """Copy the best trial's checkpoint to `best.ckpt` of the directory.

    Args:
        best: The best trial.
        store: Its store.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If somebody took the trial's checkpoint away.
    """
    source, target = store.directory(best.key) / BEST, store.out / BEST
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} is missing; delete {source.parent} and run the same command again to train that trial anew"
        )
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def write_table(trials: Sequence[Trial], store: Store) -> Path:
    """Write `trials.csv`: a row a trial with its point, status and metrics.

    Args:
        trials: In the order of the grid.
        store: Their records.

    Returns:
        The path.
    """
    names = short_names(list(trials[0].point))
    rows = [row_of(trial, store, names) for trial in trials]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = store.out / "trials.csv"
    write_whole(path, buffer.getvalue().encode())
    return path


def row_of(trial: Trial, store: Store, names: Mapping[str, str]) -> dict[str, object]:
    """Return a trial's row of the table.

    Args:
        trial: The trial.
        store: Its store.
        names: Column by option.
    """
    outcome = store.outcome(trial.key)
    failure = store.failure(trial.key)
    status = outcome.status if outcome else "failed" if failure else "unfinished"
    metrics = outcome.metrics if outcome else {}
    return {
        "key": trial.key,
        **{names[key]: format_value(value) for key, value in trial.point.items()},
        "status": status,
        **{name: metrics.get(name, math.nan) for name in (MONITOR, "val_top5", "val_loss", "train_loss")},
        "best_epoch": outcome.best_epoch if outcome else "",
        "duration_s": round(outcome.duration_s, 2) if outcome else "",
        "engine": outcome.engine if outcome else "",
        "error": failure or "",
    }
