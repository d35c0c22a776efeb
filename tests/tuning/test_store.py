"""A result is whole or absent, recorded once, and stays with its grid."""

import errno
import json
import math
import os
import subprocess
import sys

import pytest

from mlprank.grids.store import write_record
from mlprank.tuning.store import Outcome, Store, Trial, format_value, label, trial_config, trial_key
from mlprank.utils.charts import short_names
from mlprank.utils.files import BusyError, write_whole

TRIAL = Trial(key="k1", point={"model.lr": 0.1}, config={"trainer": {}})
DONE = Outcome("done", ({"epoch": 0, "val_top1": 0.5}, {"epoch": 1, "val_top1": 0.9}), 1, 1.5, "local", "cpu")
DIVERGED = Outcome("diverged", ({"epoch": 0, "val_top1": math.nan},), -1, 1.0, "batched", "cpu")
IDENTITY = {"base": "b", "grid": {"lr": [0.1, 0.2]}}


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    assert store.outcome("k1") is None
    assert store.finish(TRIAL, DONE)
    assert store.outcome("k1") == DONE
    assert store.outcome("k1").score == 0.9


def test_a_diverged_trial_has_no_score_and_its_file_is_plain_json(tmp_path):
    store = Store(tmp_path)
    store.finish(TRIAL, DIVERGED)
    assert math.isnan(store.outcome("k1").score)
    assert math.isnan(store.outcome("k1").history[0]["val_top1"])
    assert json.loads((store.directory("k1") / "result.json").read_text())["val_top1"] is None


def test_a_trial_is_recorded_once(tmp_path):
    store = Store(tmp_path)
    store.finish(TRIAL, DONE)
    assert not store.finish(TRIAL, DIVERGED)
    assert store.outcome("k1") == DONE


def test_a_failure_is_kept_until_it_is_forgotten_or_the_trial_ends_well(tmp_path):
    store = Store(tmp_path)
    store.fail(TRIAL, ValueError("first line\nmore"))
    assert store.failure("k1") == "ValueError: first line"
    store.finish(TRIAL, DONE)
    assert store.failure("k1") is None
    store.fail(TRIAL, RuntimeError())
    assert store.failure("k1") == "RuntimeError: no message"
    store.forget_failure("k1")
    assert store.failure("k1") is None


def test_a_damaged_result_is_named(tmp_path):
    store = Store(tmp_path)
    store.finish(TRIAL, DONE)
    path = store.directory("k1") / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(
        ValueError,
        match=r"k1/result.json: not a whole record .*; restore it, or delete it, and what it records runs again",
    ):
        store.outcome("k1")
    write_record(path, {"schema": 99})
    with pytest.raises(ValueError, match="schema version 99"):
        store.outcome("k1")
    path.write_text('{"status": "done", "history": [1]}')  # without a digest, as version 0.1.0 wrote its records
    with pytest.raises(ValueError, match=r"k1/result.json is damaged .*; delete it, and its trial runs again"):
        store.outcome("k1")


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_no_half_result(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.prepare(TRIAL)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"k1/result.json cannot be written: No space left on device"):
        store.finish(TRIAL, DONE)
    assert sorted(path.name for path in store.directory("k1").iterdir()) == ["config.yaml"]


def test_a_grid_may_be_extended_but_not_changed(tmp_path):
    store = Store(tmp_path)
    store.claim_grid(IDENTITY)
    store.claim_grid({"base": "b", "grid": {"lr": [0.2, 0.1, 0.3]}})
    with pytest.raises(ValueError, match=r"holds trials with lr = 0.3, which this grid leaves out"):
        store.claim_grid(IDENTITY)
    with pytest.raises(ValueError, match=r"holds another grid, over lr, not over wd; give another --tune.out"):
        store.claim_grid({"base": "b", "grid": {"wd": [1]}})
    with pytest.raises(ValueError, match="the same grid of another config"):
        store.claim_grid({"base": "c", "grid": {"lr": [0.1, 0.2, 0.3]}})


def test_a_record_that_was_changed_is_named(tmp_path):
    store = Store(tmp_path)
    store.finish(TRIAL, DONE)
    path = store.directory("k1") / "result.json"
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(ValueError, match=r"k1/result.json: its digest is not that of its content; .*runs again"):
        store.outcome("k1")


