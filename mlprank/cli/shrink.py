"""`mlprank shrink`: the smallest network that keeps a budget."""

import dataclasses
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from mlprank.cli.prune import calibration_of, labelled_split, write_results
from mlprank.cli.vocabulary import WORDS
from mlprank.grids.progress import shown_steps
from mlprank.methods.adaptive import Adaptive
from mlprank.pruning.evaluation import evaluate, print_pruning
from mlprank.pruning.front import COUNTS, BudgetError, Budgets
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.refine import Refinement
from mlprank.pruning.shrink import DEFAULTS, shrink
from mlprank.training.build import open_checkpoint
from mlprank.training.runs import CONFIG, claimed, home_of
from mlprank.utils.charts import write_chart
from mlprank.utils.errors import INTERRUPTED, OptionError

_BUDGETS = ("max_drop", "max_bytes", "max_params", "max_flops", "max_latency")
_SECONDS_BETWEEN_LINES = 10.0


def main(argv: list[str]) -> int:
    """Search, evaluate the chosen network, and write it down with everything that was tried.

    Returns:
        0, or 130 after Ctrl-C, where the best so far was written.
    """
    opened = open_checkpoint("shrink", argv, add_options)
    options, data = opened.options, opened.data
    given = {name: options[name] for name in _BUDGETS}
    budgets = Budgets(**given)  # what is wrong with them is said before anything is computed
    if not is_overridden("val_dataloader", data, LightningDataModule):
        raise OptionError(f"{type(data).__name__} has no validation split to choose by; give --data that has one")
    count = COUNTS[budgets.sizes[0]] if budgets.sizes else "parameters"
    fields = {field.name: options[field.name] for field in dataclasses.fields(Recipe) if field.name in options}
    recipe = Recipe(**fields, method=Adaptive(count=count, batch_size=options.batch_size))
    if isinstance(recipe.refine, Refinement) and isinstance(options.refine, int):
        # The outputs are logits here: the accuracy that is kept is of classes.
        recipe = dataclasses.replace(recipe, refine=dataclasses.replace(recipe.refine, loss="kl"))
    with (
        claimed(Path(options.out) if options.out else home_of(opened.checkpoint) / "shrink") as directory,
        shown_steps(" networks", every_s=_SECONDS_BETWEEN_LINES) as show,
    ):
        try:
            front = shrink(
                opened.module,
                calibration_of(data, recipe),
                data.val_dataloader(),
                recipe,
                **given,
                batch_size=options.batch_size,
                progress=lambda progress: show(progress.done, progress.total, progress.text),
            )
        except BudgetError as error:
            print(error.front)
            raise
        evaluation = evaluate(front.best, labelled_split(data, "test"), split="test")  # the test split is read once
        (files,) = write_results(opened, [evaluation], recipe, directory, budgets=str(front.budgets))
        files["frontier"] = front.write_csv(directory / "frontier.csv")
        files["its picture"] = write_chart(front.plot(), directory / "frontier.png")
    print(f"Tried, on the validation split:\n{front}\n")
    print_pruning([evaluation], [files], dense=opened.checkpoint, config=directory / CONFIG)
    return INTERRUPTED if front.interrupted else 0


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options of `shrink`: budgets, the fields of the recipe but the amount and method, and where to write."""
    for name in _BUDGETS:
        kind: Any = float | None if name == "max_drop" else float | str | None
        parser.add_argument(f"--{name}", type=kind, default=None, help=WORDS[name].text)
    parser.add_argument("--batch_size", type=int, default=64, help="Samples in the batch whose latency is measured.")
    parser.add_class_arguments(Recipe, skip={"amount", "method", "graph"})
    parser.set_defaults(dict(DEFAULTS))
    parser.add_argument("--out", type=str | None, default=None, help="Directory of numbered searches.")
