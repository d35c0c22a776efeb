import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlprank.experiments.records import (
    CellMetrics,
    LayerWidth,
    RecordStore,
    from_line,
    read_records,
    read_scores,
    to_csv,
    to_line,
)
from mlprank.grids.store import CorruptRecordError, sealed
from mlprank.utils.files import BusyError
from tests.experiments.synthetic import metrics, parameters, record

REPOSITORY = Path(__file__).parents[2]
WRITER = """
import sys
from mlprank.experiments.records import RecordStore
from tests.experiments.synthetic import record
with RecordStore(sys.argv[1]) as store:
    print("open", flush=True)
    for seed in range(100000):
        new = record(calibration_seed=seed)
        if new.key not in store.finished:
            store.append(new)
            print(seed, flush=True)
"""


def edited(change):
    plain = json.loads(to_line(record()))
    change(plain)
    del plain["digest"]
    return json.dumps(sealed(plain))


@pytest.mark.parametrize("written", [record(0.8, measure_args={"p": 2}), record(None, error="boom\nat line 3")])
def test_a_record_is_read_back_as_it_was_written(written):
    line = to_line(written)
    assert line.count("\n") == 1
    assert from_line(line, where="here") == written


def test_a_latency_that_was_not_measured_is_read_back_as_none():
    written = record()
    written = dataclasses.replace(
        written, metrics=dataclasses.replace(metrics(0.8), latency_s_before=None, latency_s_after=None)
    )
    assert from_line(to_line(written), where="here").metrics.latency_s_after is None


def test_the_key_ignores_where_the_checkpoint_lies_and_nothing_else():
    key = parameters().key
    assert parameters(checkpoint="elsewhere/a.ckpt").key == key
    changed = {
        "model": "Other",
        "dataset": "Other",
        "measure": "norm",
        "measure_args": {"p": 2},
        "method": "global",
        "method_args": {"normalise": "none"},
        "amount": 0.3,
        "compensation": "zero",
        "graph": "dag",
        "protect_output": False,
        "calibration_samples": 65,
        "calibration_seed": 1,
        "checkpoint_sha256": "1" * 64,
        "compensation_args": {"ridge": 0.1},
        "recipe_args": {"round_to": 8},
    }
    fields = {field.name for field in dataclasses.fields(parameters())}
    assert fields - changed.keys() == {"checkpoint"}
    keys = {parameters(**{name: value}).key for name, value in changed.items()}
    assert len(keys | {key}) == len(changed) + 1


def test_the_key_ignores_the_order_of_arguments_and_int_for_float():
    assert (
        parameters(measure_args={"gamma": 0.9, "theta": 0.5}).key
        == parameters(measure_args={"theta": 0.5, "gamma": 0.9}).key
    )
    assert parameters(amount=0).key == parameters(amount=0.0).key


@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_an_amount_outside_the_range_is_refused(amount):
    with pytest.raises(ValueError, match=r"amount=.* is not in \[0, 1\)"):
        parameters(amount=amount)


def test_a_percentage_for_a_fraction_is_refused():
    with pytest.raises(ValueError, match=r"top1 must be a fraction in \[0, 1\], got 88; divide"):
        metrics(88)


def test_a_layer_that_keeps_more_than_it_has_is_refused():
    with pytest.raises(ValueError, match=r'layer "fc1": kept must be in \[0, 4\], got 5'):
        LayerWidth(name="fc1", width=4, kept=5)


def test_status_metrics_and_error_must_agree():
    good = record()
    with pytest.raises(ValueError, match=r'status must be "ok" or "failed"'):
        dataclasses.replace(good, status="done")
    with pytest.raises(ValueError, match="metrics if and only if"):
        dataclasses.replace(good, metrics=None)
    with pytest.raises(ValueError, match="needs the text of its error"):
        dataclasses.replace(good, status="failed", metrics=None)


def test_a_number_that_is_not_finite_is_refused():
    broken = dataclasses.replace(record(), timings={"evaluate_s": float("inf")})
    with pytest.raises(ValueError, match="finite numbers only"):
        to_line(broken)


def test_another_schema_version_is_named():
    line = edited(lambda plain: plain.update(schema_version=99))
    with pytest.raises(ValueError, match=r"r\.jsonl line 7: schema version 99, but this mlprank reads version 2"):
        from_line(line, where="r.jsonl line 7")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("schema_version"), "it has no schema_version"),
        (lambda p: p["metrics"].pop("top1"), r"CellMetrics.* missing .*'top1'"),
        (lambda p: p["metrics"].update(top9=0.5), r"CellMetrics.* unexpected .*'top9'"),
        (lambda p: p["metrics"].update(top1="high"), r"top1 must be a number, got 'high'"),
        (lambda p: p["metrics"].update(flops_after=True), r"flops_after must be a number, got True"),
        (lambda p: p["metrics"].update(layers={}), r"layers must be a list, got {}"),
        (lambda p: p.update(parameters=[]), r"CellParameters.* must be a mapping"),
        (lambda p: p.update(timings=[]), r"not a mapping"),
        (lambda p: p["parameters"].update(amount=0.4), "is not that of the parameters"),
    ],
)
def test_a_line_with_a_wrong_field_names_the_place(change, said):
    with pytest.raises(CorruptRecordError, match=said):
        from_line(edited(change), where="r.jsonl line 1")


