"""`mlprank shrink`: the smallest network that keeps a budget."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from mlprank.artifact.checkpoint import sha256
from mlprank.cli.prune import calibration_of, labelled_split
from mlprank.methods.adaptive import Adaptive
from mlprank.pruning.evaluation import evaluate, print_pruning, write_outputs
from mlprank.pruning.front import COUNTS, BudgetError, Budgets, Front
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.refine import Refinement
from mlprank.pruning.shrink import DEFAULTS, Progress, shrink
from mlprank.training.build import Opened, open_checkpoint
from mlprank.training.run import quieten
from mlprank.training.runs import CONFIG, claimed, home_of
from mlprank.utils.charts import write_chart
from mlprank.utils.errors import INTERRUPTED, OptionError
from mlprank.utils.files import write_whole

_BUDGETS = {
    "max_drop": "Percentage points of validation top-1 that may be lost, such as 0.5.",
    "max_bytes": "The largest file of weights, such as 1MB, or a share of the dense network's, such as 0.3.",
    "max_params": "The most parameters, such as 50000 or 50k, or a share, such as 0.3.",
    "max_flops": "The most FLOPs of a sample, such as 2M, or a share, such as 0.3.",
    "max_latency": "The longest time of a batch on the accelerator in use, such as 2ms, or a share, such as 0.5.",
}
_SECONDS_BETWEEN_LINES = 10.0


def main(argv: list[str]) -> int:
    """Search, evaluate the chosen network, and write it down with everything that was tried.

    Args:
        argv: The options.

    Returns:
        0, or 130 after Ctrl-C, where the best so far was written.

    Raises:
        ValueError: If an option, a config or a file cannot be used, or no network keeps the budgets.
    """
    quieten()
    opened = open_checkpoint("shrink", argv, add_options)
    options = opened.options
    given = {name: options[name] for name in _BUDGETS}
    budgets = Budgets(**given)  # what is wrong with them is said before anything is computed
    if not is_overridden("val_dataloader", opened.data, LightningDataModule):
        raise OptionError(
            f"{type(opened.data).__name__} has no validation split to choose by; give --data that has one"
        )
    count = COUNTS[budgets.sizes[0]] if budgets.sizes else "parameters"
    fields = {field.name: options[field.name] for field in dataclasses.fields(Recipe) if field.name in options}
    recipe = Recipe(**fields, method=Adaptive(count=count, batch_size=options.batch_size))
    if isinstance(recipe.refine, Refinement) and isinstance(options.refine, int):
        # The outputs are logits here: the accuracy that is kept is of classes.
        recipe = dataclasses.replace(recipe, refine=dataclasses.replace(recipe.refine, loss="kl"))
    with claimed(Path(options.out) if options.out else home_of(opened.checkpoint) / "shrink") as directory:
        try:
            with _shown() as progress:
                front = shrink(
                    opened.module,
                    calibration_of(opened.data, recipe),
                    opened.data.val_dataloader(),
                    recipe,
                    **given,
                    batch_size=options.batch_size,
                    progress=progress,
                )
        except BudgetError as error:
            print(error.front)
            raise
        _write(opened, front, recipe, directory)
    return INTERRUPTED if front.interrupted else 0


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options of `shrink`: budgets, the fields of the recipe but the amount and method, and where to write."""
    for name, text in _BUDGETS.items():
        kind: Any = float | None if name == "max_drop" else float | str | None
        parser.add_argument(f"--{name}", type=kind, default=None, help=text)
    parser.add_argument("--batch_size", type=int, default=64, help="Samples in the batch whose latency is measured.")
    parser.add_class_arguments(Recipe, skip={"amount", "method", "graph"})
    parser.set_defaults(dict(DEFAULTS))
    parser.add_argument("--out", type=str | None, default=None, help="Directory of numbered searches.")


def _write(opened: Opened, front: Front, recipe: Recipe, directory: Path) -> None:
    """Read the test split once, for the chosen network; write and print."""
    labelled = labelled_split(opened.data, "test")
    evaluation = evaluate(front.best, labelled, split="test")
    provenance = {
        "source": str(opened.checkpoint),
        "source_sha256": sha256(opened.checkpoint),
        "calibration": {"data": type(opened.data).__name__, "num_samples": recipe.num_samples, "seed": recipe.seed},
        "budgets": str(front.budgets),
    }
    files = write_outputs(evaluation, directory, several=False, provenance=provenance)
    files["frontier"] = front.write_csv(directory / "frontier.csv")
    files["its picture"] = write_chart(front.plot(), directory / "frontier.png")
    write_whole(directory / CONFIG, yaml.safe_dump(opened.values, sort_keys=False))
    print(f"Tried, on the validation split:\n{front}\n")
    print_pruning([evaluation], [files], dense=opened.checkpoint, config=directory / CONFIG)


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """Show how far a search is: a bar with the time left on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        started = last = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _SECONDS_BETWEEN_LINES:
                return
            last = now
            left = (now - started) * (progress.total / max(progress.done, 0.5) - 1)
            print(
                f"{progress.done:.0f} of about {progress.total:.0f} networks, {left:.0f} s left: {progress.text}",
                file=sys.stderr,
            )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("network {task.completed:.0f} of about {task.total:.0f}"), BarColumn(20), TimeElapsedColumn())
    with Bar(
        *columns,
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda progress: bar.update(
            task, completed=progress.done, total=progress.total, description=progress.text
        )
