"""`mlprank experiment`: a grid of prunings over trained networks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlprank.cli.vocabulary import CommandParser
from mlprank.experiments.config import (
    PUBLISHED_AXES,
    THESIS_PAIRS,
    ExperimentConfig,
    check_keys,
    read_config,
    write_config,
)

if TYPE_CHECKING:
    from mlprank.experiments.cells import Missing
    from mlprank.experiments.records import CellParameters
    from mlprank.experiments.store import RecordStore

FAILED_CELLS = 1


def main(argv: list[str]) -> int:
    """Run `mlprank experiment`.

    Args:
        argv: The arguments after `experiment`.

    Returns:
        0, or 1 if a cell failed.

    Raises:
        FileNotFoundError: If no network of the grid has a checkpoint; the commands that make them are named.
        ValueError: If the configuration is wrong, or the results directory is damaged or of another schema version.
        OSError: If the results cannot be written, or another process writes there.
    """
    arguments = _parser().parse_args([_dashed(argument) for argument in argv])
    config = _config(arguments)
    from mlprank.experiments.cells import cells_of, find_networks
    from mlprank.experiments.store import RecordStore
    from mlprank.utils.files import write_whole

    networks, missing = find_networks(config)
    cells = cells_of(config, networks)
    _say_missing(missing)
    if not networks:
        raise FileNotFoundError(
            "no network of the grid has a checkpoint; train one by a command above, or name files by `checkpoints:` in"
            " the config or --checkpoint"
        )
    print(
        f"{config.name}: {len(cells)} cells of {len(networks)} trained network{'s' * (len(networks) > 1)}", flush=True
    )
    if arguments.dry_run:
        return _say_cells(cells)
    with RecordStore(config.directory) as store:
        if store.notice:
            print(store.notice, file=sys.stderr)
        write_whole(config.directory / "config.yaml", write_config(config).encode())
        _run(config, networks, cells, store)
        records = [record for record in store.records if record.key in {cell.key for cell in cells}]
        from mlprank.report.findings import print_findings

        print_findings(records, config.directory)
        if arguments.wandb:
            from mlprank.report.wandb_log import log_experiment
            from mlprank.training.loggers import prepare_wandb

            prepare_wandb()
            count = log_experiment(
                config,
                records,
                project=arguments.wandb_project,
                entity=arguments.wandb_entity,
                cells=arguments.wandb_cells,
            )
            own = f", {count} cells with runs of their own" if arguments.wandb_cells else ""
            print(f"W&B: {len(records)} cells logged to project {arguments.wandb_project}, group {config.name}{own}")
    if arguments.report:
        from mlprank.cli.report import main as report

        report([str(config.directory)])
    else:
        print(f"results: {config.directory}\nnext: mlprank report {config.directory}")
    return FAILED_CELLS if any(record.status == "failed" for record in records) else 0


def _run(config: ExperimentConfig, networks: Any, cells: Sequence[CellParameters], store: RecordStore) -> None:
    from rich.console import Console

    from mlprank.experiments.runner import Runner, run_on_ray
    from mlprank.grids.progress import Progress

    keys = {cell.key for cell in cells}
    finished = {record.key: record for record in store.records if record.key in keys and record.status == "ok"}
    if finished:
        print(f"{len(finished)} of them were finished before and are not repeated", flush=True)
    if len(finished) == len(cells):
        return
    shown = Progress(
        cells, unit="cell", metric="top1", finished=finished, every_s=10.0, each=False, console=Console(stderr=True)
    )
    try:
        with shown:
            if config.engine == "ray":
                run_on_ray(config, networks, store, shown, cells)
            else:
                Runner(config, networks, store, shown).run(cells)
    except KeyboardInterrupt:
        kept = sum(cell.key in store.finished for cell in cells)
        raise KeyboardInterrupt(
            f"{kept} of {len(cells)} cells are recorded in {config.directory}; the same command goes on with the others"
        ) from None


def _say_missing(missing: Sequence[Missing]) -> None:
    for each in missing:
        print(f"missing: {each.network}: {each.remedy}", file=sys.stderr, flush=True)


def _say_cells(cells: Sequence[CellParameters]) -> int:

    for cell in cells:
        print(f"  {cell.label}")
    return 0


def _config(arguments: argparse.Namespace) -> ExperimentConfig:
    """The config file with the flags on top."""
    values: dict[str, Any] = {} if arguments.config is None else read_config(arguments.config)
    given = {
        name: getattr(arguments, name)
        for name in vars(arguments)
        if name not in _NOT_CONFIG and getattr(arguments, name) is not None
    }
    if not values and not given and arguments.model_name is None and arguments.dataset_name is None:
        raise ValueError(
            "nothing to run: give --config configs/experiments/thesis.yaml, or networks by --model-name ThreeLayerMLP"
        )
    if arguments.model_name is not None or arguments.dataset_name is not None:
        given["networks"] = _networks(arguments.model_name, arguments.dataset_name)
        values = {
            name: value for name, value in values.items() if name not in ("checkpoints", "model_args", "data_args")
        }
    if arguments.checkpoint is not None:
        networks = list(given.get("networks") or values.get("networks") or ())
        if len(networks) != 1:
            raise ValueError(
                "--checkpoint is for one network; give one --model-name and --dataset-name, or `checkpoints:` in a config"
            )
        given["checkpoints"] = {networks[0]: arguments.checkpoint}
    values |= given
    if arguments.published:
        values |= PUBLISHED_AXES
    check_keys(values, place="command line")
    return ExperimentConfig(**values)


def _networks(models: Sequence[str] | None, datasets: Sequence[str] | None) -> list[str]:
    """Pair models with data sets as they stand: one by one, one for all, or those of the thesis."""
    if models is None:
        models = [model for model, dataset in THESIS_PAIRS.items() if dataset in (datasets or ())]
        if len(models) != len(set(datasets or ())):
            raise ValueError(f"--dataset-name {' '.join(datasets or ())}: give --model-name too")
        return list(models)
    if datasets is None:
        return list(models)
    if len(datasets) == 1:
        datasets = list(datasets) * len(models)
    if len(datasets) != len(models):
        raise ValueError(
            f"--model-name names {len(models)} networks and --dataset-name {len(datasets)} data sets; give one data set"
            " for each network, or one for all"
        )
    return [f"{model}@{dataset}" for model, dataset in zip(models, datasets, strict=True)]


def _dashed(argument: str) -> str:
    """`--measure_name` is `--measure-name`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _json(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not JSON ({error}); write \'{{"ChannelNorm": {{"p": 2}}}}\''
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a mapping; write \'{{"ChannelNorm": {{"p": 2}}}}\'')
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