def test_half_a_line_is_no_record():
    line = to_line(record())
    with pytest.raises(CorruptRecordError, match=r"line 3: not a whole record"):
        from_line(line[: len(line) // 2], where="r.jsonl line 3")


def test_retention_is_the_share_of_the_dense_accuracy():
    assert metrics(0.44, dense=0.88).retention == pytest.approx(0.5)
    assert metrics(0.0, dense=0.0).retention == 0.0
    assert isinstance(metrics(0.5), CellMetrics)


def test_records_statistics_and_report_import_neither_torch_nor_lightning_nor_altair():
    code = (
        "import sys, mlprank.experiments.records, mlprank.experiments.statistics,"
        "mlprank.report, mlprank.cli.report;"
        "print(sorted({'torch', 'lightning', 'altair', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_line_whose_numbers_were_changed_is_told_by_its_digest():
    line = to_line(record(0.8)).replace('"top1":0.8', '"top1":0.9')
    with pytest.raises(CorruptRecordError, match=r"line 2: its digest is not that of its content"):
        from_line(line, where="r.jsonl line 2")


def test_a_record_of_version_0_1_0_is_read_under_the_key_that_it_had():
    plain = json.loads(to_line(record(0.8)))
    for name in ("compensation_args", "recipe_args"):
        del plain["parameters"][name]
    del plain["digest"]
    assert from_line(json.dumps(plain | {"schema_version": 1}), where="here") == record(0.8)


def write(directory, *records):
    with RecordStore(directory) as store:
        for entry in records:
            store.append(entry)


def start_writer(directory):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )


def test_appended_cells_are_found_again(tmp_path):
    entries = [record(calibration_seed=seed) for seed in range(3)]
    write(tmp_path, *entries)
    assert read_records(tmp_path) == tuple(entries)
    assert read_records(tmp_path / "records.jsonl") == tuple(entries)
    with RecordStore(tmp_path) as store:
        assert store.notice is None
        assert store.finished == {entry.key for entry in entries}


def test_a_finished_cell_is_recorded_once(tmp_path):
    with RecordStore(tmp_path) as store:
        store.append(record())
        with pytest.raises(ValueError, match=r"is already finished in .*a cell is recorded once"):
            store.append(record())


def test_a_failed_cell_may_be_run_again_and_the_latest_counts(tmp_path):
    failed, good = record(None, error="out of memory"), record(0.7)
    with RecordStore(tmp_path) as store:
        store.append(failed)
        assert failed.key not in store.finished
        store.append(good)
        assert store.finished == {good.key}
    assert read_records(tmp_path) == (good,)
    assert (tmp_path / "records.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_torn_last_line_is_moved_aside_and_said(tmp_path, cut):
    write(tmp_path, record(calibration_seed=0))
    torn = to_line(record(calibration_seed=1))[:cut]
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    assert len(read_records(tmp_path)) == 1
    assert path.read_bytes() == whole + torn.encode(), "reading changes nothing"
    with RecordStore(tmp_path) as store:
        assert "the last line was torn" in store.notice
        assert len(store.records) == 1
        store.append(record(calibration_seed=1))
    assert len(read_records(tmp_path)) == 2
    assert (tmp_path / "records.torn-1.jsonl").read_text() == torn


def test_two_torn_lines_keep_both_remains(tmp_path):
    for number in (1, 2):
        write(tmp_path)
        with (tmp_path / "records.jsonl").open("a") as file:
            file.write(f"{number}")
    write(tmp_path)
    assert [(tmp_path / f"records.torn-{number}.jsonl").read_text() for number in (1, 2)] == ["1", "2"]


def test_a_whole_record_that_lacks_only_its_newline_is_kept(tmp_path):
    write(tmp_path, record())
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    with RecordStore(tmp_path) as store:
        assert "the record was whole and is kept" in store.notice
        assert store.finished == {record().key}
        store.append(record(calibration_seed=1))
    assert len(read_records(tmp_path)) == 2


def test_a_file_cut_in_the_middle_names_the_line(tmp_path):
    write(tmp_path, *[record(calibration_seed=seed) for seed in range(4)])
    path = tmp_path / "records.jsonl"
    data = path.read_bytes()
    middle = data.index(b"\n") + 100
    path.write_bytes(data[:middle] + data[middle + 200 :])
    for use in (read_records, RecordStore):
        with pytest.raises(CorruptRecordError, match=r"records\.jsonl line 2: not a whole record"):
            use(tmp_path)
    assert path.read_bytes() == data[:middle] + data[middle + 200 :], "a damaged file is left as it is"


def test_bytes_that_are_no_text_name_the_line(tmp_path):
    write(tmp_path, record())
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    with pytest.raises(CorruptRecordError, match=r"line 2: not a whole record"):
        read_records(tmp_path)


def test_another_schema_version_is_refused_and_gives_the_lock_back(tmp_path):
    write(tmp_path, record())
    path = tmp_path / "records.jsonl"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"schema_version": 3}) + "\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"line 1: schema version 3, but this mlprank reads version 2"):
            RecordStore(tmp_path)


def test_missing_results_say_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results at .*mlprank experiment"):
        read_records(tmp_path)


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(OSError, match=r"results directory .* cannot be written"):
        RecordStore(tmp_path / "results")


def test_a_second_process_is_refused_with_the_holder_named(tmp_path):
    writer = start_writer(tmp_path)
    try:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(BusyError, match=rf"in use by process {writer.pid}; wait until it ends"):
            RecordStore(tmp_path)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    RecordStore(tmp_path).close()


def test_a_store_that_is_open_here_is_refused_too(tmp_path):
    with RecordStore(tmp_path) as store, pytest.raises(BusyError, match=f"process {os.getpid()}"):
        RecordStore(store.directory)
    RecordStore(tmp_path).close()


def test_closing_twice_is_harmless(tmp_path):
    store = RecordStore(tmp_path)
    store.close()
    store.close()


def test_kill_9_loses_and_repeats_no_finished_cell(tmp_path):
    said = []
    for round_number in range(3):
        writer = start_writer(tmp_path)
        assert writer.stdout.readline() == "open\n"
        said.append(int(writer.stdout.readline()))
        time.sleep(0.02 + 0.031 * round_number)
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
    seeds = [entry.parameters.calibration_seed for entry in read_records(tmp_path)]
    assert len(said) >= 3
    assert set(said) <= set(seeds), "what was reported as finished is there"
    assert seeds == list(range(len(seeds)))
    assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == len(seeds), "nothing is there twice"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    with RecordStore(tmp_path) as store:
        store.append(record(calibration_seed=0))
        before = (tmp_path / "records.jsonl").read_bytes()
        true_write = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: true_write(handle, data[:10]))
        with pytest.raises(OSError, match=r"wrote 10 of \d+ bytes; is the disk full"):
            store.append(record(calibration_seed=1))
        monkeypatch.undo()
        assert (tmp_path / "records.jsonl").read_bytes() == before
        store.append(record(calibration_seed=1))
    assert len(read_records(tmp_path)) == 2


