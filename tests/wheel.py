"""Build the wheel, install it with what it needs into an empty environment, and use it from another folder.

Run: python tests/wheel.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

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
print(f"imported {len(names)} modules from the wheel")
"""
MODULE = """
import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class Data(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32)

    test_dataloader = val_dataloader = train_dataloader
"""


def build_wheel(scratch: Path) -> Path:
    """Build the wheel from a copy of the sources."""
    sources = scratch / "sources"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, sources, symlinks=True, ignore=ignored)
    subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", str(scratch), str(sources)], check=True)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def check_page(wheel: Path) -> None:
    """Check that what an index shows of the wheel is the README, with links that lead somewhere."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(name).decode()
    links = re.findall(r"""(?:\]\(|src=")([^)"]+)""", page)
    assert len(links) > 20, "the README is missing"
    assert not [link for link in links if not link.startswith("https://")], links


def install(wheel: Path, environment: Path) -> None:
    """Install the wheel and the versions that the lock file names, without those of development."""
    locked = environment.with_suffix(".txt")
    export = ["uv", "export", "--quiet", "--no-dev", "--no-emit-project", "--no-hashes"]
    subprocess.run([*export, "--output-file", str(locked)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
    python = ["--python", str(environment / "bin" / "python")]
    subprocess.run(["uv", "pip", "install", "--quiet", *python, "-r", str(locked), str(wheel)], check=True)


class Program:
    """The installed program in a folder of its own."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.binaries, self.folder = environment / "bin", folder
        unset = ("PYTHONPATH", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if name not in unset}
        self.environment |= {"WANDB_MODE": "offline", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

    def __call__(self, command: str, *, says: str = "", code: int = 0) -> str:
        """Run a command, and check its exit code and what it says."""
        program, *arguments = command.split()
        done = subprocess.run(
            [str(self.binaries / program), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, f"{command}: exit code {done.returncode}\n{output}"
        assert says in output, f"{command} does not say {says!r}\n{output}"
        assert "Warning" not in output, f"{command} warns\n{output}"
        print(f"{command}: as it should be", flush=True)
        return done.stdout


def use(program: Program) -> None:
    """What somebody tries who has just installed it."""
    program("mlprank configs", says="quickstart\n    An MLP on the bundled digits")
    program("mlprank configs quickstart --out mine.yaml", says="mine.yaml")
    assert len(program("mlprank fit --help", says="examples:").splitlines()) <= 100
    shown = program("mlprank fit --config quickstart --epochs 2", says="Next: mlprank prune ")
    following = shown.partition("Next: ")[2].splitlines()[0]
    program(following, says="Next: mlprank prune ")
    program("mlprank test --ckpt_path runs/quickstart/001/pruned.ckpt", says="test_top1")
    (program.folder / "mine.py").write_text(MODULE)
    save = "import torch, mine; torch.save(mine.Net(16).state_dict(), 'w.pt')"
    subprocess.run([str(program.binaries / "python"), "-c", save], cwd=program.folder, check=True)
    mine = "--model mine.Net --model.width 16"
    shown = program(f"mlprank prune --ckpt_path w.pt {mine} --data mine.Data", says="Masked and removed network agree")
    following = shown.partition("Next: ")[2].splitlines()[0]
    program(following, says="Masked and removed network agree")
    program(f"mlprank test --ckpt_path prune/001/pruned.ckpt {mine} --data mine.Data", says="test_top1")
    program(f"mlprank export prune/001/pruned.ckpt {mine} --format safetensors", says="its tensors are the network's")
    program("mlprank fit --config quickstar", says="did you mean 'quickstart'?", code=2)


def main() -> int:
    """Check the installed wheel; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        environment, folder = scratch / "env", scratch / "elsewhere"
        folder.mkdir()
        wheel = build_wheel(scratch)
        check_page(wheel)
        install(wheel, environment)
        program = Program(environment, folder)
        command = [str(environment / "bin" / "python"), "-c", _IMPORT_ALL, str(environment)]
        subprocess.run(command, cwd=folder, env=program.environment, check=True)
        use(program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
