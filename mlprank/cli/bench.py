"""`mlprank bench`: a dense and a pruned checkpoint side by side."""

import itertools
import json
from argparse import Namespace
from typing import Any

from rich.console import Console

from mlprank.cli.export import typed_model
from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.grids.progress import shown_steps
from mlprank.utils.errors import OptionError
from mlprank.utils.files import write_whole


def command_parser() -> CommandParser:
    """Describe the command's arguments."""
    about = (
        "Compare two networks on the CPU: parameters, FLOPs, bytes, and the latency of eager, compiled and "
        "onnxruntime runs that take turns."
    )
    parser = CommandParser("bench", about, "mlprank bench dense.ckpt pruned.ckpt --batch_sizes [1,64] --out bench.json")
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="two: dense, then pruned")
    parser.add_word("ckpt_path", nargs="+", default=[], help="the same by name")
    parser.add_argument(
        "--backends", type=listed(str), metavar="NAMES", help="any of [eager,compiled,onnxruntime]; default all"
    )
    parser.add_argument("--batch_sizes", type=listed(int), metavar="NUMBERS", help="default [1,64,1024]")
    parser.add_argument(
        "--repeats",
        type=int,
        default=20,
        metavar="N",
        help="timed runs of each network, backend and batch size; default 20",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: torch's choice")
    parser.add_word("input_shape", type=listed(int))
    parser.add_word("out", help="a JSON file for the numbers")
    parser.add_word("model")
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    model, rest = typed_model(argv)
    arguments = command_parser().parse_args(rest)
    checkpoints = [*arguments.checkpoints, *arguments.ckpt_path]
    if len(checkpoints) != 2:
        raise OptionError(f"mlprank bench compares two checkpoints, dense and pruned, and {len(checkpoints)} are given")
    from mlprank.costs.bench import as_json, bench_table

    result = _measure(arguments, *checkpoints, model=model)
    console = Console()
    console.print(bench_table(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} was not run: {reason}", markup=False, highlight=False, soft_wrap=True)
    if arguments.out is not None:
        write_whole(arguments.out, json.dumps(as_json(result), indent=2) + "\n")
        print(f"numbers: {arguments.out}")
    return 0


def _measure(arguments: Namespace, dense_path: str, pruned_path: str, *, model: Any) -> Any:
    from mlprank.costs.bench import BACKENDS, BATCH_SIZES, bench, num_steps
    from mlprank.models.loading import load_network

    pruned = load_network(pruned_path, input_shape=arguments.input_shape, model=model)
    # The pruned file knows the shape of its inputs; a dense checkpoint may not.
    dense = load_network(dense_path, input_shape=arguments.input_shape or pruned.input_shape, model=model)
    backends, batch_sizes = arguments.backends or BACKENDS, arguments.batch_sizes or BATCH_SIZES
    total, done = num_steps(backends, batch_sizes), itertools.count()
    with shown_steps() as show:
        return bench(
            {"dense": dense.model, "pruned": pruned.model},
            dense.input_shape,
            backends=backends,
            batch_sizes=batch_sizes,
            repeats=arguments.repeats,
            threads=arguments.threads,
            on_step=lambda step: show(next(done), total, f"measuring {step}"),
        )
