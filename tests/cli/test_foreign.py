"""Anyone's classes and files on the command line: LightningModules, networks, bare state dicts, copied checkpoints."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

Program = Callable[..., Any]
PACKAGE = """\
import lightning.pytorch as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class MyModule(L.LightningModule):
    def __init__(self, width: int = 24, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch, index):
        self.log("test_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


class MyData(L.LightningDataModule):
    def __init__(self, n: int = 96):
        super().__init__()
        self.n = n

    def train_dataloader(self):
        x = torch.randn(self.n, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32)

    test_dataloader = train_dataloader
"""
DATA = ("--data", "my_pkg.MyData")
CPU = ("--accelerator", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a package in it that nothing has installed."""
    (tmp_path / "my_pkg.py").write_text(PACKAGE)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("my_pkg", None)


def test_a_module_of_the_current_folder_is_trained_tested_and_pruned(mlprank: Program, folder: Path) -> None:
    mine = ("--model", "my_pkg.MyModule", *DATA)
    fit = mlprank("fit", *mine, "--model.width", "12", "--epochs", "1", *CPU)
    assert fit.code == 0, fit.err
    run = folder / "runs/default/001"
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert saved == {"class_path": "my_pkg.MyModule", "init_args": {"width": 12, "lr": 0.01}}
    last = str(run / "checkpoints/last.ckpt")
    assert "test_loss" in mlprank("test", *mine, "--ckpt_path", last, *CPU).out
    pruned = mlprank("prune", *mine, "--ckpt_path", last, "--amount", "0.5", "--num_samples", "64")
    assert pruned.code == 0, pruned.err
    file = run / "prune/001/pruned.ckpt"
    assert torch.load(file, weights_only=True)["state_dict"]["net.a.weight"].shape == (6, 8)
    assert "test_loss" in mlprank("test", *mine, "--ckpt_path", str(file), *CPU).out
    assert "goes on in runs/default/001" in mlprank("fit", *mine, "--epochs=2", "--ckpt_path=last", *CPU).out


def test_a_config_that_was_found_imports_nothing_that_the_user_has_not_named(mlprank: Program, folder: Path) -> None:
    assert mlprank("fit", "--model=my_pkg.MyModule", *DATA, "--trainer.fast_dev_run=true", *CPU).code == 0
    run = folder / "found"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, run / "checkpoints/last.ckpt")
    evil = folder / "evil.py"
    evil.write_text("import pathlib; pathlib.Path('imported').touch()\nclass Net: ...\n")
    (run / "config.yaml").write_text("model: {class_path: evil.Net}\n")
    for command in ("test", "prune", "fit"):
        result = mlprank(command, f"--ckpt_path={run}/checkpoints/last.ckpt")
        assert result.code == 2
        assert "names evil.Net, which is imported only where you name it yourself" in result.err
    assert not (folder / "imported").exists()


def test_a_bare_state_dict_is_tested_pruned_exported_and_measured(mlprank: Program, folder: Path) -> None:
    assert mlprank("test", "--model=my_pkg.Net", "--ckpt_path=none.pt").code == 2, "which puts the folder on the path"
    import my_pkg

    torch.save(my_pkg.Net(16).state_dict(), folder / "w.pt")
    mine = ("--model", "my_pkg.Net", "--model.width=16")
    tested = mlprank("test", "--ckpt_path=w.pt", *mine, *DATA, *CPU)
    assert "test_top1" in tested.out, tested.err
    pruned = mlprank("prune", "--ckpt_path=w.pt", *mine, *DATA, "--amount", "0.25", "0.5", "--out=o")
    assert pruned.code == 0, pruned.err
    assert sorted(path.name for path in (folder / "o/001").glob("*.ckpt")) == ["pruned-0.25.ckpt", "pruned-0.5.ckpt"]
    exported = mlprank("export", "w.pt", *mine, "--format=safetensors", "--input_shape=[8]")
    assert "its tensors are the network's" in exported.out, exported.err
    short = ("--backends=[eager]", "--batch_sizes=[1]", "--repeats=1", "--input_shape=[8]")
    bench = mlprank("bench", "w.pt", "o/001/pruned-0.5.ckpt", *mine, *short, "--out=b.json")
    assert bench.code == 0, bench.err
    assert (folder / "b.json").is_file()
    wrong = mlprank("test", "--ckpt_path=w.pt", "--model=my_pkg.Net", "--model.width=17", *DATA, *CPU)
    assert wrong.code == 2
    assert "belongs to another network: model.a.weight is 16×8 there and 17×8 here" in wrong.err


