"""Build the wheel, install it without the sources, and import everything that was installed.

Run: python tests/wheel.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_IMPORT_ALL = """
import importlib, pkgutil, sys
import mlprank
home = mlprank.__file__
assert home.startswith(sys.argv[1]), home
found = [module.name for module in pkgutil.walk_packages(mlprank.__path__, "mlprank.")]
names = [name for name in found if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
for public in mlprank.__all__:
    getattr(mlprank, public)
import pathlib
installed = {path.name for path in pathlib.Path(sys.argv[1]).iterdir() if path.suffix != ".dist-info"}
assert installed <= {"mlprank", "bin", ".lock"}
print(f"imported {len(names)} modules from the wheel")
"""


def install_wheel(target: Path) -> None:
    """Build the wheel from a copy of the sources and unpack it into `target`."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch) / "sources"
        shutil.copytree(
            ROOT,
            sources,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "uv.lock"),
        )
        subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", scratch, str(sources)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        subprocess.run(
            ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True
        )


def main() -> int:
    """Check the installed wheel; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "site"
        install_wheel(target)
        command = [sys.executable, "-c", _IMPORT_ALL, str(target)]
        return subprocess.run(command, cwd=scratch, env=_environment(target), check=False).returncode


def _environment(target: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(target), "PYTHONSAFEPATH": "1"}


if __name__ == "__main__":
    sys.exit(main())
