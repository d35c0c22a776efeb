"""`mlprank experiment`: a grid of prunings over trained networks."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import WORDS, CommandParser
from mlprank.experiments.config import (
    PUBLISHED_AXES,
    THESIS_PAIRS,
    ExperimentConfig,
    check_keys,
    paired,
    read_config,
    write_config,
)

FAILED_CELLS = 1


def main(argv: list[str]) -> int:
    """Run `mlprank experiment`."""
    arguments = command_parser().parse_args(argv)
    config = _config(arguments)
    from mlprank.experiments.cells import cells_of, find_networks
    from mlprank.experiments.records import RecordStore
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
    print(
        f"{config.name}: {len(cells)} cells of {len(networks)} trained network{'s' * (len(networks) > 1)}", flush=True
    )
    if arguments.dry_run:
        print("".join(f"  {cell.label}\n" for cell in cells), end="")
        return 0
    with RecordStore(config.directory) as store:
        if store.notice:
            print(store.notice, file=sys.stderr)
        write_whole(config.directory / "config.yaml", write_config(config).encode())
        _run(config, networks, cells, store)
        records = [record for record in store.records if record.key in {cell.key for cell in cells}]
        from mlprank.report.findings import print_findings

        print_findings(records, config.directory)
        if arguments.wandb:
            from mlprank.report.wandb_runs import log_experiment
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


def _run(config: ExperimentConfig, networks: Any, cells: Sequence[Any], store: Any) -> None:
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


def _config(arguments: argparse.Namespace) -> ExperimentConfig:
    """The config file with the flags on top."""
    values: dict[str, Any] = {} if arguments.config is None else read_config(arguments.config)
    typed = {name: value for name, value in vars(arguments).items() if value is not None}
    given = {name: value for name, value in typed.items() if name not in _NOT_CONFIG}
    models, datasets, checkpoints = (typed.get(name) for name in ("model", "data", "ckpt_path"))
    if not (values or given or models or datasets):
        raise ValueError("nothing to run: give --config experiments/thesis, or networks by --model ThreeLayerMLP")
    if models or datasets:
        given["networks"] = _networks(models, datasets, known=values.get("networks", ()))
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
    check_keys(values, place="command line")
    return ExperimentConfig(**values)


def _networks(models: Sequence[str] | None, datasets: Sequence[str] | None, *, known: Sequence[str]) -> list[str]:
    """Pair models with data sets as they stand: one by one, one for all, or those of the config or the thesis."""
    if models is None:
        models = [model for model, dataset in THESIS_PAIRS.items() if dataset in (datasets or ())]
        if len(models) != len(set(datasets or ())):
            raise ValueError(f"--data {' '.join(datasets or ())}: give --model too")
        return list(models)
    if datasets is None:
        return [
            network
            for model in models
            for network in [each for each in known if each.partition("@")[0] == model] or [model]
        ]
    if len(datasets) == 1:
        datasets = list(datasets) * len(models)
    if len(datasets) != len(models):
        raise ValueError(
            f"--model names {len(models)} networks and --data {len(datasets)} data sets; give one data set for each "
            "network, or one for all"
        )
    return [f"{model}@{dataset}" for model, dataset in zip(models, datasets, strict=True)]


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


_NOT_CONFIG = ("config", "model", "data", "ckpt_path", "published", "report", "dry_run",
               "wandb", "wandb_project", "wandb_entity", "wandb_cells")  # fmt: skip


def command_parser() -> CommandParser:
    """Describe the command's arguments."""
    about = (
        "Prune trained networks in every combination of measure, method and amount, test what comes out, and record "
        "every cell. The same command goes on where it was interrupted; more values extend the grid."
    )
    parser = CommandParser("experiment", about, "mlprank experiment --config experiments/thesis --report")
    parser.add_word("config", type=Path, help="the experiment, a file or a name; what is typed wins over it")
    parser.add_argument("--name", metavar="NAME", help="what it is called; default: the config's file name")
    parser.add_word("out", metavar="DIR", help="results directory; default runs/experiments/NAME")
    grid = parser.add_argument_group("the grid; several values each")
    grid.add_argument(
        "--model", nargs="+", metavar="MODEL", help="networks, such as ThreeLayerMLP or ThreeLayerMLP@MNIST"
    )
    grid.add_argument("--data", nargs="+", metavar="DATA", help="their data sets; default: those of the thesis")
    grid.add_argument("--measure", dest="measures", nargs="+", metavar="MEASURE", help=WORDS["measure"].text)
    grid.add_argument("--method", dest="methods", nargs="+", metavar="METHOD", help=WORDS["method"].text)
    grid.add_argument("--amount", dest="amounts", nargs="+", type=float, metavar="SHARE", help="in [0, 1)")
    grid.add_argument(
        "--compensation", dest="compensations", nargs="+", metavar="NAME", help=WORDS["compensation"].text
    )
    grid.add_argument("--graph", dest="graphs", nargs="+", metavar="GRAPH", help="chain, dag")
    grid.add_argument("--protect_output", nargs="+", type=_boolean, metavar="BOOL", help="true, false")
    grid.add_argument("--seed", dest="calibration_seeds", nargs="+", type=int, metavar="SEED", help="calibration draws")
    grid.add_argument("--ckpt_path", nargs="+", metavar="FILE", help="trained networks of one model and data set")
    parser.add_argument("--measure_args", type=_json, metavar="JSON", help='such as \'{"ChannelNorm": {"p": 2}}\'')
    parser.add_argument(
        "--recipe", type=_json, metavar="JSON", help="further fields of the recipe, such as '{\"round_to\": [1, 8]}'"
    )
    parser.add_word("num_samples", dest="calibration_samples", type=int, help="calibration images; default 64")
    parser.add_argument("--checkpoint_root", metavar="DIR", help="holds runs/ or <model>_<data>.pth; default: here")
    parser.add_word("data_dir")
    parser.add_word("accelerator", dest="device", metavar="DEVICE", help="cpu, cuda; default cpu")
    parser.add_argument("--latency", action="store_true", default=None, help="measure latencies; on by default")
    parser.add_argument("--no_latency", dest="latency", action="store_false", help="measure none")
    parser.add_argument(
        "--published", action="store_true", help="under all published conditions; see docs/tasks/thesis.md"
    )
    ray = parser.add_argument_group("where cells run")
    ray.add_argument("--engine", choices=("local", "ray"), help="here, or by Ray on all devices; default local")
    ray.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: Ray is started here")
    ray.add_argument("--cpus_per_cell", type=float, metavar="N", help="CPU cores for a unit of cells; default 1")
    ray.add_argument("--gpus_per_cell", type=float, metavar="N", help="GPUs, or a fraction of one, for a unit of cells")
    parser.add_argument("--dry_run", action="store_true", help="list the cells and end")
    parser.add_argument("--report", action="store_true", help="write the report at the end")
    wandb = parser.add_argument_group("Weights & Biases")
    wandb.add_argument("--wandb", action="store_true", help="log one run with a table of cells, tables and plots")
    wandb.add_argument("--wandb_cells", action="store_true", help="log a run for every cell too")
    wandb.add_argument("--wandb_project", default="mlprank", metavar="NAME", help="default mlprank")
    wandb.add_argument("--wandb_entity", metavar="NAME", help="user or team; default: that of the login")
    return parser
