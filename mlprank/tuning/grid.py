"""What the user asked for: `--grid.…` and `--tune.…` of command line and config, checked and turned into trials."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mlprank.grids.store import check_share, short_hash
from mlprank.pruning.front import Budgets
from mlprank.training.explain import explain, text_value
from mlprank.training.parser import Request as CommandLine
from mlprank.training.parser import parse_fit
from mlprank.tuning.store import Trial, label, trial_config, trial_key, without_places
from mlprank.utils.errors import OptionError, check_amount, check_whole, require


@dataclass(frozen=True)
class Request:
    """What the user asked for, as written: options of `mlprank fit`, values by option, options of the search."""

    arguments: tuple[str, ...]
    grid: Mapping[str, list[Any]]
    tune: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid of checked points: a trial a point, and what tells it from others: a hash of the rest, and its values."""

    trials: tuple[Trial, ...]
    identity: Mapping[str, Any]


def read_request(argv: Sequence[str]) -> Request:
    """Take `--grid.…` and `--tune.…` out of a command line, and `grid:` and `tune:` out of its configs.

    What stands on the command line wins over the configs, option by option.
    """
    line = CommandLine.of(argv)
    contents = [dict(content) for content in line.contents]
    grids: dict[str, Any] = {}
    tune: dict[str, Any] = {}
    for content in contents:
        grids |= _flat(content.pop("grid", None) or {})
        tune |= content.pop("tune", None) or {}
    arguments = [f"--config={yaml.safe_dump(content, sort_keys=False)}" for content in contents if content]
    for name, value in line.options:
        group, _, key = name.partition(".")
        if group not in ("grid", "tune") or not key:
            arguments.append(f"--{name}" if value is None else f"--{name}={value}")
        elif value is None:
            raise ValueError(f"--{name} needs a value")
        elif group == "tune":
            tune[key] = value
        else:
            grids[key] = text_value(value)
    for key, values in grids.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f'--grid.{key}={values!r} must be a list of values, at least one, such as "[0.1, 0.01]"')
    if not grids:
        raise ValueError('the grid is empty; give at least one option with its values, such as --grid.lr "[0.1, 0.01]"')
    return Request(arguments=tuple(arguments), grid=grids, tune=tune)


def expand(request: Request) -> Grid:
    """Parse and check every point of a grid."""
    trials: dict[str, Trial] = {}
    values: dict[str, list[Any]] = {key: [] for key in request.grid}
    for point in (dict(zip(values, given, strict=True)) for given in itertools.product(*request.grid.values())):
        try:
            options = [option(key, value) for key, value in point.items()]
            config = trial_config(parse_fit([*request.arguments, *options]))
            resolved = {key: lookup(config, key) for key in values}
        except KeyError as error:
            raise ValueError(f"grid: an option takes no single value in the config ({error} is missing)") from error
        except (ValueError, TypeError) as error:
            raise OptionError(f"grid: {label(point)}: {error}") from error
        trial = Trial(key=trial_key(config), point=resolved, config=config)
        if trial.key in trials:
            raise ValueError(
                f"grid: {trials[trial.key].label} and {trial.label} are the same trial but for paths or the logger; "
                "leave one of them out"
            )
        trials[trial.key] = trial
        for key, value in resolved.items():
            if value not in values[key]:  # values may be lists, which have no hash
                values[key].append(value)
    base = _shared([trial.config for trial in trials.values()], values)
    return Grid(tuple(trials.values()), {"base": base, "grid": values})


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted option in a resolved config; `init_args` may be left out."""
    node: Any = config
    for word in key.split("."):
        if isinstance(node, Mapping) and word not in node and "init_args" in node:
            node = node["init_args"]
        node = node[word]
    return node


def option(key: str, value: Any) -> str:
    """Return an option of the command line."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _shared(configs: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> str:
    """Return the hash of what the points share, the grid's options left out; more values leave it the same."""
    # with a class its arguments are left out
    varied = tuple(f"{key}.".replace("init_args.", "").replace("class_path.", "") for key in keys)
    first, *others = (_flat(without_places(config)) for config in configs)
    common = {
        name: value
        for name, value in first.items()
        if not f"{name}.".replace("init_args.", "").startswith(varied)
        and all(name in other and other[name] == value for other in others)
    }
    return short_hash(json.dumps(common, sort_keys=True))


