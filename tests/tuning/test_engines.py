"""`auto` weighs GPUs, an address and what can be stacked; work for Ray is split evenly."""

import pytest
import torch

from mlprank.grids.ray import prepare_environment
from mlprank.models import TwoLayerMLP
from mlprank.tuning import engines
from mlprank.tuning.engines import (
    Engine,
    available_bytes,
    choose_engine,
    group_trials,
    obstacle,
    takes_several_devices,
    trial_bytes,
)
from mlprank.tuning.grid import TuneOptions, expand, read_request
from mlprank.tuning.store import Store

LR = "--grid.model.optimizer.init_args.lr=[0.1, 0.2, 0.3]"


class Notes:
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def trials_of(config, *options):
    return expand(read_request([f"--config={config}", *options])).trials


@pytest.mark.parametrize(
    ("gpus", "address", "several", "expected", "why"),
    [
        (1, None, True, "batched", "the trials can be stacked"),
        (2, None, False, "ray", "2 GPUs"),
        (0, "10.0.0.1:6379", True, "ray", "the cluster at 10.0.0.1:6379"),
        (0, None, True, "batched", "the trials can be stacked"),
        (0, None, False, "local", "no two trials can be stacked"),
        (1, None, False, "local", "no two trials can be stacked"),
    ],
)
def test_auto_chooses_by_devices_and_by_what_can_be_stacked(config, monkeypatch, gpus, address, several, expected, why):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    grid = LR if several else "--grid.data.init_args.batch_size=[16, 32]"
    name, reason = choose_engine(trials_of(config, grid), address)
    assert name == expected
    assert reason.startswith(why)


def test_trials_are_grouped_by_all_that_a_stack_shares(config):
    options = ("--grid.data.init_args.seed=[0, 1]", "--grid.model.model.init_args.dropout=[0.0, 0.5]")
    trials = trials_of(config, *options, "--grid.model.label_smoothing=[0.0, 0.1]")
    groups = group_trials(trials)
    assert [len(group) for group in groups] == [4, 4]
    assert {trial.config["model"]["model"]["init_args"]["dropout"] for trial in groups[0]} == {0.0}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.precision=16-mixed", "trainer.precision=16-mixed: with one loss scale for all"),
        ("--trainer.devices=2", "trainer.devices=2: a stack trains on one device"),
        ("--trainer.strategy=ddp", "trainer.strategy=ddp: a stack takes auto only"),
        ("--trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch=2: a stack takes 1 only"),
        ("--trainer.limit_val_batches=0", "trainer.limit_val_batches=0: a stack keeps every trial's best epoch"),
        ("--trainer.detect_anomaly=true", "trainer.detect_anomaly=True: a stack takes False only"),
        ("--trainer.val_check_interval=1", "trainer.val_check_interval=1: a stack takes 1.0 only"),
        ("--trainer.callbacks+=EarlyStopping", "trainer.callbacks: EarlyStopping may act on one trial"),
    ],
)
def test_what_a_stack_cannot_do_is_refused_by_name(config, option, message):
    extra = ["--trainer.callbacks.monitor=val_loss"] if "EarlyStopping" in option else []
    trial = trials_of(config, LR, option, *extra)[0]
    assert obstacle(trial.config).startswith(message)
    assert takes_several_devices(trial.config) == ("devices" in option)


def units_for_ray(trials, slots, notes, monkeypatch, out):
    """How many trials each process of Ray's gets, where so many run at once."""
    units = []
    monkeypatch.setattr(engines, "run_units", lambda make, *others, **options: units.extend(make(slots, False)))
    Engine(TuneOptions("out", engine="ray"), Store(out), notes).run(trials)
    return [len(part) for part, _ in units]


def test_work_for_ray_is_split_evenly_over_the_places(config, monkeypatch, tmp_path):
    pytest.importorskip("ray")
    trials = trials_of(config, LR, "--grid.model.label_smoothing=[0.0, 0.1, 0.2]")
    notes = Notes()
    assert units_for_ray(trials, 4, notes, monkeypatch, tmp_path) == [3, 3, 3]
    assert units_for_ray(trials, 2, notes, monkeypatch, tmp_path) == [5, 4]
    assert notes.texts == []
    alone = trials_of(config, LR, "--trainer.precision=16-mixed")
    assert units_for_ray(alone, 2, notes, monkeypatch, tmp_path) == [1, 1, 1]
    assert "3 trials are trained one by one: trainer.precision=16-mixed" in notes.texts[0]


def test_a_ray_of_our_own_asks_for_a_token_and_sends_no_statistics(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    import os

    prepare_environment("cluster:1")
    assert "RAY_AUTH_MODE" not in os.environ
    prepare_environment(None)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"


def test_a_trial_takes_its_weights_six_times_and_its_activations():
    model = TwoLayerMLP()
    weights = 4 * sum(p.numel() for p in model.parameters())
    small, large = (trial_bytes(model, (1, 28, 28), batch_size) for batch_size in (1, 65))
    assert 6 * weights < small < 6 * weights + 30_000
    # the images, and the two hidden layers that the gradient needs after their activations
    assert 2 * 4 * (784 + 256 + 256) <= (large - small) / 64 <= 2 * 4 * 2 * (784 + 256 + 256 + 10)


def test_four_fifths_of_the_free_memory_are_used_and_one_trial_always_fits(config, monkeypatch, tmp_path):
    trials = trials_of(config, f"--grid.model.optimizer.init_args.lr={[0.1 + n / 100 for n in range(16)]}")
    monkeypatch.setattr(engines, "trial_bytes", lambda *_: 100)
    for free, expected in ((1000, 8), (10, 1), (10**6, 16)):
        monkeypatch.setattr(engines, "available_bytes", lambda device, free=free: free)
        notes = Notes()
        assert Engine(TuneOptions("out"), Store(tmp_path / "out"), notes)._size(trials) == expected
        assert notes.texts == [] if expected == 16 else f"16 trials in {16 // expected} batches" in notes.texts[0]


def test_there_is_some_memory_here():
    assert 10**7 < available_bytes(torch.device("cpu")) < 10**14
