"""`mlprank bench`: a dense and a pruned checkpoint side by side."""

import itertools
import json

from rich.console import Console

from mlprank.cli.export import typed_model
from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.grids.progress import shown_steps
from mlprank.utils.errors import OptionError
from mlprank.utils.files import write_whole

PARSER = CommandParser(
    "bench",
    "Compare two networks on the CPU: parameters, FLOPs, bytes, and the latency of eager, compiled and onnxruntime "
    "runs that take turns.",
    "mlprank bench dense.ckpt pruned.ckpt --batch_sizes [1,64] --out bench.json",
)
PARSER.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="two: dense, then pruned")
PARSER.add("ckpt_path", text="the same by name", nargs="+", default=[])
PARSER.add("backends", "NAMES", "any of [eager,compiled,onnxruntime]; default all", type=listed(str))
PARSER.add("batch_sizes", "NUMBERS", "default [1,64,1024]", type=listed(int))
PARSER.add("repeats", "N", "timed runs of each network, backend and batch size; default 20", type=int, default=20)
PARSER.add("threads", "N", "CPU threads; default: torch's choice", type=int)
PARSER.add("input_shape", type=listed(int))
PARSER.add("out", text="a JSON file for the numbers")
PARSER.add("model")


def main(argv: list[str]) -> int:
    """Run the command."""
    model, rest = typed_model(argv)
    arguments = PARSER.parse_args(rest)
    checkpoints = [*arguments.checkpoints, *arguments.ckpt_path]
    if len(checkpoints) != 2:
        raise OptionError(f"mlprank bench compares two checkpoints, dense and pruned, and {len(checkpoints)} are given")
    from mlprank.costs.bench import BACKENDS, BATCH_SIZES, as_json, bench, bench_table, num_steps
    from mlprank.models.loading import load_network

    pruned = load_network(checkpoints[1], input_shape=arguments.input_shape, model=model)
    # The pruned file knows the shape of its inputs; a dense checkpoint may not.
    dense = load_network(checkpoints[0], input_shape=arguments.input_shape or pruned.input_shape, model=model)
    backends, batch_sizes = arguments.backends or BACKENDS, arguments.batch_sizes or BATCH_SIZES
    total, done = num_steps(backends, batch_sizes), itertools.count()
    with shown_steps() as show:
        result = bench(
            {"dense": dense.model, "pruned": pruned.model},
            dense.input_shape,
            backends=backends,
            batch_sizes=batch_sizes,
            repeats=arguments.repeats,
            threads=arguments.threads,
            on_step=lambda step: show(next(done), total, f"measuring {step}"),
        )
    console = Console()
    console.print(bench_table(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} was not run: {reason}", markup=False, highlight=False, soft_wrap=True)
    if arguments.out is not None:
        write_whole(arguments.out, json.dumps(as_json(result), indent=2) + "\n")
        print(f"numbers: {arguments.out}")
    return 0
