"""What Lightning prints is of no interest."""

import logging
import textwrap

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture
def config(tmp_path):
    """A config of fit that trains in a moment."""
    path = tmp_path / "small.yaml"
    text = """
        seed_everything: 0
        trainer: {max_epochs: 2, accelerator: cpu}
        model:
          model: {class_path: mlprank.models.MLP, init_args: {in_features: 64, widths: [12], num_classes: 10}}
          optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
        data: {class_path: mlprank.datamodules.DigitsDataModule, init_args: {batch_size: 64}}
        """
    path.write_text(textwrap.dedent(text))
    return path
