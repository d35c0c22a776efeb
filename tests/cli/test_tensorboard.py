"""The numbers that TensorBoard and CSV hold after a short quickstart, read back."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2")
QUICKSTART = ("fit", f"--config={CONFIGS}/quickstart.yaml", *SHORT)


@pytest.mark.slow
def test_csv_and_tensorboard_have_the_same_numbers_and_the_pruning(mlprank: Callable[..., Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = mlprank(*QUICKSTART, "--trainer.logger=TensorBoardLogger", "--trainer.logger+=CSVLogger")
    assert result.code == 0, result.err
    run = tmp_path / "runs/quickstart/001"
    events = accumulator.EventAccumulator(str(run)).Reload()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("val_top1", "val_loss", "train_loss", "pruned/top1"):
        logged = [float(row[name]) for row in rows if row[name]]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(logged), name
    assert {"centrality/model.fc1", "centrality/model.fc2"} <= set(events.Tags()["histograms"])
