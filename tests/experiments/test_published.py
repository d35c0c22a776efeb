"""`--published`: cells give the numbers of `prune_mlp(..., published=True)`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlprank.cli import main
from mlprank.experiments.config import ExperimentConfig
from mlprank.experiments.records import DENSE, read_records
from mlprank.thesis import prune_mlp
from tests.experiments.trained import write_two_layer_mnist


def test_published_cells_are_those_of_prune_mlp(tmp_path: Path) -> None:
    checkpoint = write_two_layer_mnist(tmp_path)
    out = tmp_path / "out"
    options = ["--model-name", "TwoLayerMLP", "--measure-name", "WeightedPageRank", "ChannelWandA"]
    options += ["--amount", "0.3", "0.7", "--checkpoint-root", str(tmp_path), "--data-dir", str(tmp_path)]
    code = main(["experiment", "--published", *options, "--out", str(out)])
    assert code == 0
    cells = [record for record in read_records(out) if record.parameters.measure != DENSE]
    assert len(cells) == 2 * 2 * 2
    for record in cells:
        cell, metrics = record.parameters, record.metrics
        assert (cell.graph, cell.compensation, cell.protect_output) == ("published", "constant", False)
        assert metrics is not None
        expected, _ = prune_mlp(
            "TwoLayerMLP",
            "MNIST",
            cell.measure,
            cell.method.title(),
            amount=cell.amount,
            published=True,
            checkpoint=checkpoint,
            data_dir=str(tmp_path),
        )
        assert metrics.top1 == expected["top1_acc"]
        assert metrics.top5 == expected["top5_acc"]
        assert metrics.achieved_amount == expected["achieved_amount"]
        assert metrics.num_parameters_after == expected["size_nz"]
        assert metrics.flops_after == 2 * expected["flops_nz"]


def test_published_conditions_are_all_or_none() -> None:
    with pytest.raises(ValueError, match=r'"published" stands for all published conditions.*--published sets all'):
        ExperimentConfig(networks=["TwoLayerMLP"], graphs=["published"], protect_output=[True])
