"""`mlprank bench`: a dense and a pruned checkpoint side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from mlprank.costs.bench import Bench


def build_parser() -> ArgumentParser:
    """Describe the command's arguments."""
    parser = ArgumentParser(
        prog="mlprank bench",
        description="Compare two networks on the CPU: parameters, FLOPs, bytes, and the latency of eager, compiled and "
        "onnxruntime runs that take turns.",
    )
    parser.add_argument("dense", type=str, help="the checkpoint that ratios refer to")
    parser.add_argument("pruned", type=str, help="the checkpoint that is compared with it")
    parser.add_argument("--json", type=str | None, default=None, help="also write the numbers to this file")
    parser.add_argument(
        "--threads", type=int | None, default=None, help="CPU threads; as many as torch takes by itself"
    )
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each network, backend and batch size")
    parser.add_argument("--batch_sizes", type=list[int] | None, default=None, help="[1,64,1024] if not given")
    parser.add_argument(
        "--backends", type=list[str] | None, default=None, help="[eager,compiled,onnxruntime] if not given"
    )
    parser.add_argument(
        "--input_shape", type=list[int] | None, default=None, help="shape of one image, such as [1,28,28]"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The arguments after `mlprank bench`.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an argument or a checkpoint cannot be used; other errors of the user pass as they are.
    """
    args = build_parser().parse_args(argv)
    result = _measure(args)
    _report(result)
    if args.json is not None:
        _write_json(result, args.json)
    return 0


def _measure(args: Namespace) -> Bench:
    from mlprank.costs.bench import BACKENDS, BATCH_SIZES, bench, num_steps
    from mlprank.training.networks import load_network

    pruned = load_network(args.pruned, input_shape=args.input_shape)
    # The pruned file knows the shape of its inputs; a dense checkpoint may not.
    dense = load_network(args.dense, input_shape=args.input_shape or pruned.input_shape)
    backends = BACKENDS if args.backends is None else args.backends
    batch_sizes = BATCH_SIZES if args.batch_sizes is None else args.batch_sizes
    with _progress(num_steps(backends, batch_sizes)) as on_step:
        return bench(
            {"dense": dense.model, "pruned": pruned.model},
            dense.input_shape,
            backends=backends,
            batch_sizes=batch_sizes,
            repeats=args.repeats,
            threads=args.threads,
            on_step=on_step,
        )


def _report(result: Bench) -> None:
    from mlprank.costs.bench import bench_table

    console = Console()
    console.print(bench_table(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} was not run: {reason}", markup=False, highlight=False, soft_wrap=True)


def _write_json(result: Bench, path: str) -> None:
    from mlprank.costs.bench import as_json
    from mlprank.utils.files import whole_file

    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(as_json(result), indent=2) + "\n")
    print(f"numbers: {Path(path)}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show what is being measured: a bar on a terminal, one line a step elsewhere."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("bench", total=total)
        done = -1

        def on_step(step: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, description=step)
            if not console.is_terminal:
                console.print(f"measuring {step} ({done + 1} of {total})", highlight=False)

        yield on_step
