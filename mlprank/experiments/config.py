"""The configuration of an experiment, read from YAML and changed by flags; needs no torch, so that errors come fast."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlprank.grids.store import check_share
from mlprank.utils.errors import check_amount, check_choice, check_whole, did_you_mean, require
from mlprank.utils.files import load_config

PUBLISHED_MEASURES = (
    "WeightedPageRank",
    "ModifiedPageRank",
    "ChannelRandom",
    "ChannelNorm",
    "ChannelActivation",
    "ChannelWandA",
)
THESIS_PAIRS = {
    "TwoLayerMLP": "MNIST",
    "ThreeLayerMLP": "FashionMNIST",
    "SixLayerMLP": "CIFAR10",
    "TwelveLayerMLP": "CIFAR100",
}
"""The data set that the thesis trained each network on."""

PUBLISHED = "published"
"""As the graph of a cell it stands for all published conditions."""
PUBLISHED_AXES = {
    "graphs": [PUBLISHED],
    "compensations": ["constant"],
    "protect_output": [False],
    "calibration_seeds": [0],
}
"""What the published conditions leave no choice in; `--published` sets it."""
_OWN = {
    "amount": "amounts",
    "measure": "measures",
    "method": "methods",
    "compensation": "compensations",
    "graph": "graphs",
    "protect_output": "protect_output",
    "num_samples": "calibration_samples",
    "seed": "calibration_seeds",
}
"""Fields of the recipe that an experiment has keys of its own for."""
_LISTS = ("networks", *(key for key in _OWN.values() if key != "calibration_samples"))


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """An experiment. Lists are the axes of the grid; every combination is a cell.

    A value that is out of range and a list that is empty are a ValueError, one of the wrong type is a TypeError.
    """

    name: str = "experiment"  # names the results directory and the W&B group
    # "MODEL@DATASET" each, names or dotted paths to classes; a name without a data set takes the thesis's
    networks: Sequence[str] = ("TwoLayerMLP", "ThreeLayerMLP", "SixLayerMLP", "TwelveLayerMLP")
    # by network, files of trained ones (`*` matches as in a shell); others are looked for below `checkpoint_root`
    checkpoints: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # by network, arguments of its class, such as {MLP@Digits: {in_features: 64, widths: [64], num_classes: 10}}
    model_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # likewise of its data's class
    checkpoint_root: str = "."  # holds `runs/` or published `<model>_<dataset>.pth` files
    # names, dotted paths, or descriptions such as {name: norm, p: 2}; so are methods and compensations
    measures: Sequence[str | Mapping[str, Any]] = PUBLISHED_MEASURES
    measure_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by measure, arguments of its class
    methods: Sequence[str | Mapping[str, Any]] = ("Local", "Global")
    amounts: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5)  # shares of neurons to take out, in [0, 1)
    compensations: Sequence[str | Mapping[str, Any]] = ("constant",)  # what a pruned neuron leaves behind
    graphs: Sequence[str] = ("chain",)  # "chain", "dag"; "published" is `mlprank.thesis.PublishedConditions`
    protect_output: Sequence[bool] = (True,)  # whether the output layer stays whole
    calibration_samples: int = 64
    calibration_seeds: Sequence[int] = (0,)
    # by name, values of further fields of `mlprank.Recipe`, such as {round_to: [1, 8]}; axes of the grid, too
    recipe: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    data_dir: str | None = None  # where the image files are
    device: str = "cpu"  # where to prune and test
    latency: bool = True  # whether to measure latencies
    out: str | None = None  # the results directory; by default runs/experiments/<name>
    engine: str = "local"  # "ray" runs the cells on all devices of this machine or of a cluster
    address: str | None = None  # of a Ray cluster, or "auto" for the one that this machine belongs to
    cpus_per_cell: float = 1.0  # CPU cores for a unit of cells; ray only
    gpus_per_cell: float | None = None  # GPUs, or a fraction of one; ray only

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _listed(name, getattr(self, name)))
        object.__setattr__(self, "networks", tuple(paired(network) for network in self.networks))
        for name in ("checkpoints", "model_args", "data_args"):
            object.__setattr__(self, name, self._by_network(name))
        for amount in self.amounts:
            check_amount(amount, "amounts")
        for seed in self.calibration_seeds:
            check_whole(least=0, calibration_seeds=seed)
        check_whole(calibration_samples=self.calibration_samples)
        for protected in self.protect_output:
            if not isinstance(protected, bool):
                raise TypeError(f"protect_output: {protected!r} is neither true nor false")
        for graph in self.graphs:
            check_choice("graphs", graph, ("chain", "dag", PUBLISHED))
        if PUBLISHED in self.graphs and (self.compensations, self.protect_output) != (("constant",), (False,)):
            raise ValueError(
                'graphs: "published" stands for all published conditions, which have compensations: [constant] and '
                "protect_output: [false]; --published sets all of them"
            )
        if not isinstance(self.recipe, Mapping):
            raise TypeError(f"recipe={self.recipe!r} must hold values by field, such as {{round_to: [1, 8]}}")
        further = {name: _listed(f"recipe: {name}", values) for name, values in self.recipe.items()}
        if taken := [name for name in further if name in _OWN]:
            raise ValueError(f"recipe: {taken[0]} has a key of its own in an experiment: {_OWN[taken[0]]}")
        object.__setattr__(self, "recipe", further)
        check_choice("engine", self.engine, ("local", "ray"))
        if self.engine == "ray":
            require("tune", "ray")
        for name in ("cpus_per_cell", "gpus_per_cell"):
            check_share(name, getattr(self, name))
        check_choice("device", self.device.partition(":")[0], ("cpu", "cuda", "mps"))
        given = self.measure_args
        if not isinstance(given, Mapping) or not all(isinstance(each, Mapping) for each in given.values()):
            raise TypeError(f"measure_args={given!r} must hold arguments by measure, as {{ChannelNorm: {{p: 2}}}}")

    @property
    def directory(self) -> Path:
        """The results directory."""
        return Path(self.out) if self.out is not None else Path("runs") / "experiments" / self.name

    def plain(self) -> dict[str, Any]:
        """The configuration as plain types, for YAML and W&B."""
        return dict(json.loads(json.dumps(vars(self))))  # tuples as lists

    def _by_network(self, name: str) -> dict[str, Any]:
        given = getattr(self, name)
        if not isinstance(given, Mapping):
            raise TypeError(f"{name}={given!r} must be a mapping by network, as {{ThreeLayerMLP@FashionMNIST: …}}")
        found: dict[str, Any] = {}
        for network, value in given.items():
            known = paired(network)
            if known not in self.networks:
                raise ValueError(
                    f"{name}: {network!r} is not in the grid{did_you_mean(known, self.networks)}; its networks are "
                    f"{', '.join(self.networks)}"
                )
            arguments = name != "checkpoints"
            if arguments and not isinstance(value, Mapping):
                raise TypeError(f"{name} of {network}: {value!r} must be a mapping, such as {{in_features: 64}}")
            found[known] = dict(value) if arguments else _listed(f"checkpoints of {network}", value)
        return found


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the YAML file of an experiment; a ValueError names a key that no experiment has, and the nearest."""
    content = load_config(str(path), of="the keys of an experiment")
    known = [item.name for item in dataclasses.fields(ExperimentConfig)]
    if unknown := [str(key) for key in content if key not in known]:
        near = did_you_mean(unknown[0], known)
        raise ValueError(f"{path}: there is no key {unknown[0]!r}{near}; the keys are {', '.join(known)}")
    return {"name": Path(path).stem, **content}


def write_config(config: ExperimentConfig) -> str:
    """Return the configuration as YAML text."""
    text: str = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return text


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    """One value or a list of them, each once, in order."""
    values = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
    if not values:
        raise ValueError(f"the grid is empty: {name} holds nothing; give at least one")
    return tuple(each for index, each in enumerate(values) if each not in values[:index])


def paired(network: object) -> str:
    """Return MODEL@DATASET, with the data set of the thesis where none is given; a ValueError where it has none."""
    if not isinstance(network, str) or network.count("@") > 1:
        raise ValueError(f"networks: {network!r} is not MODEL@DATASET, such as ThreeLayerMLP@FashionMNIST")
    model, at, dataset = network.partition("@")
    if at and model and dataset:
        return network
    if at or model not in THESIS_PAIRS:
        raise ValueError(
            f"networks: {network!r} names no data set{did_you_mean(model, THESIS_PAIRS)}; write MODEL@DATASET, such "
            f"as {model or 'MLP'}@FashionMNIST (the thesis's networks have one: {', '.join(THESIS_PAIRS)})"
        )
    return f"{model}@{THESIS_PAIRS[model]}"
