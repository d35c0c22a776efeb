"""Trials on all devices of this machine or of a cluster, placed and restarted by Ray Tune; our records are the truth."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlprank.tuning.engine import Watcher
from mlprank.tuning.options import TuneOptions
from mlprank.tuning.stacking import check_stackable, group_trials
from mlprank.tuning.store import Store
from mlprank.tuning.tracing import CannotStackError
from mlprank.tuning.trial import Trial

_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray builds a new environment for every worker under `uv run`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "auto",
}
_RESTARTS = 3
_POLL_S = 1.0


@dataclass(frozen=True)
class Unit:
    """What one actor trains at a time: one trial, or one stack of trials.

    Attributes:
        out: Directory of the results, absolute.
        keys: The trials' keys.
        points: Their points.
        gpu: Whether the actor has a GPU; without one it must not use those that it sees.
        trials_per_stack: Largest number of trials in a stack.
        checkpoint_minutes: Time between two checkpoints of a stack.
    """

    out: str
    keys: tuple[str, ...]
    points: tuple[Mapping[str, Any], ...]
    gpu: bool
    trials_per_stack: int | None
    checkpoint_minutes: float


class RayEngine:
    """Trains trials by Ray Tune.

    Args:
        options: Of the search.
    """

    def __init__(self, options: TuneOptions) -> None:
        self.options = options

    def run(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        """Train the trials; a worker or a node that dies loses the trial that it was at, which starts again.

        Args:
            trials: Without a record.
            store: Where they are recorded, seen by all nodes under the same path.
            watcher: Told what is recorded.
        """
        prepare_environment(self.options.address)
        import ray
        from ray import tune

        for trial in trials:
            store.prepare(trial)
        started = start_ray(self.options.address)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = self._gpus(resources)
        slots = self._slots(resources, gpus)
        units = [self._unit(part, store, gpus > 0) for part in split(trials, slots=slots, watcher=watcher)]
        watcher.note(f"ray: {len(units)} units of work on {slots} places")
        watching = _Watching(trials, store, watcher)
        watching.start()
        try:
            with tempfile.TemporaryDirectory(prefix="mlprank-ray-") as scratch:
                trainable = tune.with_resources(
                    _trainable(), {"cpu": self.options.cpus_per_trial, **({"gpu": gpus} if gpus else {})}
                )
                tuner = tune.Tuner(
                    trainable,
                    param_space={"unit": tune.grid_search(units)},
                    tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=slots),
                    run_config=tune.RunConfig(
                        name="trials",
                        storage_path=scratch,
                        verbose=0,
                        failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    ),
                )
                tuner.fit()
        finally:
            watching.stop()
            if started:
                ray.shutdown()

    def _gpus(self, resources: Mapping[str, float]) -> float:
        if self.options.gpus_per_trial is not None:
            return self.options.gpus_per_trial
        return 1.0 if resources.get("GPU", 0.0) >= 1 else 0.0

    def _slots(self, resources: Mapping[str, float], gpus: float) -> int:
        places = resources.get("CPU", 1.0) // self.options.cpus_per_trial
        if gpus:
            places = min(places, resources.get("GPU", 0.0) // gpus)
        if places < 1:
            raise ValueError(
                f"--tune.cpus_per_trial={self.options.cpus_per_trial:g} and {gpus:g} GPUs a trial do not fit into the "
                f"cluster's {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
            )
        return int(places)

    def _unit(self, trials: Sequence[Trial], store: Store, gpu: bool) -> Unit:
        return Unit(
            out=str(store.out.resolve()),
            keys=tuple(trial.key for trial in trials),
            points=tuple(dict(trial.point) for trial in trials),
            gpu=gpu,
            trials_per_stack=self.options.trials_per_stack,
            checkpoint_minutes=self.options.checkpoint_minutes,
        )


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported; a Ray that we start takes no command without its token.

    Args:
        address: Of a cluster, which has its own rules; None if one is to be started here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def start_ray(address: str | None) -> bool:
    """Connect to a cluster, or start Ray here: without its dashboard, for this machine alone, with a token.

    Args:
        address: Of the cluster; None starts one here, whatever else runs on this machine.

    Returns:
        Whether this call connected or started.
    """
    import ray

    if ray.is_initialized():
        return False
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return True
    ray.init(
        address="local",  # without it Ray joins any cluster that was last started here, even a dead one
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    return True


def split(trials: Sequence[Trial], *, slots: int, watcher: Watcher) -> list[list[Trial]]:
    """Split trials into what one actor trains at a time: stacks of even size where they can be stacked, else one each.

    Args:
        trials: To train.
        slots: How many units run at the same time.
        watcher: Told why trials are not stacked.
    """
    units: list[list[Trial]] = []
    for group in group_trials(trials):
        try:
            check_stackable(group[0].config)
            size = -(-len(group) // slots)
        except CannotStackError as reason:
            watcher.note(f"{len(group)} trials are trained one by one: {reason}")
            size = 1
        units += [list(group[start : start + size]) for start in range(0, len(group), size)]
    return units


def _trainable() -> Any:
    """Return the class that Ray's actors run; Ray is imported only here."""
    from ray import tune

    class TrainUnits(tune.Trainable):
        """Trains one unit a trial of Ray's; an actor goes on with the next unit without importing anything again."""

        def setup(self, config: dict[str, Any]) -> None:
            self.unit: Unit = config["unit"]
            from mlprank.tuning.ray_worker import UnitRunner

            self.runner = UnitRunner()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.unit = new_config["unit"]
            return True

        def step(self) -> dict[str, Any]:
            self.runner.run(self.unit)
            return {"done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Ray saves nothing: the store is the truth."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Ray restores nothing: an interrupted trial starts again."""

    return TrainUnits


class _Watching(threading.Thread):
    """Reads the store while Ray works, and tells the watcher what is new."""

    def __init__(self, trials: Sequence[Trial], store: Store, watcher: Watcher) -> None:
        super().__init__(daemon=True)
        self.waiting, self.store, self.watcher = list(trials), store, watcher
        self._ended = threading.Event()
        self._shown: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._look()

    def stop(self) -> None:
        """Look a last time and end."""
        self._ended.set()
        self.join()
        self._look()

    def _look(self) -> None:
        for trial in list(self.waiting):
            outcome, failure = self.store.outcome(trial.key), self.store.failure(trial.key)
            if outcome is not None:
                self.watcher.finished(trial, outcome)
            elif failure is not None:
                self.watcher.failed(trial, failure)
            else:
                self._show(trial)
                continue
            self.waiting.remove(trial)

    def _show(self, trial: Trial) -> None:
        row = self.store.progress(trial.key)
        if row is None or self._shown.get(trial.key) == row:
            return
        if trial.key not in self._shown:
            self.watcher.started([trial])
        self._shown[trial.key] = row
        if row:
            self.watcher.epoch(trial, row)
