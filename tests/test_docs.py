"""Every page tells the truth: what is marked as runnable runs, what is linked is there, examples run.

A fenced block below a line `<!-- runs -->` is run: the blocks of a page in order, python in one process, bash in the
same folder.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlprank
from tests.test_architecture import MODULES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
_MARKED = re.compile(r"<!-- runs -->\n```(python|bash)\n(.*?)```", re.DOTALL)
_RUNNABLE = [page for page in PAGES if _MARKED.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", _RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_marks_as_runnable_runs_as_it_stands(page: Path, tmp_path: Path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "WANDB_MODE": "offline", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    python = ""
    for language, block in _MARKED.findall(page.read_text()):
        if language == "python":
            python += block
            command = [sys.executable, "-c", python]
        else:
            command = ["bash", "-e", "-o", "pipefail", "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path, tmp_path: Path):
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_notebook_runs_and_holds_its_pictures(tmp_path: Path):
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join("".join(cell["source"]) for cell in code)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or "/home/" in str(output)]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2


def test_every_link_config_and_file_that_a_page_names_is_there():
    missing = set()
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text):
            if not (page.parent / target).exists():
                missing.add((page.name, target))
        missing |= {
            (page.name, name) for name in re.findall(r"configs/[\w/]+\.yaml", text) if not (ROOT / name).exists()
        }
        named = re.findall(r"`((?:mlprank|tests|callbacks|datamodules)/[\w/.]+)`", text)
        missing |= {(page.name, name) for name in named if "NAME" not in name and not (ROOT / name).exists()}
    assert not missing


def test_every_page_of_the_site_is_in_its_navigation():
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("results/")} <= listed
    assert listed <= pages


@pytest.mark.parametrize("name", sorted(name for name, path in MODULES.items() if ">>>" in path.read_text()))
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"mlprank.{name}" if name else "mlprank")
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in finder.find(module):
        if test.examples:
            result = runner.run(test)
            assert result.failed == 0, test.name


def _documented() -> list[str]:
    """Every name that the reference shows: those of `mlprank`, and of the site's pages."""
    names = {f"mlprank.{name}" for name in set(mlprank.__all__) - {"__version__"}}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for entry in re.findall(
            r"^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?", page.read_text(), re.MULTILINE
        ):
            names |= {f"{entry[0]}.{member}" for member in entry[1].split(", ")} if entry[1] else {entry[0]}
    return sorted(names)


@pytest.mark.parametrize("name", _documented())
def test_every_documented_name_shows_an_example(name: str):
    assert ">>>" in (inspect.getdoc(pkgutil.resolve_name(name)) or ""), f"{name} has no example"


def test_subpackages_resolve_when_they_are_named():
    done = subprocess.run(
        [sys.executable, "-c", "import mlprank; mlprank.measures.Norm; mlprank.callbacks.PruningCallback"], check=False
    )
    assert done.returncode == 0
    assert {module.name for module in pkgutil.iter_modules(mlprank.__path__)} - {"__main__"} <= set(dir(mlprank))
