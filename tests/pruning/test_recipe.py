"""The laws of mlprank.pruning.recipe: one record, checked once, behind every way to prune."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import mlprank
from mlprank.callbacks import PruningCallback
from mlprank.measures import Norm
from mlprank.models import MLP
from mlprank.pruning.recipe import Recipe, make_recipe

WAYS = {
    "prune": mlprank.prune,
    "score": mlprank.score,
    "Pruning": mlprank.Pruning,
    "Pruning.run": mlprank.Pruning.run,
    "PruningCallback": PruningCallback,
}


def network() -> MLP:
    torch.manual_seed(0)
    return MLP(6, [16, 12], 4).eval()


def inputs() -> torch.Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_prune_has_the_fields_of_the_recipe_with_its_defaults(way):
    parameters = inspect.signature(WAYS[way]).parameters
    for field in fields(Recipe):
        assert parameters[field.name].default == field.default, field.name
    assert "fields" not in parameters


def test_fields_are_documented_where_they_appear():
    for documented in (mlprank.prune.__doc__, PruningCallback.__doc__):
        assert all(f"        {field.name}: " in documented for field in fields(Recipe))


def test_a_recipe_and_its_fields_give_the_same_network():
    recipe = Recipe(amount=0.25, measure="norm", round_to=4)
    by_recipe = mlprank.prune(network(), inputs(), recipe)
    by_fields = mlprank.prune(network(), inputs(), amount=0.25, measure="norm", round_to=4)
    for one, other in zip(by_recipe.model.parameters(), by_fields.model.parameters(), strict=True):
        assert torch.equal(one, other)
    changed = mlprank.prune(network(), inputs(), recipe, amount=0.5)
    assert changed.recipe == Recipe(amount=0.5, measure="norm", round_to=4)


def test_plain_and_back_is_the_same_recipe():
    recipe = Recipe(amount={"fc*": 0.3}, measure={"name": "norm", "p": 2}, method="Global", protect=["fc1"], seed=3)
    assert Recipe(**recipe.plain()) == recipe
    assert recipe.measure == Norm(p=2)


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="'amuont' is not a field of Recipe; the fields are amount, "):
        mlprank.prune(network(), inputs(), amuont=0.5)
    with pytest.raises(TypeError, match=r"recipe is a float; give a mlprank\.Recipe"):
        mlprank.prune(network(), inputs(), 0.5)
    with pytest.raises(ValueError, match='protect="fc1" is one name; give a list'):
        Recipe(protect="fc1")
    with pytest.raises(ValueError, match="seed=-1 must be a whole number of at least 0"):
        make_recipe(None, {"seed": -1})


ADDED = '''
"""Adds a field to the recipe before anything else is imported, and looks for it everywhere."""
import dataclasses, inspect, sys
import mlprank.pruning.recipe as home

@dataclasses.dataclass(frozen=True)
class Recipe(home.Recipe):
    """A recipe with a field more.

    Attributes:
        amount: The share of neurons to remove.
        flavour: What it tastes of.
    """

    flavour: str = "plain"

home.Recipe = Recipe
import mlprank, torch
from mlprank.callbacks import PruningCallback
for way in (mlprank.prune, mlprank.score, mlprank.Pruning, mlprank.Pruning.run, PruningCallback):
    assert inspect.signature(way).parameters["flavour"].default == "plain", way
from mlprank.models import MLP
result = mlprank.prune(MLP(6, [16], 4).eval(), torch.randn(20, 6), flavour="mint")
assert result.recipe.flavour == "mint"
result.save("pruned.ckpt")
from mlprank.artifact.pruned import read_artifact
assert read_artifact("pruned.ckpt").recipe["flavour"] == "mint"
assert PruningCallback(flavour="mint").recipe.plain()["flavour"] == "mint"
from mlprank.cli import main
sys.exit(main(["prune", "--help", "all"]))
'''


def test_a_field_that_is_added_appears_everywhere_with_no_further_edit(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ADDED)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--flavour" in done.stdout
