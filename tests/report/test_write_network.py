"""`mlprank report --write-network`: the network of a cell, made again."""

import pytest
import torch

import mlprank
from mlprank.cli import main
from mlprank.datamodules import DigitsDataModule
from mlprank.experiments.records import read_records
from tests.experiments.trained import DIGITS, digits_network, save_published, write_digits_experiment


@pytest.fixture
def results(tmp_path, capsys):
    config = write_digits_experiment(
        tmp_path, measures=["ChannelNorm"], amounts=[0.5], compensations=["least_squares"], graphs=["dag"]
    )
    assert main(["experiment", "--config", str(config)]) == 0
    capsys.readouterr()
    return tmp_path / "results"


def cell_of(results):
    return next(record for record in read_records(results) if record.parameters.measure != "dense")


def test_the_written_network_is_that_of_the_cell(results, tmp_path, capsys):
    cell = cell_of(results)
    assert main(["report", str(results), "--output", str(tmp_path), "--write-network", cell.key[:8]]) == 0
    path = tmp_path / f"{cell.key}.ckpt"
    assert capsys.readouterr().out.strip() == str(path)
    network = mlprank.load_pruned(path, mlprank.models.MLP(**DIGITS)).eval()
    assert sum(p.numel() for p in network.parameters()) == cell.metrics.num_parameters_after
    data = DigitsDataModule()
    data.setup("test")
    right = [network(images).argmax(1) == labels for images, labels in data.test_dataloader()]
    assert torch.cat(right).double().mean().item() == pytest.approx(cell.metrics.top1, abs=0.005)


def test_a_cell_that_there_is_not_and_a_changed_checkpoint_are_refused(results, tmp_path, capsys):
    arguments = ["report", str(results), "--output", str(tmp_path / "out"), "--write-network"]
    assert main([*arguments, "nothing"]) == 2
    assert "--write-network nothing: 0 finished cells have a key that begins so" in capsys.readouterr().err
    cell = cell_of(results)
    save_published(digits_network(seed=9), tmp_path / "mlp-0.pth")
    assert main([*arguments, cell.key]) == 2
    assert "mlp-0.pth has changed since" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