_NOT_CONFIG = (
    "config",
    "model_name",
    "dataset_name",
    "checkpoint",
    "published",
    "wandb",
    "wandb_project",
    "wandb_entity",
    "wandb_cells",
    "report",
    "dry_run",
)


def _parser() -> CommandParser:
    parser = CommandParser(
        "experiment",
        description="Prune trained networks in every combination of measure, method and amount, test what comes out, and "
        "record every cell. The same command goes on where it was interrupted; more values extend the grid.",
        epilog="example: mlprank experiment --config configs/experiments/thesis.yaml --report",
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="the experiment; flags win over it")
    parser.add_argument("--name", metavar="NAME", help="what it is called; by default the config's file name")
    parser.add_argument(
        "--out", "--out-path", dest="out", metavar="DIR", help="results directory; default runs/experiments/NAME"
    )
    grid = parser.add_argument_group("the grid; several values each")
    grid.add_argument("--model-name", nargs="+", metavar="MODEL", help="networks")
    grid.add_argument("--dataset-name", nargs="+", metavar="DATA", help="their data sets; default: those of the thesis")
    grid.add_argument("--measure-name", dest="measures", nargs="+", metavar="MEASURE")
    grid.add_argument("--method-name", dest="methods", nargs="+", metavar="METHOD")
    grid.add_argument("--amount", dest="amounts", nargs="+", type=float, metavar="SHARE", help="in [0, 1)")
    grid.add_argument("--compensation", dest="compensations", nargs="+", metavar="NAME")
    grid.add_argument("--graph", dest="graphs", nargs="+", metavar="GRAPH", help="chain, dag")
    grid.add_argument("--protect-output", nargs="+", type=_boolean, metavar="BOOL", help="true, false")
    grid.add_argument("--seed", dest="calibration_seeds", nargs="+", type=int, metavar="SEED", help="calibration draws")
    grid.add_argument("--checkpoint", nargs="+", metavar="FILE", help="trained networks of one model and data set")
    parser.add_argument("--measure-args", type=_json, metavar="JSON", help='such as \'{"ChannelNorm": {"p": 2}}\'')
    parser.add_argument(
        "--recipe", type=_json, metavar="JSON", help="further fields of the recipe, such as '{\"round_to\": [1, 8]}'"
    )
    parser.add_argument("--calibration-samples", type=int, metavar="N", help="calibration images; default 64")
    parser.add_argument("--checkpoint-root", metavar="DIR", help="holds runs/ or <model>_<data>.pth; default: here")
    parser.add_argument("--data-dir", metavar="DIR", help="where image files are")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda; default cpu")
    parser.add_argument(
        "--latency", action=argparse.BooleanOptionalAction, default=None, help="measure latencies; on by default"
    )
    parser.add_argument(
        "--published", action="store_true", help="under all published conditions; see docs/tasks/thesis.md"
    )
    ray = parser.add_argument_group("where cells run")
    ray.add_argument("--engine", choices=("local", "ray"), help="here, or by Ray on all devices; default local")
    ray.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: Ray is started here")
    ray.add_argument("--cpus-per-cell", type=float, metavar="N", help="CPU cores for a unit of cells; default 1")
    ray.add_argument("--gpus-per-cell", type=float, metavar="N", help="GPUs, or a fraction of one, for a unit of cells")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and end")
    parser.add_argument("--report", action="store_true", help="write the report at the end")
    wandb = parser.add_argument_group("Weights & Biases")
    wandb.add_argument("--wandb", action="store_true", help="log one run with a table of cells, tables and plots")
    wandb.add_argument("--wandb-cells", action="store_true", help="log a run for every cell too")
    wandb.add_argument("--wandb-project", default="mlprank", metavar="NAME", help="default mlprank")
    wandb.add_argument("--wandb-entity", metavar="NAME")
    return parser
