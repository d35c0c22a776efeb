"""Units of work on all devices, here or of a cluster, placed and restarted by Ray Tune; our records are the truth."""

import importlib
import logging
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
class Places:
    """Where units run: how many at the same time, and the CPU cores and GPUs (or a fraction of one) of each."""

    slots: int
    cpus: float
    gpus: float


def check_share(name: str, value: float | None) -> None:
    """Raise a ValueError where a number of cores or GPUs is neither a fraction nor whole."""
    if value is not None and not (0 < value < 1 or (value >= 1 and value == int(value))):
        raise ValueError(f"{name}={value} must be a fraction in (0, 1) or a whole number of at least 1")


@contextmanager
def ray_places(address: str | None, *, cpus: float, gpus: float | None, option: str) -> Iterator[Places]:
    """Connect to a cluster, or start Ray here for the time of a block: without its dashboard, for this machine alone.

    Args:
        address: Of the cluster; None starts one here, whatever else runs on this machine.
        cpus: CPU cores for a unit.
        gpus: GPUs for a unit; None takes one where there are any.
        option: What the command line calls the two, such as "--tune.{}_per_trial".
    """
    prepare_environment(address)
    import ray

    started = not ray.is_initialized()
    if started:
        alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        # without "local" Ray joins any cluster that was last started here, even a dead one
        options = {"address": address} if address else {"address": "local", **alone}
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    try:
        resources: dict[str, float] = ray.cluster_resources()
        has_cpus, has_gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
        share = (1.0 if has_gpus >= 1 else 0.0) if gpus is None else gpus
        slots = min(has_cpus // cpus, has_gpus // share if share else float("inf"))
        if slots < 1:
            raise ValueError(
                f"{option.format('cpus')}={cpus:g} and {share:g} GPUs do not fit into the cluster's {has_cpus:g} CPUs "
                f"and {has_gpus:g} GPUs"
            )
        yield Places(int(slots), cpus, share)
    finally:
        if started:
            ray.shutdown()


def run_units(units: Sequence[Any], *, worker: str, places: Places, look: Callable[[], None]) -> None:
    """Run units of work on Ray's actors; the unit of a worker or a node that dies starts again.

    An actor makes one `worker`, "module:Class", and calls its `run(unit)` for every unit; `look` is called every second
    and at the end, to see what the workers have recorded.
    """
    from ray import tune

    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            look()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        with tempfile.TemporaryDirectory(prefix="mlprank-ray-") as scratch:
            resources = {"cpu": places.cpus, **({"gpu": places.gpus} if places.gpus else {})}
            tune.Tuner(
                tune.with_resources(_trainable(worker), resources),
                param_space={"unit": tune.grid_search(list(units))},
                tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=places.slots),
                run_config=tune.RunConfig(
                    name="units",
                    storage_path=scratch,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                ),
            ).fit()
    finally:
        ended.set()
        watching.join()
        look()  # what a look before has raised is raised here again


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported; one that we start (no address) takes no command without its token."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _trainable(worker: str) -> Any:
    """Return the class that Ray's actors run, where the driver stands and with its modules."""
    from ray import tune

    here, modules = os.getcwd(), list(sys.path)

    class RunUnits(tune.Trainable):
        """Runs one unit a trial of Ray's; an actor goes on with the next unit without importing anything again."""

        def setup(self, config: dict[str, Any]) -> None:
            sys.path.extend(path for path in modules if path not in sys.path)
            module, _, name = worker.partition(":")
            self.unit: Any = config["unit"]
            self.worker = getattr(importlib.import_module(module), name)()

        def reset_config(self, new_config: Mapping[str, Any]) -> bool:
            self.unit = new_config["unit"]
            return True

        def step(self) -> dict[str, Any]:
            if os.path.isdir(here):  # relative paths of checkpoints and data; Ray moves actors for every trial
                os.chdir(here)
            self.worker.run(self.unit)
            return {"done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Ray saves nothing: our records are the truth."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Ray restores nothing: an interrupted unit starts again with what has no record."""

    return RunUnits
