"""The import rules: data flows one way."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("mlprank", "callbacks", "datamodules") for path in (ROOT / part).rglob("*.py"))
MAY_IMPORT_LIGHTNING = (
    "mlprank/models/classifier.py",
    "mlprank/models/",
    "mlprank/tuning/",
    "mlprank/experiments/",
    "mlprank/cli/",
)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == package or name.startswith(f"{package}.") for package in packages)}


def test_datamodules_import_nothing_else_of_ours():
    offenders = {
        place(path): names
        for path in SOURCES
        if place(path).startswith("datamodules/")
        and (names := within(imported(path), "mlprank") - within(imported(path), "mlprank.datamodules"))
    }
    assert not offenders


def test_only_the_command_line_imports_callbacks():
    inside = [
        path for path in SOURCES if place(path).startswith("mlprank/") and not place(path).startswith("mlprank/cli/")
    ]
    assert not {place(path): names for path in inside if (names := within(imported(path), "mlprank.callbacks"))}


def test_lightning_stays_at_the_edges():
    inside = [
        path
        for path in SOURCES
        if place(path).startswith("mlprank/") and not place(path).startswith(MAY_IMPORT_LIGHTNING)
    ]
    assert not {
        place(path): names for path in inside if (names := within(imported(path), "lightning", "pytorch_lightning"))
    }


def test_what_takes_seconds_to_import_is_imported_only_where_it_is_used():
    def at_the_top(path: Path) -> set[str]:
        nodes = ast.parse(path.read_text()).body
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}

    heavy = ("wandb", "ray", "onnx", "onnxruntime")
    assert not {place(path): names for path in SOURCES if (names := within(at_the_top(path), *heavy))}


def test_the_rules_see_imports():
    assert "mlprank.callbacks" in imported(ROOT / "mlprank/cli/prune.py")
    assert within(imported(ROOT / "mlprank/models/classifier.py"), "lightning")