def test_scores_lie_beside_the_records_and_are_read_back(tmp_path):
    scores = {"fc1": np.arange(4, dtype=np.float32), "fc2": np.ones(2)}
    kept = {"fc1": np.array([False, True, True, True])}
    with RecordStore(tmp_path) as store:
        store.append(record(), scores=scores, kept=kept)
    found_scores, found_kept = read_scores(tmp_path, record().key)
    assert found_scores.keys() == scores.keys()
    assert all(np.array_equal(found_scores[name], scores[name]) for name in scores)
    assert found_kept.keys() == {"fc1"}
    assert np.array_equal(found_kept["fc1"], kept["fc1"])
    assert read_scores(tmp_path, "0" * 16) is None
    assert [path.name for path in (tmp_path / "scores").iterdir()] == [f"{record().key}.safetensors"]


def test_damaged_scores_are_named(tmp_path):
    with RecordStore(tmp_path) as store:
        store.append(record(), scores={"fc1": np.ones(3)})
    path = tmp_path / "scores" / f"{record().key}.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CorruptRecordError, match=r"safetensors: not a whole safetensors file"):
        read_scores(tmp_path, record().key)


def test_the_csv_has_one_row_a_cell_and_every_field(tmp_path):
    path = to_csv(
        [record(0.8, measure_args={"p": 2}), record(None, error="boom, twice", amount=0.1)], tmp_path / "r.csv"
    )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert float(rows[0]["metrics.top1"]) == 0.8
    assert json.loads(rows[0]["parameters.measure_args"]) == {"p": 2}
    assert json.loads(rows[0]["metrics.layers"]) == [{"name": "fc1", "width": 8, "kept": 4}]
    assert rows[1]["error"] == "boom, twice"
    assert rows[1]["metrics.top1"] == ""
    assert rows[1]["versions.torch"] == "2.14.1"
