"""Every logger gets a pruning in its own way; what it wrote is read back."""

import csv
import json
import struct

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from mlprank.callbacks import Linear, PruningCallback
from tests.callbacks.projects import Blobs, Project, trainer_for


def fit(directory, logger, callback):
    trainer = trainer_for(directory, callback, max_epochs=2, logger=logger, log_every_n_steps=1)
    trainer.fit(Project(), datamodule=Blobs())
    return callback.evaluations[0]


def test_csv_has_the_numbers_and_the_files_are_beside_it(tmp_path):
    evaluation = fit(tmp_path, CSVLogger(tmp_path, name="run"), PruningCallback(0.5))
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["pruned/top1"]]
    assert float(rows[0]["pruned/top1"]) == pytest.approx(evaluation.after.top_k[1])
    assert float(rows[0]["dense/num_parameters"]) == 467
    assert (tmp_path / "run" / "version_0" / "pruned.ckpt").is_file()


def test_tensorboard_has_the_numbers_and_a_histogram_of_every_layer(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callback = PruningCallback(0.5, schedule=Linear(0, 1))
    evaluation = fit(tmp_path, TensorBoardLogger(tmp_path, name="run"), callback)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "version_0"), size_guidance={"histograms": 0}).Reload()
    assert events.Scalars("pruned/achieved_amount")[0].value == pytest.approx(0.5)
    assert events.Scalars("pruned/flops")[0].value == evaluation.after.flops
    assert [event.value for event in events.Scalars("pruning/achieved_amount")] == [0.5]
    assert set(events.Tags()["histograms"]) == {"centrality/net.0", "centrality/net.2", "centrality/net.4"}
    assert (tmp_path / "run" / "version_0" / "pruned.ckpt").is_file()


def chunks(content):
    """The records of a LevelDB log (what an offline run writes) behind its header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := -place % 32768) and left < 7:
            place += left  # the end of a block that has no room for another header
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def records(path):
    """Every record of an offline run's file, by kind."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for chunk in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(chunk)
        found.setdefault(record.WhichOneof("record_type"), []).append(record)
    return found


@pytest.mark.slow
def test_wandb_offline_has_numbers_tables_histograms_picture_and_artifacts(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(save_dir=str(tmp_path / "logs"), project="pruning", offline=True)
    callback = PruningCallback(0.5)
    evaluation = fit(tmp_path, logger, callback)
    logger.experiment.finish()
    wandb.teardown()  # waits until everything has been written
    (path,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/*.wandb")
    found = records(path)
    history = {
        tuple(item.nested_key): json.loads(item.value_json)
        for record in found["history"]
        for item in record.history.item
    }
    assert history["pruned/top1",] == pytest.approx(evaluation.after.top_k[1])
    assert history["dense/num_parameters",] == 467
    assert history["pruning/layers", "_type"] == "table-file"
    assert history["pruning/layers", "nrows"] == 3
    assert history["pruning/picture", "_type"] == "image-file"
    histograms = {key[0]: value for key, value in history.items() if key[1:] == ("values",)}
    assert {name: sum(counts) for name, counts in histograms.items()} == {
        "centrality/net.0": 16,
        "centrality/net.2": 16,
        "centrality/net.4": 3,
    }
    artifacts = {record.artifact.type: record.artifact for record in found["artifact"]}
    assert [entry.path for entry in artifacts["pruned-model"].manifest.contents] == ["pruned.ckpt"]
    assert json.loads(artifacts["pruned-model"].metadata)["achieved"] == 0.5
    assert artifacts["model"].name == f"dense-{logger.version}"
    assert callback.files[0]["pruned network"].parent == tmp_path / "logs" / "pruning" / logger.version


@pytest.mark.slow
def test_wandb_in_the_current_directory_gives_every_run_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger, callback = WandbLogger(offline=True), PruningCallback(0.5)
    fit(tmp_path, logger, callback)
    logger.experiment.finish()
    assert (
        tmp_path / callback.files[0]["metrics"]
    ).resolve() == tmp_path / "lightning_logs" / logger.version / "metrics.json"
