"""Two gloo processes on the CPU: they calibrate together, decide the same, and never wait for each other in vain."""

import json
import os
import subprocess
import sys

import pytest
import torch

import mlprank
from tests.callbacks.projects import Project, blobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Fit in every way on two ranks."""
    directory = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "tests.callbacks.two_ranks", str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def seen(directory, case):
    return [json.loads((directory / case / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_calibration_is_summed_over_ranks_of_different_lengths(directory):
    first, second = seen(directory, "uneven")
    assert first["problem"] == second["problem"] == ""
    assert first["rows"] == second["rows"]
    assert sum(not kept for kept in first["rows"]["net.0.weight"]) == 8
    assert first["scores"] == second["scores"]
    dense = Project()
    dense.load_state_dict(torch.load(directory / "uneven" / "dense.ckpt", weights_only=True)["state_dict"])
    together = torch.cat([blobs().tensors[0][:60], blobs().tensors[0][120:144]])
    expected = mlprank.score(dense, together, measure="activation")
    torch.testing.assert_close(torch.tensor(first["scores"][0]["net.2"]), expected["net.2"], atol=1e-5, rtol=1e-4)


def test_only_the_first_rank_writes(directory):
    first, second = seen(directory, "scheduled")
    assert first["problem"] == second["problem"] == ""
    assert len(first["files"]) == 4
    assert second["files"] == []
    assert first["rows"] == second["rows"]
    assert first["weights"] == second["weights"]
    assert first["top1"] == second["top1"]
    assert mlprank.load_pruned(directory / "scheduled" / "pruned.ckpt", Project()).net[0].out_features == 8


def test_ranks_find_and_refine_the_same_network_within_a_budget(directory):
    first, second = seen(directory, "budget")
    assert first["problem"] == second["problem"] == ""
    assert first["rows"] == second["rows"]
    assert not all(kept for rows in first["rows"].values() for kept in rows)
    assert first["weights"] == second["weights"]
    assert first["top1"] == second["top1"]
    assert len(first["files"]) == 4
    assert second["files"] == []


def test_a_rank_without_calibration_data_is_named_on_every_rank(directory):
    for rank in seen(directory, "empty"):
        assert rank["problem"].startswith(
            "ValueError: calibration: Data.calibration_dataloader is empty on rank 1 of 2"
        )


def test_ranks_that_would_prune_differently_stop_everywhere(directory):
    for rank in seen(directory, "different"):
        assert rank["problem"].startswith("RuntimeError: the ranks [1] chose other neurons to prune than rank 0")
        assert rank["rows"] == {}
