import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlprank.experiments.records import to_line
from mlprank.experiments.store import RecordStore, ResultsLockedError, read_records, read_scores, to_csv
from mlprank.grids.store import CorruptRecordError, SchemaVersionError
from tests.experiments.synthetic import record

REPOSITORY = Path(__file__).parents[2]
WRITER = """
import sys
from mlprank.experiments.store import RecordStore
from tests.experiments.synthetic import record
with RecordStore(sys.argv[1]) as store:
    print("open", flush=True)
    for seed in range(100000):
        new = record(calibration_seed=seed)
        if new.key not in store.finished:
            store.append(new)
            print(seed, flush=True)
"""


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
        assert store.failed == {failed.key}
        store.append(good)
        assert store.failed == frozenset()
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
    with pytest.raises(CorruptRecordError, match=r"line 2: not UTF-8"):
        read_records(tmp_path)


def test_another_schema_version_is_refused_and_gives_the_lock_back(tmp_path):
    write(tmp_path, record())
    path = tmp_path / "records.jsonl"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"schema_version": 3}) + "\n")
    for _ in range(2):
        with pytest.raises(SchemaVersionError, match=r"line 1: schema version 3, but this mlprank reads version 2"):
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
        with pytest.raises(ResultsLockedError, match=rf"in use by process {writer.pid}; wait until it ends"):
            RecordStore(tmp_path)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    RecordStore(tmp_path).close()


def test_a_store_that_is_open_here_is_refused_too(tmp_path):
    with RecordStore(tmp_path) as store, pytest.raises(ResultsLockedError, match=f"process {os.getpid()}"):
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
