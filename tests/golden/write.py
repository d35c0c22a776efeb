"""Write the golden files: what version 0.1.0 (commit 7bfaf63) left on disk, so that later versions can be held to it.

Run at that commit, in a checkout of it: `python tests/golden/write.py`. The files are committed; nothing runs this
again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

import mlprank
from mlprank.callbacks import PruningCallback
from mlprank.datamodules import DigitsDataModule
from mlprank.models import MLP
from mlprank.models.classifier import ImageClassifier

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.golden.networks import INPUTS, configured, filled  # noqa: E402

GRID = "--grid.model.optimizer.init_args.lr=[0.01, 0.003]"
TUNE = """\
seed_everything: 0
trainer: {max_epochs: 3, accelerator: cpu}
model:
  model: {class_path: mlprank.models.MLP, init_args: {in_features: 64, widths: [12], num_classes: 10}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data: {class_path: mlprank.datamodules.DigitsDataModule, init_args: {batch_size: 64}}
"""


def write_pruned() -> None:
    """Three pruned networks, their outputs on the golden inputs, and what the file says of them."""
    for name, network in configured().items():
        result = mlprank.prune(filled(network, seed=1).eval(), INPUTS, amount=0.5)
        result.save(HERE / f"{name}.ckpt", source="dense.ckpt")
        with torch.no_grad():
            kept = {layer: mask.nonzero().flatten() for layer, mask in result.masks.items()}
            torch.save({"outputs": result.model(INPUTS), "kept": kept}, HERE / f"{name}.expected.pt")


def write_fit() -> None:
    """The best checkpoint of a plain fit, and that of a module whose weights are masked."""
    data = DigitsDataModule(batch_size=64)
    with tempfile.TemporaryDirectory() as folder:
        best = pl.callbacks.ModelCheckpoint(folder, monitor="val_top1", mode="max", save_weights_only=True)
        fit(best, data, folder)
        shutil.copy(best.best_model_path, HERE / "best.ckpt")
        masked, trainer = fit(PruningCallback(amount=0.5), data, folder)
        trainer.save_checkpoint(HERE / "masked.ckpt", weights_only=True)
    images = next(iter(data.val_dataloader()))[0][:8].clone()
    dense = ImageClassifier.load_from_checkpoint(HERE / "best.ckpt", weights_only=True).eval()
    with torch.no_grad():
        expected = {"images": images, "masked": masked.eval()(images).clone(), "best": dense(images).clone()}
    torch.save(expected, HERE / "fit.expected.pt")


def fit(callback: pl.Callback, data: DigitsDataModule, folder: str) -> tuple[ImageClassifier, pl.Trainer]:
    """Train a small classifier for two epochs on the CPU."""
    torch.manual_seed(0)
    module = ImageClassifier(MLP(64, [12, 8], 10, batch_norm=True))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=folder,
        enable_checkpointing=not isinstance(callback, PruningCallback),
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return module, trainer


def write_experiment() -> None:
    """An experiment's directory with records and scores, made by the command in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = MLP(64, [24, 16], 10)
        torch.save({"model": network.state_dict()}, f"{folder}/mlp.pth")
        Path(folder, "small.yaml").write_text(
            "networks: [MLP@Digits]\ncheckpoints: {MLP@Digits: [mlp.pth]}\n"
            "model_args: {MLP@Digits: {in_features: 64, widths: [24, 16], num_classes: 10}}\n"
            "measures: [WeightedPageRank, ChannelNorm]\namounts: [0.25, 0.5]\nlatency: false\nout: results\n"
        )
        command = [sys.executable, "-m", "mlprank", "experiment", "--config", "small.yaml"]
        subprocess.run(command, cwd=folder, check=True)
        shutil.copytree(Path(folder, "results"), HERE / "experiment", dirs_exist_ok=True)
        shutil.copy(Path(folder, "mlp.pth"), HERE / "published.pth")
        shutil.copy(Path(folder, "small.yaml"), HERE / "experiment.yaml")


def write_tune() -> None:
    """A grid of two trials, killed when the first has ended and the second has been through an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "small.yaml").write_text(TUNE)
        options = ["--config", "small.yaml", "--tune.out=grid", "--tune.engine=local", GRID]
        process = subprocess.Popen(
            [sys.executable, "-m", "mlprank", "tune", *options], cwd=folder, start_new_session=True
        )
        out = Path(folder, "grid")
        while process.poll() is None:
            ended = list(out.glob("trials/*/result.json"))
            begun = [path for path in out.glob("trials/*/*.ckpt") if not (path.parent / "result.json").exists()]
            if ended and begun:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.copytree(out, HERE / "tune", dirs_exist_ok=True)
        Path(HERE, "tune.yaml").write_text(TUNE)


if __name__ == "__main__":
    write_pruned()
    write_fit()
    write_experiment()
    write_tune()
