"""The options of the search itself: `--tune.…`, or `tune:` in a config."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser

from mlprank.utils.errors import OptionError, did_you_mean


@dataclass(frozen=True)
class TuneOptions:
    """Options of `mlprank tune`.

    Args:
        out: Directory of the results; the same command with the same directory goes on.
        engine: `batched` trains all trials at once on one device, `local` one after another, `ray` on all devices of this
            machine or of a cluster; `auto` chooses.
        gpus_per_trial: GPUs, or a fraction of one, for a trial or a stack of trials; ray only.
        cpus_per_trial: CPU cores for a trial or a stack of trials; ray only.
        address: Address of a Ray cluster, or `auto` for the one that this machine belongs to.
        trials_per_stack: Largest number of trials in a stack; by default as many as fit into memory.
        checkpoint_minutes: Time between two checkpoints of a stack; 0 writes one at the end of every epoch.
        keep_checkpoints: How many of the best trials keep their checkpoint, at least 1.
        retry_failed: Train trials again that failed before.
        top: How many of the best trials are shown at the end.
    """

    out: str
    engine: Literal["auto", "batched", "local", "ray"] = "auto"
    gpus_per_trial: float | None = None
    cpus_per_trial: float = 1.0
    address: str | None = None
    trials_per_stack: int | None = None
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 1
    retry_failed: bool = False
    top: int = 5

    def __post_init__(self) -> None:
        for name in ("trials_per_stack", "keep_checkpoints", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--tune.{name}={value} must be at least 1")
        for name in ("cpus_per_trial", "gpus_per_trial"):
            value = getattr(self, name)
            if value is not None and not (0 < value < 1 or (value >= 1 and value == int(value))):
                raise ValueError(f"--tune.{name}={value} must be a fraction in (0, 1) or a whole number of at least 1")
        if not 0 <= self.checkpoint_minutes < float("inf"):
            raise ValueError(f"--tune.checkpoint_minutes={self.checkpoint_minutes} must be a number of at least 0")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise ImportError("--tune.engine ray needs Ray; install it with `python -m pip install 'mlprank[tune]'`")
        if self.gpus_per_trial is not None and self.address is None and torch.cuda.device_count() == 0:
            raise ValueError(
                f"--tune.gpus_per_trial={self.gpus_per_trial:g}: there is no GPU here; leave it out, or give the address of "
                "a Ray cluster with --tune.address"
            )


def parse_options(given: Mapping[str, Any]) -> TuneOptions:
    """Parse the options of the search.

    Args:
        given: Values as written, by name.

    Returns:
        The options.

    Raises:
        OptionError: If an option is unknown, missing or has the wrong type.
        ValueError: If a value is out of range.
        ImportError: If Ray is asked for and not installed.
    """
    names = list(TuneOptions.__dataclass_fields__)
    for name in given:
        if name not in names:
            raise OptionError(
                f"there is no option '--tune.{name}'{did_you_mean(name, names)}; there are {', '.join(names)}"
            )
    if "out" not in given:
        raise OptionError("give the directory of the results with --tune.out, such as --tune.out runs/grid")
    try:
        parsed = option_parser().parse_args([f"--tune.{name}={value}" for name, value in given.items()])
    except ArgumentError as error:
        raise OptionError(str(error)) from error
    return TuneOptions(**vars(parsed.tune))


def option_parser() -> ArgumentParser:
    """Return the parser of the search's options, for its help."""
    parser = ArgumentParser(prog="mlprank tune", exit_on_error=False)
    parser.add_class_arguments(TuneOptions, "tune")
    return parser
