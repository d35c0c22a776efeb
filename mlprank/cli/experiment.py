"""`mlprank experiment` and `mlprank dashboard`: a grid of prunings over trained networks, and W&B's view of it."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import CommandParser
from mlprank.experiments.config import PUBLISHED_AXES, THESIS_PAIRS, ExperimentConfig, paired, read_config, write_config


def _json(text: str) -> Mapping[str, Any]:
    with suppress(ValueError):
        if isinstance(value := json.loads(text), dict):
            return value
    example = '{"ChannelNorm": {"p": 2}}'
    raise argparse.ArgumentTypeError(f"{text!r} is not a mapping in JSON, such as '{example}'")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


EXPERIMENT = CommandParser(
    "experiment",
    "Prune trained networks in every combination of measure, method and amount, test what comes out, and record every "
    "cell. The same command goes on where it was interrupted; more values extend the grid.",
    "mlprank experiment --config experiments/thesis --report",
)
EXPERIMENT.add("config", text="the experiment, a file or a name; what is typed wins over it", type=Path)
EXPERIMENT.add("name", "NAME", "what it is called; default: the config's file name")
EXPERIMENT.add("out", "DIR", "results directory; default runs/experiments/NAME")
EXPERIMENT.add("measure_args", "JSON", 'such as \'{"ChannelNorm": {"p": 2}}\'', type=_json)
EXPERIMENT.add("recipe", "JSON", "further fields of the recipe, such as '{\"round_to\": [1, 8]}'", type=_json)
EXPERIMENT.add("num_samples", text="calibration images; default 64", dest="calibration_samples", type=int)
EXPERIMENT.add("checkpoint_root", "DIR", "holds runs/ or <model>_<data>.pth; default: here")
EXPERIMENT.add("data_dir")
EXPERIMENT.add("accelerator", "DEVICE", "cpu, cuda; default cpu", dest="device")
EXPERIMENT.add("latency", text="measure latencies; on by default", action="store_true", default=None)
EXPERIMENT.add("no_latency", text="measure none", dest="latency", action="store_false")
EXPERIMENT.add("published", text="under all published conditions; see docs/tasks/thesis.md", action="store_true")
EXPERIMENT.add("dry_run", text="list the cells and end", action="store_true")
EXPERIMENT.add("report", text="write the report at the end", action="store_true")
EXPERIMENT.begin("the grid; several values each")
EXPERIMENT.add("model", "MODEL", "networks, such as ThreeLayerMLP or ThreeLayerMLP@MNIST", nargs="+")
EXPERIMENT.add("data", "DATA", "their data sets; default: those of the thesis", nargs="+")
EXPERIMENT.add("measure", dest="measures", nargs="+")
EXPERIMENT.add("method", dest="methods", nargs="+")
EXPERIMENT.add("amount", text="in [0, 1)", dest="amounts", nargs="+", type=float)
EXPERIMENT.add("compensation", dest="compensations", nargs="+")
EXPERIMENT.add("graph", text="chain, dag", dest="graphs", nargs="+")
EXPERIMENT.add("protect_output", "BOOL", "true, false", nargs="+", type=_boolean)
EXPERIMENT.add("seed", text="calibration draws", dest="calibration_seeds", nargs="+", type=int)
EXPERIMENT.add("ckpt_path", text="trained networks of one model and data set", nargs="+")
EXPERIMENT.begin("where cells run")
EXPERIMENT.add("engine", "NAME", "local (default): here; ray: on all devices", choices=("local", "ray"))
EXPERIMENT.add("address", "ADDRESS", "of a Ray cluster, or auto; default: Ray is started here")
EXPERIMENT.add("cpus_per_cell", "N", "CPU cores for a unit of cells; default 1", type=float)
EXPERIMENT.add("gpus_per_cell", "N", "GPUs, or a fraction of one, for a unit of cells", type=float)
EXPERIMENT.begin("Weights & Biases")
EXPERIMENT.add("wandb", text="log one run with a table of cells, tables and plots", action="store_true")
EXPERIMENT.add("wandb_cells", text="log a run for every cell too", action="store_true")
EXPERIMENT.add("wandb_project", "NAME", "default mlprank", default="mlprank")
EXPERIMENT.add("wandb_entity", "NAME", "user or team; default: that of the login")


DASHBOARD = CommandParser(
    "dashboard",
    "Set up a Weights & Biases workspace for what `mlprank experiment --wandb` and `mlprank tune` logged: accuracy "
    "against amount by measure, the latency front, parallel coordinates and parameter importance of tuning. Offline it "
    "prints what it would create.",
    "mlprank dashboard --project mlprank",
)
DASHBOARD.add("project", "NAME", "the project; default mlprank", default="mlprank")
DASHBOARD.add("entity", "NAME", "user or team; default: that of the login")
DASHBOARD.add("name", "NAME", "the workspace's name; default mlprank", default="mlprank")
DASHBOARD.add("dry_run", text="print what would be created", action="store_true")


def experiment(argv: list[str]) -> int:
    """Run a grid, or go on with it; return the exit code, 1 where cells failed."""
    arguments = EXPERIMENT.parse_args(argv)
    config = _config(arguments)
    from mlprank.experiments.records import RecordStore
    from mlprank.experiments.runner import cells_of, find_networks
    from mlprank.utils.files import write_whole

    networks, missing = find_networks(config)
    cells = cells_of(config, networks)
    for each in missing:
        print(f"missing: {each}", file=sys.stderr, flush=True)
    if not networks:
        raise FileNotFoundError(
            "no network of the grid has a checkpoint; train one by a command above, or name files by `checkpoints:` "
            "in the config or --ckpt_path"
        )
    plural = "s" * (len(networks) > 1)
    print(f"{config.name}: {len(cells)} cells of {len(networks)} trained network{plural}", flush=True)
    if arguments.dry_run:
        print("".join(f"  {cell.label}\n" for cell in cells), end="")
        return 0
    with RecordStore(config.directory) as store:
        if store.notice:
            print(store.notice, file=sys.stderr)
        write_whole(config.directory / "config.yaml", write_config(config))
        _run(config, networks, cells, store)
        keys = {cell.key for cell in cells}
        records = [record for record in store.records if record.key in keys]
        from mlprank.report import print_findings

        print_findings(records, config.directory)
        if arguments.wandb:
            from mlprank.report.wandb_runs import log_experiment
            from mlprank.training.loggers import prepare_wandb

            prepare_wandb()
            project, entity = arguments.wandb_project, arguments.wandb_entity
            count = log_experiment(config, records, project=project, entity=entity, cells=arguments.wandb_cells)
            own = f", {count} cells with runs of their own" if arguments.wandb_cells else ""
            print(f"W&B: {len(records)} cells logged to project {project}, group {config.name}{own}")
    if arguments.report:
        from mlprank.cli.report import report

        report([str(config.directory)])
    else:
        print(f"results: {config.directory}\nnext: mlprank report {config.directory}")
    return 1 if any(record.status == "failed" for record in records) else 0


def _run(config: ExperimentConfig, networks: Any, cells: Sequence[Any], store: Any) -> None:
    """Run the cells that are not finished, with a progress bar."""
    from rich.console import Console

    from mlprank.experiments.runner import run_cells
    from mlprank.grids.progress import Progress

    keys = {cell.key for cell in cells}
    finished = {record.key: record for record in store.records if record.key in keys and record.status == "ok"}
    if finished:
        print(f"{len(finished)} of them were finished before and are not repeated", flush=True)
    if len(finished) == len(cells):
        return
    shown = Progress(
        cells, unit="cell", metric="top1", earlier=finished, every_s=10.0, each=False, console=Console(stderr=True)
    )
    try:
        with shown:
            run_cells(config, networks, store, shown, cells)
    except KeyboardInterrupt:
        kept = sum(cell.key in store.finished for cell in cells)
        raise KeyboardInterrupt(
            f"{kept} of {len(cells)} cells are recorded in {config.directory}; the same command goes on with the others"
        ) from None


def _config(arguments: argparse.Namespace) -> ExperimentConfig:
    """The config file with the flags on top."""
    values: dict[str, Any] = {} if arguments.config is None else read_config(arguments.config)
    known = {field.name for field in dataclasses.fields(ExperimentConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    models, datasets, checkpoints = arguments.model, arguments.data, arguments.ckpt_path
    if not (values or given or models or datasets):
        raise ValueError("nothing to run: give --config experiments/thesis, or networks by --model ThreeLayerMLP")
    if models or datasets:
        given["networks"] = _networks(models, datasets or [], known=values.get("networks", ()))
        chosen = {paired(network) for network in given["networks"]}
        for name in ("checkpoints", "model_args", "data_args"):
            if isinstance(values.get(name), Mapping):
                values[name] = {key: value for key, value in values[name].items() if paired(key) in chosen}
    if checkpoints:
        networks = list(given.get("networks") or values.get("networks") or ())
        if len(networks) != 1:
            raise ValueError(
                "--ckpt_path is for one network; give one --model and --data, or `checkpoints:` in a config"
            )
        given["checkpoints"] = {networks[0]: checkpoints}
    values |= given
    if arguments.published:
        values |= PUBLISHED_AXES
    return ExperimentConfig(**values)


def _networks(models: Sequence[str] | None, datasets: Sequence[str], *, known: Sequence[str]) -> list[str]:
    """Pair models with data sets as they stand: one by one, one for all, or those of the config or the thesis."""
    if models is None:
        models = [model for model, dataset in THESIS_PAIRS.items() if dataset in datasets]
        if len(models) != len(set(datasets)):
            raise ValueError(f"--data {' '.join(datasets)}: give --model too")
        return models
    if not datasets:
        of_config = [[each for each in known if each.partition("@")[0] == model] or [model] for model in models]
        return [network for networks in of_config for network in networks]
    if len(datasets) not in (1, len(models)):
        raise ValueError(
            f"--model names {len(models)} networks and --data {len(datasets)} data sets; give one data set for each "
            "network, or one for all"
        )
    return [f"{model}@{dataset}" for model, dataset in zip(models, itertools.cycle(datasets), strict=False)]


def dashboard(argv: list[str]) -> int:
    """Make a Weights & Biases workspace, or say what it would hold."""
    arguments = DASHBOARD.parse_args(argv)
    from mlprank.report.wandb_runs import build_workspace, describe_workspace
    from mlprank.training.loggers import reason_for_offline

    mode = os.environ.get("WANDB_MODE")
    reason = f"WANDB_MODE={mode}" if mode in ("offline", "disabled", "dryrun") else reason_for_offline()
    reason = "--dry-run" if arguments.dry_run else reason
    entity = arguments.entity or os.environ.get("WANDB_ENTITY") or ("your account" if reason else None)
    import wandb

    entity = entity or wandb.Api().default_entity
    if not entity:
        raise ValueError("W&B names no default entity for this login; give --entity")
    workspace = build_workspace(entity=entity, project=arguments.project, name=arguments.name)
    if reason:
        place = f"{workspace.entity}/{workspace.project}"
        print(f'{reason}: nothing is sent. The workspace "{workspace.name}" of {place} would hold:')
        print(*describe_workspace(workspace), sep="\n")
        return 0
    try:
        workspace.save()
    except wandb.errors.Error as error:
        raise ValueError(
            f"W&B did not take the workspace of {workspace.entity}/{workspace.project}: {error}; does the project "
            "exist and may you write to it?"
        ) from error
    print(workspace.url)
    return 0
