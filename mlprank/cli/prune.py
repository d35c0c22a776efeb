"""`mlprank prune` and `mlprank shrink`: a checkpoint, pruned without training by amounts or within a budget."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden

from mlprank.artifact.checkpoint import sha256
from mlprank.cli.vocabulary import WORDS
from mlprank.costs.metrics import is_labelled
from mlprank.grids.progress import shown_steps
from mlprank.pruning import shrink as search
from mlprank.pruning.evaluation import Evaluation, evaluate, print_pruning, prune_amounts, write_outputs
from mlprank.pruning.front import BudgetError, Budgets
from mlprank.pruning.recipe import Recipe, make_recipe
from mlprank.training.run import Opened, open_checkpoint
from mlprank.training.runs import CONFIG, claimed, home_of
from mlprank.utils.charts import write_chart
from mlprank.utils.errors import INTERRUPTED, OptionError
from mlprank.utils.files import write_whole

_BUDGETS = ("max_drop", "max_bytes", "max_params", "max_flops", "max_latency")


def prune(argv: list[str]) -> int:
    """Prune a checkpoint, evaluate it, and write it down; return the exit code, 0."""
    opened = open_checkpoint("prune", argv, add_options)
    options, data = opened.options, opened.data
    amounts = options.amount if isinstance(options.amount, list) else [options.amount]
    if not amounts:
        raise OptionError("amount=[] holds no amount; give at least one, such as --amount 0.5")
    fields = {field.name: options[field.name] for field in dataclasses.fields(Recipe)}
    recipes = [make_recipe(None, {**fields, "amount": amount}) for amount in amounts]  # each is checked before any runs
    with claimed(Path(options.out or home_of(opened.checkpoint) / "prune")) as directory:
        shown = {"labelled": labelled_split(data, options.split), "split": options.split}
        evaluations = prune_amounts(opened.module, data, amounts=amounts, recipe=recipes[0], **shown)
        files = write_results(opened, evaluations, recipes[0], directory)
        print_pruning(evaluations, files, dense=opened.checkpoint, config=directory / CONFIG)
    return 0


def shrink(argv: list[str]) -> int:
    """Search, evaluate the chosen network, and write it down with everything that was tried.

    Returns:
        0, or 130 after Ctrl-C, where the best so far was written.
    """
    opened = open_checkpoint("shrink", argv, add_budgets)
    options, data = opened.options, opened.data
    given = {name: options[name] for name in _BUDGETS}
    Budgets(**given)  # what is wrong with them is said before anything is computed
    if not is_overridden("val_dataloader", data, LightningDataModule):
        raise OptionError(f"{type(data).__name__} has no validation split to choose by; give --data that has one")
    fields = {field.name: options[field.name] for field in dataclasses.fields(Recipe) if field.name in options}
    recipe = Recipe(**fields)
    given |= {} if isinstance(options.refine, int) else {"refine": recipe.refine}  # its loss is the user's
    place = Path(options.out or home_of(opened.checkpoint) / "shrink")
    with claimed(place) as directory, shown_steps(" networks", every_s=10.0) as show:
        told = {"batch_size": options.batch_size, "progress": lambda at: show(at.done, at.total, at.text)}
        try:
            front = search.shrink(opened.module, data, data, recipe, **given, **told)
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
    """Add the options of `prune`: the fields of the recipe, with several amounts, and where and what to show."""
    kind: Any = float | list[float] | dict[str, float]
    text = "The share of neurons to remove; several give a network each; a mapping gives shares by layer name."
    parser.add_argument("--amount", type=kind, default=Recipe.amount, help=text)
    parser.add_class_arguments(Recipe, skip={"amount"})
    parser.add_argument("--out", type=str | None, default=None, help="Directory of numbered prunings.")
    parser.add_argument("--split", type=Literal["val", "test"], default="test", help=WORDS["split"].text)


def add_budgets(parser: LightningArgumentParser) -> None:
    """Add the options of `shrink`: budgets, the fields of the recipe but the amount and method, and where to write."""
    for name in _BUDGETS:
        kind: Any = float | None if name == "max_drop" else float | str | None
        parser.add_argument(f"--{name}", type=kind, default=None, help=WORDS[name].text)
    parser.add_argument("--batch_size", type=int, default=64, help="Samples in the batch whose latency is measured.")
    parser.add_class_arguments(Recipe, skip={"amount", "method", "graph"})
    parser.set_defaults(dict(search.DEFAULTS))
    parser.add_argument("--out", type=str | None, default=None, help="Directory of numbered searches.")


def write_results(
    opened: Opened, evaluations: Sequence[Evaluation], recipe: Recipe, directory: Path, **provenance: Any
) -> list[dict[str, Path]]:
    """Write pruned networks with what they were made of, and the config of the command; return the files of each."""
    drawn = {"data": type(opened.data).__name__, "num_samples": recipe.num_samples, "seed": recipe.seed}
    source = {"source": str(opened.checkpoint), "source_sha256": sha256(opened.checkpoint), "calibration": drawn}
    several = len(evaluations) > 1
    files = [write_outputs(each, directory, several=several, provenance=source | provenance) for each in evaluations]
    write_whole(directory / CONFIG, yaml.safe_dump(dict(opened.config.values), sort_keys=False))
    return files


def labelled_split(data: Any, split: str) -> Any:
    """The split to measure accuracy on; None where its batches are not inputs and class indices."""
    if not is_overridden(f"{split}_dataloader", data, LightningDataModule):
        print(f"accuracy is not measured: {type(data).__name__} has no {split}_dataloader; choose another --split")
        return None
    loader = getattr(data, f"{split}_dataloader")()
    if not is_labelled(next(iter(loader), None)):
        print(f"accuracy is not measured: the {split} batches are not (inputs, class indices)")
        return None
    return loader
