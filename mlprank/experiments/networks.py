"""The trained networks of an experiment: which are there, which are missing and what makes them, and how they are loaded."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mlprank.artifact.checkpoint import read_checkpoint, sha256
from mlprank.artifact.spec import build_model
from mlprank.experiments.config import ExperimentConfig, nearest
from mlprank.models import get_model
from mlprank.thesis import find_trained, load_trained


@dataclass(frozen=True)
class Trained:
    """A trained network: its class by name, the data it is for, and its file with the SHA-256 of it."""

    model: str
    dataset: str
    model_args: Mapping[str, Any] | None
    path: str
    sha256: str


@dataclass(frozen=True)
class Missing:
    """A network of the grid without a checkpoint, and what to do about it."""

    network: str
    remedy: str


def find_networks(config: ExperimentConfig) -> tuple[tuple[Trained, ...], tuple[Missing, ...]]:
    """Look for the checkpoints of an experiment.

    Args:
        config: The experiment.

    Returns:
        The checkpoints that are there, each content once, and the networks that have none.

    Raises:
        ValueError: If a model or a data set is unknown; the nearest known one is named.
        OSError: If a file cannot be read.
    """
    found: dict[tuple[str, str], Trained] = {}
    missing: list[Missing] = []
    for network in config.networks:
        model, _, dataset = network.partition("@")
        get_model(model)
        check_dataset(dataset)
        for path in _files(config, network, missing):
            trained = Trained(model, dataset, config.model_args.get(network), str(path), sha256(path))
            found.setdefault((network, trained.sha256), trained)
    return tuple(found.values()), tuple(missing)


def check_dataset(name: str) -> None:
    """Raise a ValueError for a data set that there is not; the nearest is named."""
    known = _datasets()
    if name not in known:
        raise ValueError(f"data set {name!r} is not one of {', '.join(known)}{nearest(name, known)}")


def load_network(trained: Trained) -> nn.Module:
    """Build a network and load its weights.

    Args:
        trained: Which; without `model_args` it is built from what the checkpoint of `mlprank fit` says, else from its defaults.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: If the file is damaged, of another network, or the arguments do not fit.
    """
    if trained.model_args is not None:
        network = _built(trained.model, trained.model_args)
    else:
        spec = _recorded(read_checkpoint(trained.path), trained.model)
        network = _built(trained.model, {}) if spec is None else build_model(spec)
    return load_trained(trained.path, network)


def _files(config: ExperimentConfig, network: str, missing: list[Missing]) -> list[Path]:
    """The checkpoint files of a network that are there; what is not goes to `missing`."""
    given = config.checkpoints.get(network)
    if given is None:
        model, _, dataset = network.partition("@")
        try:
            return [find_trained(model, dataset, Path(config.checkpoint_root))]
        except FileNotFoundError as error:
            missing.append(Missing(network, str(error)))
            return []
    files: list[Path] = []
    for pattern in given:
        matched = [Path(path) for path in sorted(glob.glob(str(pattern))) if Path(path).is_file()]
        if not matched:
            missing.append(
                Missing(network, f"checkpoints: no file is there by the name {pattern}; train one with mlprank fit")
            )
        files += matched
    return files


def _built(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    cls = get_model(model)
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{model} cannot be built from {dict(arguments)}: {error}; give its arguments under model_args in the config"
        ) from error
    return cls(**arguments)


def _recorded(checkpoint: Mapping[str, Any], model: str) -> Mapping[str, Any] | None:
    """How the network of a Lightning checkpoint was built, where it says so and is of the class."""
    hyper_parameters = checkpoint.get("hyper_parameters")
    spec = hyper_parameters.get("model") if isinstance(hyper_parameters, Mapping) else None
    if isinstance(spec, Mapping) and str(spec.get("class_path", "")).rpartition(".")[2] == model:
        return spec
    return None


def _datasets() -> list[str]:
    from mlprank import datamodules

    return sorted(name.removesuffix("DataModule") for name in datamodules.__all__ if name.endswith("DataModule"))
