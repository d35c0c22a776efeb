"""`mlprank shrink`, from a trained network to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlprank as library
from mlprank.grids.progress import shown_steps
from mlprank.pruning import shrink as module
from tests.conftest import CONFIG


@pytest.fixture
def checkpoint(mlprank: Callable[..., Any], tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(CONFIG)
    done = mlprank("fit", "--config=small.yaml", "--trainer.max_epochs=3")
    assert done.code == 0, done.err
    return next(tmp_path.rglob("best.ckpt"))


SHORT = ("--refine=20", "--num_samples=200")


def test_the_chosen_network_its_frontier_and_what_was_tried_are_written(mlprank, checkpoint: Path, tmp_path: Path):
    done = mlprank("shrink", f"--ckpt_path={checkpoint}", "--max_drop=3", f"--out={tmp_path}/found", *SHORT)
    assert done.code == 0, done.err
    found = tmp_path / "found" / "001"
    assert {"pruned.ckpt", "frontier.csv", "frontier.png", "metrics.json", "config.yaml"} <= {
        p.name for p in found.iterdir()
    }
    rows = list(csv.DictReader((found / "frontier.csv").open()))
    chosen = next(row for row in rows if row["chosen"] == "True")
    assert float(chosen["drop"]) <= 3
    network = library.load_pruned(found / "pruned.ckpt")
    assert sum(each.numel() for each in network.parameters()) == int(chosen["parameters"]) < int(rows[0]["parameters"])
    assert "Chosen (max_drop=3.0)" in done.out
    assert "test top-1" in done.out

    # A size budget beside it, by the configuration that was written; a loss that is typed is kept.
    options = ("--max_drop=60", "--max_bytes=0.9", "--refine={steps: 5, loss: mse}")
    again = mlprank("shrink", f"--config={found}/config.yaml", f"--ckpt_path={checkpoint}", *options)
    assert again.code == 0, again.err
    recipes = [json.loads((found.parent / run / "metrics.json").read_text())["recipe"] for run in ("001", "002")]
    assert [recipe["refine"]["loss"] for recipe in recipes] == ["kl", "mse"]
    assert "max_drop=60.0, max_bytes=0.9" in again.out


def test_what_no_network_can_keep_is_told_with_the_nearest_and_writes_nothing(
    mlprank, checkpoint: Path, tmp_path: Path
):
    done = mlprank("shrink", f"--ckpt_path={checkpoint}", "--max_params=3", f"--out={tmp_path}/found", *SHORT)
    assert done.code == 2
    assert "no network keeps max_params=3" in done.err
    assert "allow that" in done.err
    assert "does not" in done.out
    assert not list((tmp_path / "found").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no budget; give at least one of max_drop"),
        (("--max_drop=nan",), "max_drop: 'nan' is not a number"),
        (("--max_bytes=1XB",), '"XB" is not a unit of it'),
        (("--max_latency=2",), "it has no unit; give one of s, ms, us"),
        (("--max_drop=1", "--amount=0.5"), "amount"),
    ],
)
def test_budgets_that_cannot_be_used_end_before_anything_is_computed(mlprank, checkpoint: Path, options, message):
    done = mlprank("shrink", f"--ckpt_path={checkpoint}", *options)
    assert done.code == 2
    assert message in done.err


def test_after_an_interruption_the_best_so_far_is_written(mlprank, checkpoint: Path, tmp_path: Path, monkeypatch):
    told = module._Search._tell

    def impatient(search: Any, *arguments: Any, **options: Any) -> None:
        told(search, *arguments, **options)
        if len(search.tried) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Search, "_tell", impatient)
    done = mlprank("shrink", f"--ckpt_path={checkpoint}", "--max_drop=90", f"--out={tmp_path}/found", *SHORT)
    assert done.code == 130
    assert "interrupted: the best so far" in done.out
    assert torch.load(tmp_path / "found" / "001" / "pruned.ckpt", weights_only=True)["mlprank"]


def test_progress_says_what_is_left(capsys):
    with shown_steps(" networks") as show:
        show(2.0, 8.0, "best so far 25.0% of the parameters, drop 0.10")
    text = capsys.readouterr().err
    assert text == "best so far 25.0% of the parameters, drop 0.10 (2 of 8 networks, 0 s left)\n"