@dataclass(frozen=True)
class TuneOptions:
    """Options of `mlprank tune`.

    Args:
        out: Directory of the results; the same command with the same directory goes on.
        engine: `batched` trains all trials at once on one device, `local` one after another, `ray` on all devices of
            this machine or of a cluster; `auto` chooses.
        gpus_per_trial: GPUs, or a fraction of one, for a trial or a stack of trials; ray only.
        cpus_per_trial: CPU cores for a trial or a stack of trials; ray only.
        address: Address of a Ray cluster, or `auto` for the one that this machine belongs to.
        trials_per_stack: Largest number of trials in a stack; by default as many as fit into memory.
        checkpoint_minutes: Time between two checkpoints of a stack; 0 writes one at the end of every epoch.
        keep_checkpoints: How many of the best trials keep their checkpoint, at least 1.
        retry_failed: Train trials again that failed before.
        top: How many of the best trials are shown at the end.
        metric: What trials are ranked by, on the validation split: `val_top1` of the dense network, or `pruned_top1` of
            the pruned one.
        amount: With pruned_top1, the share of neurons that is pruned; 0.5 where no budget is given.
        max_drop: With pruned_top1, the points of validation accuracy that pruning may cost: the smallest such network
            is ranked.
        max_params: With pruned_top1, the parameters that the pruned network may have at most: a number or a share of
            the dense one's.
        max_flops: With pruned_top1, the FLOPs that it may take at most: a number or a share.
        max_bytes: With pruned_top1, the size that its file may have at most, such as 1MB, or a share.
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
    metric: Literal["val_top1", "pruned_top1"] = "val_top1"
    amount: float | None = None
    max_drop: float | None = None
    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_bytes: float | str | None = None

    @property
    def cut(self) -> dict[str, Any]:
        """How much is pruned before trials are ranked, as an option of `prune` or `shrink`; empty where nothing is."""
        names = ("amount", "max_drop", "max_params", "max_flops", "max_bytes")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return given if given or self.metric == "val_top1" else {"amount": 0.5}

    def __post_init__(self) -> None:
        size = 1 if self.trials_per_stack is None else self.trials_per_stack
        check_whole("--tune.", keep_checkpoints=self.keep_checkpoints, top=self.top, trials_per_stack=size)
        for name in ("cpus_per_trial", "gpus_per_trial"):
            check_share(f"--tune.{name}", getattr(self, name))
        names = list(self.cut)
        if names and self.metric == "val_top1":
            raise ValueError(
                f"--tune.{names[0]} says how much is pruned; add --tune.metric=pruned_top1 to rank by that"
            )
        if len(names) > 1:
            raise ValueError(f"--tune.{names[0]} and --tune.{names[1]}: give one of them")
        check_amount(self.cut.get("amount", 0.0), "--tune.amount")
        if names and "amount" not in names:
            Budgets(**self.cut)
        if not 0 <= self.checkpoint_minutes < float("inf"):
            raise ValueError(f"--tune.checkpoint_minutes={self.checkpoint_minutes} must be a number of at least 0")
        if self.engine == "ray":
            require("tune", "ray")
        if self.gpus_per_trial is not None and self.address is None and torch.cuda.device_count() == 0:
            raise ValueError(
                f"--tune.gpus_per_trial={self.gpus_per_trial:g}: there is no GPU here; leave it out, or give the "
                "address of a Ray cluster with --tune.address"
            )


def parse_options(given: Mapping[str, Any]) -> TuneOptions:
    """Parse the options of the search."""
    parser, options = option_parser(), [(f"tune.{name}", str(value)) for name, value in {"out": "", **given}.items()]
    try:
        parsed = parser.parse_args([f"--{name}={value}" for name, value in options]).tune
    except ArgumentError as error:
        explain(parser, options, error)
    if not parsed.out:
        raise OptionError("give the directory of the results with --out, such as --out runs/grid")
    return TuneOptions(**vars(parsed))


def option_parser() -> ArgumentParser:
    """Return the parser of the search's options, for its help."""
    parser = ArgumentParser(prog="mlprank tune", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(TuneOptions, "tune")
    return parser
