"""Units of work on all devices, here or of a cluster, placed and restarted by Ray; our records are the truth."""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mlprank.grids.progress import Progress
from mlprank.utils.errors import first_line

_RESTARTS = 3
_POLL_S = 1.0


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported; one that we start (no address) takes no command without its token."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else it builds an environment for every worker
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def run_units(
    make: Callable[[int, bool], Sequence[tuple[Sequence[Any], Callable[[], Any]]]],
    ended: Callable[[Sequence[Any], Any], None],
    progress: Progress,
    *,
    address: str | None,
    cpus: float,
    gpus: float | None,
    option: str,
) -> None:
    """Run the cells of a grid in processes of Ray's; what a process or a node was at that dies starts again.

    `make` gives units of work, each its cells and the function that runs them, by the number of units that run at the
    same time and whether each has a GPU; a process goes on with the next unit without importing again. `ended` is
    called with the cells of a unit and what its function returned. An `address` of None starts Ray here, for this
    machine alone. A unit has so many `cpus` and `gpus`, a whole GPU where None is said and there are any; `option` is
    what the command line calls the two, such as "--tune.{}_per_trial".
    """
    prepare_environment(address)
    import ray

    here, modules, started = os.getcwd(), list(sys.path), not ray.is_initialized()
    if started:
        alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        # without "local" Ray joins any cluster that was last started here, even a dead one
        options = {"address": address} if address else {"address": "local", **alone}
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)

    def call(function: Callable[[], Any]) -> Any:
        sys.path.extend(path for path in modules if path not in sys.path)
        if os.path.isdir(here):  # relative paths of checkpoints and data
            os.chdir(here)
        return function()

    try:
        resources: dict[str, float] = ray.cluster_resources()
        has_cpus, has_gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
        share = (1.0 if has_gpus >= 1 else 0.0) if gpus is None else gpus
        slots = int(min(has_cpus // cpus, has_gpus // share if share else has_cpus // cpus))
        if slots < 1:
            raise ValueError(
                f"{option.format('cpus')}={cpus:g} and {share:g} GPUs do not fit into the cluster's {has_cpus:g} CPUs "
                f"and {has_gpus:g} GPUs"
            )
        waiting, running = list(make(slots, share > 0)), dict[Any, Sequence[Any]]()
        progress.note(f"ray: {len(waiting)} units of work on {slots} places")
        # max_calls: else Ray starts a process for every unit that has a GPU
        remote = ray.remote(num_cpus=cpus, num_gpus=share, max_retries=_RESTARTS, max_calls=0)(call)
        while waiting or running:
            while waiting and len(running) < slots:
                items, function = waiting.pop(0)
                running[remote.remote(function)] = items
                progress.started(items)
            for done in ray.wait(list(running), timeout=_POLL_S)[0]:
                items = running.pop(done)
                try:
                    ended(items, ray.get(done))
                except ray.exceptions.RayError as error:  # what has no record is unfinished; the others go on
                    progress.note(f"ray: a unit of work has failed: {first_line(error)}")
    finally:
        if started:
            ray.shutdown()
