"""`mlprank prune`: the fields of the recipe, several amounts, splits, and what it says of wrong input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., Any]
BEST = "--ckpt_path=runs/small/001/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network, once for all tests."""
    import os

    from mlprank.cli import main
    from tests.conftest import CONFIG

    folder, before = tmp_path_factory.mktemp("pruned"), Path.cwd()
    (folder / "small.yaml").write_text(CONFIG)
    os.chdir(folder)
    assert main(["fit", "--config=small.yaml", "--epochs=2"]) == 0
    os.chdir(before)
    return folder / "runs"


@pytest.fixture
def trained(runs: Path, mlprank: Program, tmp_path: Path) -> Program:
    shutil.copytree(runs, tmp_path / "runs")
    return mlprank


def test_every_amount_is_a_network_and_the_split_is_the_one_asked_for(trained: Program, tmp_path: Path) -> None:
    result = trained("prune", BEST, "--amount", "0.25", "0.5", "--split", "val", "--measure", "norm", "--round_to=4")
    assert result.code == 0, result.err
    assert "val top-1" in result.out
    assert "test top-1" not in result.out
    folder = tmp_path / "runs/small/001/prune/001"
    metrics = [json.loads((folder / f"metrics-{amount}.json").read_text()) for amount in ("0.25", "0.5")]
    assert [each["recipe"]["amount"] for each in metrics] == [0.25, 0.5]
    assert {each["split"] for each in metrics} == {"val"}
    assert {each["recipe"]["measure"]["name"] for each in metrics} == {"norm"}
    assert {each["recipe"]["round_to"] for each in metrics} == {4}


def test_what_the_config_said_to_the_callback_is_the_default_and_a_saved_config_prunes_again(
    trained: Program, tmp_path: Path
) -> None:
    config = tmp_path / "runs/small/001/config.yaml"
    callback = "{class_path: mlprank.callbacks.PruningCallback, init_args: {amount: 0.25, method: global, apply: none}}"
    config.write_text(config.read_text().replace("callbacks: null", f"callbacks: [{callback}]"))
    for arguments in ((BEST,), (BEST, f"--config={config}"), (BEST, "--config=o/001/config.yaml")):
        result = trained("prune", *arguments, "--out=o")
        assert result.code == 0, result.err
        assert "MLP pruned by weighted_pagerank, global" in result.out
        assert "(25.0% requested)" in result.out
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["001", "002", "003"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amount=nan"], "amount: 'nan' is not a number"),
        (["--amount=1.5"], "amount=1.5 is not in [0, 1)"),
        (["--amount=[]"], "amount=[] holds no amount"),
        (["--measure=nrm"], "unknown measure \"nrm\"; did you mean 'norm'?"),
        (["--measur=norm"], "there is no option '--measur'; did you mean '--measure'?"),
        (["--device=foo"], "accelerator='foo': You selected an invalid accelerator name"),
        (["--accelerator=cuda:99"], "accelerator='cuda:99': "),
        (["--accelerator=cuda:x"], "accelerator='cuda:x': 'x' is not the number of a device"),
        (["--accelerator=cpu:0"], "accelerator='cpu:0': "),
        (["--split=tset"], "split: 'tset' is not one of val, test; did you mean 'test'?"),
        (["--min_neurons=0"], "min_neurons=0 must be a whole number of at least 1"),
        (["--graph=dig"], "graph: 'dig' is not one of dag, chain; did you mean 'dag'?"),
        (["--protect=" + "[" * 3000], "protect: "),
        (["--num_samples=!!python/object:os.x"], "num_samples: '!!python/object:os.x' is not a whole number"),
    ],
)
def test_wrong_input_is_named_in_one_line_and_leaves_nothing(
    trained: Program, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = trained("prune", BEST, *arguments)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "runs/small/001/prune").exists()


@pytest.mark.parametrize("command", ["test", "validate", "predict", "prune", "fit", "export"])
def test_what_is_wrong_with_a_checkpoint_is_said_first(command: str, mlprank: Program, tmp_path: Path) -> None:
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.ckpt").write_text("hello")
    for name, message in (
        ("none", "does not exist"),
        ("empty", "empty.ckpt is damaged"),
        ("text", "text.ckpt is damaged"),
    ):
        result = mlprank(command, f"--ckpt_path={name}.ckpt")
        assert result.code == 2
        assert message in result.err


def test_a_field_added_to_the_recipe_is_an_option_of_the_command() -> None:
    code = """
import dataclasses
from mlprank.cli import prune
from mlprank.training.parser import command_parser
prune.Recipe = dataclasses.make_dataclass("Recipe", [("added", int, 3)], bases=(prune.Recipe,), frozen=True)
parser = command_parser("prune", add_options=prune.add_options)
print(parser.parse_args(["--added=5", "--model.model=mlprank.models.TwoLayerMLP"]).added)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "5\n", done.stderr
