"""`mlprank prune`: prune a checkpoint without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from mlprank.artifact.checkpoint import sha256
from mlprank.pruning.evaluation import print_pruning, prune_amounts, write_outputs
from mlprank.pruning.recipe import Recipe, make_recipe
from mlprank.training.build import Opened, open_checkpoint
from mlprank.training.run import quieten
from mlprank.training.runs import CONFIG, claimed, home_of
from mlprank.utils.errors import OptionError, did_you_mean
from mlprank.utils.files import write_whole

_SPLITS = ("val", "test")


def main(argv: list[str]) -> int:
    """Prune a checkpoint, evaluate it, and write it down.

    Args:
        argv: The options. Where the run's config has a PruningCallback, its arguments count unless others are typed.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an option, a config or a file cannot be used.
    """
    quieten()
    opened = open_checkpoint("prune", argv, add_options)
    amounts = opened.options.amount if isinstance(opened.options.amount, list) else [opened.options.amount]
    if not amounts:
        raise OptionError("amount=[] holds no amount; give at least one, such as --amount 0.5")
    fields = {field.name: opened.options[field.name] for field in dataclasses.fields(Recipe) if field.name != "amount"}
    recipe = make_recipe(None, {**fields, "amount": amounts[0]})
    split = opened.options.split
    if split not in _SPLITS:
        raise OptionError(f"split={split!r} is not one of {', '.join(_SPLITS)}{did_you_mean(split, _SPLITS)}")
    for amount in amounts:
        dataclasses.replace(recipe, amount=amount)
    with claimed(Path(opened.options.out) if opened.options.out else home_of(opened.checkpoint) / "prune") as directory:
        _prune(opened, recipe, amounts, directory)
    return 0


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options of `prune`: the fields of the recipe, with several amounts, and where and what to show."""
    parser.add_argument(
        "--amount",
        type=float | list[float] | dict[str, float],
        default=Recipe.amount,
        help="The share of neurons to remove; several give a network each; a mapping gives shares by layer name.",
    )
    parser.add_class_arguments(Recipe, skip={"amount"})
    parser.add_argument("--out", type=str | None, default=None, help="Directory of numbered prunings.")
    parser.add_argument("--split", type=str, default="test", help="Split that accuracies are shown of: val or test.")


def _prune(opened: Opened, recipe: Recipe, amounts: list[Any], directory: Path) -> None:
    split, data = opened.options.split, opened.data
    evaluations = prune_amounts(
        opened.module,
        calibration_of(data, recipe),
        amounts=amounts,
        recipe=recipe,
        labelled=labelled_split(data, split),
        split=split,
    )
    provenance = {
        "source": str(opened.checkpoint),
        "source_sha256": sha256(opened.checkpoint),
        "calibration": {"data": type(data).__name__, "num_samples": recipe.num_samples, "seed": recipe.seed},
    }
    several = len(evaluations) > 1
    files = [write_outputs(each, directory, several=several, provenance=provenance) for each in evaluations]
    config = directory / CONFIG
    write_whole(config, yaml.safe_dump(opened.values, sort_keys=False))
    print_pruning(evaluations, files, dense=opened.checkpoint, config=config)


def calibration_of(data: Any, recipe: Recipe) -> Iterable[Any]:
    """The samples to calibrate on: those that the data module draws, else its training data."""
    if hasattr(data, "calibration_dataloader"):
        loader: Iterable[Any] = data.calibration_dataloader(num_samples=recipe.num_samples, seed=recipe.seed)
        return loader
    training: Iterable[Any] = data.train_dataloader()
    return training


def labelled_split(data: Any, split: str) -> Iterable[Any] | None:
    """The split to measure accuracy on; None where its batches are not inputs and class indices."""
    if not is_overridden(f"{split}_dataloader", data, LightningDataModule):
        print(f"accuracy is not measured: {type(data).__name__} has no {split}_dataloader; choose another --split")
        return None
    loader: Iterable[Any] = getattr(data, f"{split}_dataloader")()
    batch = next(iter(loader), None)
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    if batch is None or not pair or batch[1].ndim != 1 or batch[1].is_floating_point():
        print(f"accuracy is not measured: the {split} batches are not (inputs, class indices)")
        return None
    return loader
