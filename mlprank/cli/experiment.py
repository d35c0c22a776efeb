"""`mlprank experiment`: a grid of prunings over trained networks."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import CommandParser
from mlprank.experiments.config import PUBLISHED_AXES, THESIS_PAIRS, ExperimentConfig, paired, read_config, write_config

FAILED_CELLS = 1


def _json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        example = '{"ChannelNorm": {"p": 2}}'
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping in JSON, such as '{example}'")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


PARSER = CommandParser(
    "experiment",
    "Prune trained networks in every combination of measure, method and amount, test what comes out, and record every "
    "cell. The same command goes on where it was interrupted; more values extend the grid.",
    "mlprank experiment --config experiments/thesis --report",
)
PARSER.add("config", text="the experiment, a file or a name; what is typed wins over it", type=Path)
PARSER.add("name", "NAME", "what it is called; default: the config's file name")
PARSER.add("out", "DIR", "results directory; default runs/experiments/NAME")
PARSER.add("measure_args", "JSON", 'such as \'{"ChannelNorm": {"p": 2}}\'', type=_json)
PARSER.add("recipe", "JSON", "further fields of the recipe, such as '{\"round_to\": [1, 8]}'", type=_json)
PARSER.add("num_samples", text="calibration images; default 64", dest="calibration_samples", type=int)
PARSER.add("checkpoint_root", "DIR", "holds runs/ or <model>_<data>.pth; default: here")
PARSER.add("data_dir")
PARSER.add("accelerator", "DEVICE", "cpu, cuda; default cpu", dest="device")
PARSER.add("latency", text="measure latencies; on by default", action="store_true", default=None)
PARSER.add("no_latency", text="measure none", dest="latency", action="store_false")
PARSER.add("published", text="under all published conditions; see docs/tasks/thesis.md", action="store_true")
PARSER.add("dry_run", text="list the cells and end", action="store_true")
PARSER.add("report", text="write the report at the end", action="store_true")
PARSER.begin("the grid; several values each")
PARSER.add("model", "MODEL", "networks, such as ThreeLayerMLP or ThreeLayerMLP@MNIST", nargs="+")
PARSER.add("data", "DATA", "their data sets; default: those of the thesis", nargs="+")
PARSER.add("measure", dest="measures", nargs="+")
PARSER.add("method", dest="methods", nargs="+")
PARSER.add("amount", text="in [0, 1)", dest="amounts", nargs="+", type=float)
PARSER.add("compensation", dest="compensations", nargs="+")
PARSER.add("graph", text="chain, dag", dest="graphs", nargs="+")
PARSER.add("protect_output", "BOOL", "true, false", nargs="+", type=_boolean)
PARSER.add("seed", text="calibration draws", dest="calibration_seeds", nargs="+", type=int)
PARSER.add("ckpt_path", text="trained networks of one model and data set", nargs="+")
PARSER.begin("where cells run")
PARSER.add("engine", "NAME", "local (default): here; ray: on all devices", choices=("local", "ray"))
PARSER.add("address", "ADDRESS", "of a Ray cluster, or auto; default: Ray is started here")
PARSER.add("cpus_per_cell", "N", "CPU cores for a unit of cells; default 1", type=float)
PARSER.add("gpus_per_cell", "N", "GPUs, or a fraction of one, for a unit of cells", type=float)
PARSER.begin("Weights & Biases")
PARSER.add("wandb", text="log one run with a table of cells, tables and plots", action="store_true")
PARSER.add("wandb_cells", text="log a run for every cell too", action="store_true")
PARSER.add("wandb_project", "NAME", "default mlprank", default="mlprank")
PARSER.add("wandb_entity", "NAME", "user or team; default: that of the login")


def main(argv: list[str]) -> int:
    """Run `mlprank experiment`."""
    arguments = PARSER.parse_args(argv)
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
        records = [record for record in store.records if record.key in {cell.key for cell in cells}]
        from mlprank.report.findings import print_findings

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
        from mlprank.cli.report import main as report

        report([str(config.directory)])
    else:
        print(f"results: {config.directory}\nnext: mlprank report {config.directory}")
    return FAILED_CELLS if any(record.status == "failed" for record in records) else 0


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
    every = datasets if len(datasets) == len(models) else [*datasets] * len(models)
    return [f"{model}@{dataset}" for model, dataset in zip(models, every, strict=True)]
