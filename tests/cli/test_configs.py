"""Configs that come with mlprank are found by name, from anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlprank.training.parser import Request
from mlprank.utils.files import find_config, known_configs, load_config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names_files_and_paths_of_the_clone_are_found(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in (
        ("quickstart", "quickstart.yaml"),
        ("two_layer_mnist", "thesis/two_layer_mnist.yaml"),
        ("tune/two_layer_mnist", "tune/two_layer_mnist.yaml"),
        ("configs/quickstart.yaml", "quickstart.yaml"),  # also outside a clone
    ):
        assert find_config(name).read_bytes() == (CONFIGS / path).read_bytes()
    (tmp_path / "quickstart").write_text("{}")
    assert find_config("quickstart") == Path("quickstart"), "a file of one's own comes first"


def test_several_configs_of_a_command_line_are_names_or_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("trainer: {max_epochs: 7}")
    request = Request.of(["--config", "quickstart", "own.yaml", "--lr", "quickstart", "--config=logging/wandb"])
    files = (CONFIGS / "quickstart.yaml", tmp_path / "own.yaml", CONFIGS / "logging" / "wandb.yaml")
    assert request.contents == [load_config(str(file)) for file in files]
    assert request.options == [("lr", "quickstart")]


def test_they_are_listed_with_what_they_say_of_themselves_and_copied(
    mlprank: Callable[..., Any], tmp_path: Path
) -> None:
    listed = mlprank("configs").out
    words = " ".join(listed.split())
    for name, path in known_configs().items():
        assert f"{name}\n" in listed
        assert path.read_text().partition("\n")[0].lstrip("# ") in words
    assert max(map(len, listed.splitlines())) <= 80
    assert len(known_configs()) >= 10
    assert mlprank("configs", "quickstart", "--out=mine.yaml").out == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == (CONFIGS / "quickstart.yaml").read_text()
    again = mlprank("configs", "quickstart", "--out", "mine.yaml")
    assert (again.code, again.out) == (2, "")
    assert "mine.yaml exists; give another file with --out" in again.err