def test_a_copied_file_says_itself_what_it_is_and_is_trained_on(mlprank: Program, tmp_path: Path) -> None:
    assert mlprank("fit", "--config=small.yaml", "--epochs=1", "--amount=0.5").code == 0
    (tmp_path / "copied").mkdir()
    for name in ("pruned.ckpt", "checkpoints/best.ckpt"):
        shutil.copy(tmp_path / "runs/small/001" / name, tmp_path / "copied")
    for name in ("pruned.ckpt", "best.ckpt"):
        tested = mlprank("test", f"--ckpt_path=copied/{name}", *CPU)
        assert "test_top1" in tested.out, tested.err
    tuned = mlprank("fit", "--config=small.yaml", "--epochs=1", "--ckpt_path=copied/pruned.ckpt", "--out=fine")
    assert tuned.code == 0, tuned.err
    assert "trains on from the weights of copied/pruned.ckpt" in tuned.out
    weight = torch.load(tmp_path / "fine/001/checkpoints/last.ckpt", weights_only=True)["state_dict"][
        "model.fc1.weight"
    ]
    assert weight.shape == (8, 64)
    assert mlprank("test", "--ckpt_path=fine/001/checkpoints/last.ckpt").code == 0


def test_no_callback_of_someones_run_acts_in_an_evaluation(mlprank: Program, tmp_path: Path) -> None:
    assert mlprank("fit", "--config=small.yaml", "--epochs=1").code == 0
    config = tmp_path / "runs/small/001/config.yaml"
    values = yaml.safe_load(config.read_text())
    values["trainer"] |= {"callbacks": [{"class_path": "evil.Callback"}], "logger": {"class_path": "evil.Logger"},
                          "plugins": ["evil.Plugin"], "limit_test_batches": 0}  # fmt: skip
    config.write_text(yaml.safe_dump(values))
    for command, shown in (("test", "test_top1"), ("validate", "val_top1"), ("predict", "359 predictions"),
                           ("prune", "Masked and removed network agree")):  # fmt: skip
        done = mlprank(command, "--ckpt_path=runs/small/001/checkpoints/best.ckpt")
        assert done.code == 0, done.err
        assert done.out.startswith(f"mlprank {command}: takes model and data from runs/small/001/config.yaml\n")
        assert shown in done.out


def test_the_next_command_runs_on_a_data_module_that_draws_no_calibration_samples(
    mlprank: Program, folder: Path
) -> None:
    fit = mlprank("fit", "--model=my_pkg.MyModule", *DATA, "--epochs=1", "--amount=0.5", *CPU)
    assert fit.code == 0, fit.err
    following = fit.out.partition("Next: ")[2].splitlines()[0].split()
    assert following[:2] == ["mlprank", "prune"]
    assert following[-2:] == ["--amount", "0.75"], "half of what is left"
    assert not any(word.startswith("/") for word in following), "paths are relative"
    pruned = mlprank(*following[1:])
    assert pruned.code == 0, pruned.err
    assert "Masked and removed network agree" in pruned.out
    assert "--amount 0.88" in pruned.out.partition("Next: ")[2], "and it proposes something new"


def test_a_result_that_is_not_finite_ends_a_test_with_an_error(mlprank: Program, folder: Path) -> None:
    mine = ("--model=my_pkg.MyModule", *DATA, *CPU)
    assert mlprank("fit", "--config=small.yaml", "--epochs=1").code == 0
    assert mlprank("fit", *mine, "--epochs=1").code == 0
    for run, name, command, message in (
        ("small/001/checkpoints/best", "model.fc1.weight", ("test",), "the loss is nan on the test data"),
        ("small/001/checkpoints/best", "model.fc1.weight", ("validate",), "the loss is nan on the val data"),
        ("default/001/checkpoints/last", "net.a.weight", ("test", *mine), "gives values that are not finite"),
    ):
        path = folder / "runs" / f"{run}.ckpt"
        content = torch.load(path, weights_only=True)
        content["state_dict"][name][0, 0] = float("nan")
        torch.save(content, path)
        result = mlprank(*command, f"--ckpt_path={path}")
        assert result.code == 2
        assert message in result.err
