"""`mlprank bench`: a dense and a pruned checkpoint side by side."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from mlprank.cli.export import typed_model
from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.utils.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from mlprank.costs.bench import Bench


def build_parser() -> CommandParser:
    """Describe the command's arguments."""
    parser = CommandParser("bench")
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--ckpt_path", nargs="+", default=[])
    parser.add_argument("--out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch_sizes", type=listed(int))
    parser.add_argument("--backends", type=listed(str))
    parser.add_argument("--input_shape", type=listed(int))
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
    model, rest = typed_model(argv)
    args = build_parser().parse_args(rest)
    checkpoints = [*args.checkpoints, *args.ckpt_path]
    if len(checkpoints) != 2:
        raise OptionError(f"mlprank bench compares two checkpoints, dense and pruned, and {len(checkpoints)} are given")
    result = _measure(args, *checkpoints, model=model)
    _report(result)
    if args.out is not None:
        _write_json(result, args.out)
    return 0


def _measure(args: Namespace, dense_path: str, pruned_path: str, *, model: nn.Module | None) -> Bench:
    from mlprank.costs.bench import BACKENDS, BATCH_SIZES, bench, num_steps
    from mlprank.training.networks import load_network

    pruned = load_network(pruned_path, input_shape=args.input_shape, model=model)
    # The pruned file knows the shape of its inputs; a dense checkpoint may not.
    dense = load_network(dense_path, input_shape=args.input_shape or pruned.input_shape, model=model)
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
