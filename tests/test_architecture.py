"""The import rules: data flows one way, from the bottom of the tree to the command line."""

from __future__ import annotations

import ast
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

_PACKAGES = (
    "utils graph calibration measures methods compensation surgery artifact costs pruning models datamodules callbacks "
    "thesis training grids tuning experiments report cli"
)
ORDER = _PACKAGES.split(" ")
"""The packages from the bottom up; each imports from those before it and from itself."""

MAY_IMPORT_LIGHTNING = {"models", "datamodules", "callbacks", "thesis", "training", "tuning", "experiments", "cli"}


def _modules() -> dict[str, Path]:
    """Every module of the package by its name below `mlprank`, the linked folders included."""
    found = {}
    for folder, _, files in os.walk(ROOT / "mlprank", followlinks=True):
        for file in files:
            if file.endswith(".py"):
                path = Path(folder) / file
                name = path.relative_to(ROOT / "mlprank").with_suffix("").as_posix().replace("/", ".")
                found[name.removesuffix("__init__").rstrip(".")] = path
    return found


MODULES = _modules()


def imported(tree: ast.AST) -> set[str]:
    """Every module that a piece of code imports, wherever in it, with the names taken out of packages."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _parsed(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def _ours(name: str) -> set[str]:
    """The modules of ours that a module imports, by their names below `mlprank`; the packages that it lies in aside."""
    below = {found.removeprefix("mlprank.") for found in imported(_parsed(name)) if found.startswith("mlprank.")}
    return {found for found in below if found in MODULES and not f"{name}.".startswith(f"{found}.")}


def _within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def test_every_package_has_its_place_in_the_order():
    assert {name.partition(".")[0] for name in MODULES} - {"", "__main__"} == set(ORDER)


def test_no_import_runs_up():
    upward = {
        (name, other.partition(".")[0])
        for name in MODULES
        if name.partition(".")[0] in ORDER
        for other in _ours(name)
        if ORDER.index(other.partition(".")[0]) > ORDER.index(name.partition(".")[0])
    }
    assert not upward


def test_no_circle_of_imports():
    edges = {name: _ours(name) for name in MODULES}
    seen: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in seen:
            for other in edges[name]:
                visit(other, (*path, name))
            seen.add(name)

    for name in MODULES:
        visit(name, ())


def test_lightning_stays_at_the_edges():
    inside = [name for name in MODULES if name and name.partition(".")[0] not in MAY_IMPORT_LIGHTNING]
    assert not {
        name: found for name in inside if (found := _within(imported(_parsed(name)), "lightning", "pytorch_lightning"))
    }


def test_what_takes_seconds_to_import_is_imported_only_where_it_is_used():
    def at_the_top(name: str) -> set[str]:
        return imported(
            ast.Module([node for node in _parsed(name).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        )

    heavy = ("wandb", "ray", "onnx", "onnxruntime", "altair", "vl_convert")
    assert not {name: found for name in MODULES if (found := _within(at_the_top(name), *heavy))}


def test_the_rules_see_imports():
    assert "mlprank.training.run" in imported(_parsed("cli.prune"))
    assert _within(imported(_parsed("models.classifier")), "lightning")
    assert "callbacks.pruning" in MODULES