def test_a_grid_of_a_later_version_is_refused_and_one_of_version_0_1_0_goes_on(tmp_path):
    path = tmp_path / "grid.json"
    write_record(path, {"schema": 3, "mlprank": "9.0", **IDENTITY})
    with pytest.raises(ValueError, match=r"grid.json: schema version 3, but this mlprank reads version 2"):
        Store(tmp_path).check_grid(IDENTITY)
    path.write_text(json.dumps({"schema": 1, "mlprank": "0.1.0", **IDENTITY}))
    Store(tmp_path).claim_grid({"base": "b", "grid": {"lr": [0.1, 0.2, 0.3]}})
    with pytest.raises(ValueError, match=r"holds trials with lr = 0\.3"):
        Store(tmp_path).check_grid(IDENTITY)


def test_what_a_killed_process_leaves_is_taken_away(tmp_path):
    store = Store(tmp_path)
    for keys, finished in ((["k1"], True), (["k2"], False)):
        directory = store.stack_directory(keys)
        write_whole(directory / "stack.json", json.dumps({"keys": keys}))
        (directory / "last.ckpt").touch()
        if finished:
            store.finish(TRIAL, DONE)
    drafts = [tmp_path / ".123-best.ckpt", tmp_path / ".grid.json.123.tmp", store.directory("k1") / ".9-best.ckpt"]
    for draft in drafts:
        draft.touch()
    with store.driving(), store.training("k1"):
        assert not any(draft.exists() for draft in drafts)
    assert list(store.stacks().values()) == [["k2"]]


def test_what_the_pruned_network_reaches_is_kept_by_what_was_asked_for(tmp_path):
    store = Store(tmp_path)
    assert store.pruned("k1", {"amount": 0.5}) is None
    store.record_pruned("k1", {"amount": 0.5}, {"pruned_top1": 0.75})
    assert store.pruned("k1", {"amount": 0.5}) == {"pruned_top1": 0.75}
    assert store.pruned("k1", {"amount": 0.7}) is None


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other files and no grid.json"):
        Store(tmp_path).claim_grid(IDENTITY)


def test_a_second_driver_is_refused_and_names_the_first(tmp_path):
    code = f"""
from mlprank.tuning.store import Store
with Store({str(tmp_path)!r}).driving():
    print("holding", flush=True)
    input()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert first.stdout.readline() == "holding\n"
    with pytest.raises(BusyError, match=rf"in use by process {first.pid}; wait"), Store(tmp_path).driving():
        raise AssertionError
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with Store(tmp_path).driving():
        assert (tmp_path / "lock.holder").read_text().strip() == str(os.getpid())


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"--tune.out .*file/out cannot be written"),
        Store(tmp_path / "file" / "out").driving(),
    ):
        raise AssertionError


def test_stacks_are_found_by_their_trials_and_damaged_ones_passed_over(tmp_path):
    store = Store(tmp_path)
    for keys, text in ((["a", "b"], '{"keys": ["a", "b"]}'), (["c"], '{"keys"')):
        write_whole(store.stack_directory(keys) / "stack.json", text)
    assert store.stacks() == {store.stack_directory(["a", "b"]): ["a", "b"]}


def test_labels_use_the_shortest_endings_that_differ():
    keys = ["model.optimizer.init_args.lr", "model.lr_scheduler.init_args.lr", "seed_everything"]
    assert dict(zip(keys, short_names(keys), strict=True)) == {
        keys[0]: "optimizer.init_args.lr",
        keys[1]: "lr_scheduler.init_args.lr",
        keys[2]: "seed_everything",
    }
    assert label({"a.lr": 1e-5, "a.betas": [0.9, 0.99], "b": None}) == "lr=1e-05 betas=[0.9, 0.99] b=None"
    assert format_value(0.25) == "0.25"


def test_a_trials_config_has_no_callback_that_acts_after_training():
    callbacks = [
        {"class_path": "mlprank.callbacks.PruningCallback", "init_args": {"amount": 0.5}},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping"},
    ]
    config = {"trainer": {"callbacks": callbacks, "max_epochs": 1}, "ckpt_path": "x.ckpt"}
    plain = trial_config(config)
    assert plain == {"trainer": {"callbacks": callbacks[1:], "max_epochs": 1}, "ckpt_path": None}
    assert len(config["trainer"]["callbacks"]) == 2
    assert trial_key(plain) != trial_key({**plain, "trainer": {"max_epochs": 1}})


def test_what_a_killed_worker_left_beside_a_result_is_taken_away(tmp_path):
    store = Store(tmp_path)
    store.finish(TRIAL, DONE)
    part = store.directory("k1") / ".123-progress.json"
    with store.driving():
        part.write_text("{")
    assert not part.exists()
    assert store.outcome("k1") == DONE
