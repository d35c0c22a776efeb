"""One trial in processes of its own: `python -m mlprank.tuning.worker OUT KEY`, for trials on several devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from mlprank.training.build import TrialBuilder
from mlprank.tuning.local import train
from mlprank.tuning.store import CONFIG, Store
from mlprank.tuning.trial import Outcome, Trial


class Silent:
    """Watches without a word."""

    def started(self, trials: Sequence[Trial]) -> None:
        """Say nothing."""

    def epoch(self, trial: Trial, row: Mapping[str, float]) -> None:
        """Say nothing."""

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """Say nothing."""

    def failed(self, trial: Trial, error: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


def load_trial(store: Store, key: str, point: Mapping[str, object]) -> Trial:
    """Read a trial from its directory.

    Args:
        store: The store.
        key: The trial's key.
        point: The grid's options and values.
    """
    config = yaml.safe_load((store.directory(key) / CONFIG).read_text())
    return Trial(key=key, point=dict(point), config=config)


def main(arguments: Sequence[str]) -> int:
    """Train the trial; the first process records it.

    Args:
        arguments: The store's directory and the trial's key.

    Returns:
        The exit code, 0.
    """
    out, key = arguments
    store = Store(Path(out))
    trial = load_trial(store, key, {})
    outcome = train(TrialBuilder(), trial, store, Silent(), options={}, name="local")
    if all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")):
        store.finish(trial, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
