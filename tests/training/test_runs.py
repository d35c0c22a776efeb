import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlprank.training.runs import (
    claim_run,
    claimed,
    find_checkpoint,
    held,
    kept,
    numbered_runs,
)
from mlprank.utils.files import BusyError


def _checkpoint(run: Path, name: str, age_s: int = 0) -> Path:
    path = run / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_000_000 - age_s,) * 2)
    return path


def test_runs_that_start_at_the_same_time_claim_different_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_run(tmp_path / "a" / "b"), range(40)))
    assert len(set(claimed)) == 40
    assert [run.name for run in numbered_runs(tmp_path / "a" / "b")] == [f"{n:03d}" for n in range(1, 41)]


def test_numbers_go_on_after_the_largest_and_other_directories_do_not_count(tmp_path: Path) -> None:
    for name in ("002", "1000", "test", "notes.txt"):
        (tmp_path / name).mkdir()
    assert claim_run(tmp_path).name == "1001"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"no run directory can be made under .*file.*; give another with --trainer"):
        claim_run(tmp_path / "file" / "runs")


def test_the_newest_run_with_a_checkpoint_is_found_or_that_of_a_saved_config(tmp_path: Path) -> None:
    first, second = _checkpoint(tmp_path / "001", "last.ckpt"), _checkpoint(tmp_path / "002", "last.ckpt", age_s=50)
    (tmp_path / "003").mkdir()
    assert find_checkpoint(tmp_path, "last") == second
    assert find_checkpoint(tmp_path, "last", config=tmp_path / "001" / "config.yaml") == first
    for other in (tmp_path / "001" / "other.yaml", tmp_path / "configs" / "config.yaml"):
        assert find_checkpoint(tmp_path, "last", config=other) == second
    older, newer = _checkpoint(tmp_path / "002", "best.ckpt", 9), _checkpoint(tmp_path / "002", "best-v1.ckpt", 3)
    assert find_checkpoint(tmp_path, "best") == newer != older


def test_no_checkpoint_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"--ckpt_path last: there is no last.ckpt in .*runs \(no run is there\)"
    ):
        find_checkpoint(tmp_path / "runs", "last")
    (tmp_path / "004").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"there is no best.ckpt in .*004/checkpoints; train with `mlprank fit`"
    ):
        find_checkpoint(tmp_path, "best")


def test_what_an_interrupted_run_kept_is_said(tmp_path: Path) -> None:
    assert kept(None) == "nothing was written"
    assert "holds no checkpoint yet" in kept(tmp_path)
    newest = _checkpoint(tmp_path, "last.ckpt")
    _checkpoint(tmp_path, "best.ckpt", age_s=10)
    part = _checkpoint(tmp_path, ".123-last.ckpt", age_s=-10)
    assert kept(tmp_path).startswith(f"{newest} is kept; go on with")

    with held(tmp_path):
        assert newest.exists()
        assert not part.exists()


def test_only_an_empty_directory_is_discarded(tmp_path: Path) -> None:
    with held(claim_run(tmp_path)) as run:
        (run / "metrics.csv").touch()
    assert (run / "metrics.csv").is_file()
    (run / "metrics.csv").unlink()
    with held(run):
        pass
    assert not run.exists()


def test_a_run_that_has_written_nothing_yet_is_not_taken_from_its_process(tmp_path: Path) -> None:
    holds = (
        "import sys; from pathlib import Path; from mlprank.training.runs import claimed\n"
        "with claimed(Path(sys.argv[1])) as run: print(run.name, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holds, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "001\n"
        with pytest.raises(BusyError, match=f"001 is in use by process {process.pid}"), held(tmp_path / "001"):
            pass
        assert (tmp_path / "001").is_dir()
        with claimed(tmp_path) as run:
            assert run.name == "002"
            assert (tmp_path / "001").is_dir()
        process.communicate("")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_claimed_is_taken_away_by_the_next(tmp_path: Path) -> None:
    for name in ("001", "002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    (tmp_path / "002" / "config.yaml").touch()
    with claimed(tmp_path) as run:
        assert run.name == "003"
        assert not (tmp_path / "001").exists()
        assert (tmp_path / "002" / "config.yaml").is_file()
