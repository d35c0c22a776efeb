"""Options of the search are checked before anything is parsed or trained."""

import importlib.util

import pytest
import torch

from mlprank.tuning.grid import TuneOptions, option_parser, parse_options


def test_options_are_converted():
    options = parse_options({"out": "x", "engine": "ray", "cpus_per_trial": "0.5", "keep_checkpoints": 2})
    assert options == TuneOptions("x", engine="ray", cpus_per_trial=0.5, keep_checkpoints=2)
    assert "trials_per_stack" in option_parser().format_help()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give the directory of the results with --out"),
        ({"out": "x", "engin": "ray"}, r"no option 'tune.engin'; did you mean 'tune.engine'\?"),
        ({"out": "x", "engine": "fast"}, "engine"),
        ({"out": "x", "top": "many"}, "top"),
        ({"out": "x", "top": 0}, "--tune.top=0 must be a whole number of at least 1"),
        ({"out": "x", "trials_per_stack": 0}, "--tune.trials_per_stack=0 must be a whole number of at least 1"),
        ({"out": "x", "cpus_per_trial": 1.5}, "--tune.cpus_per_trial=1.5 must be a fraction in"),
        ({"out": "x", "cpus_per_trial": -1}, "--tune.cpus_per_trial=-1.0 must be a fraction"),
        ({"out": "x", "amount": 0.5}, "--tune.amount says how much is pruned; add --tune.metric=pruned_top1"),
        ({"out": "x", "metric": "pruned_top1", "amount": 1.0}, r"--tune.amount=1.0 is not in \[0, 1\)"),
        ({"out": "x", "metric": "pruned_top1", "amount": 0.5, "max_params": 0.3}, "give one of them"),
        ({"out": "x", "metric": "pruned_top1", "max_bytes": "1 parsec"}, "max_bytes"),
        ({"out": "x", "metric": "pruned_top1", "max_drop": "nan"}, "max_drop"),
        ({"out": "x", "max_drop": 0.5}, "--tune.max_drop says how much is pruned; add --tune.metric=pruned_top1"),
        ({"out": "x", "checkpoint_minutes": -1}, "--tune.checkpoint_minutes=-1.0 must be"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(given, message):
    with pytest.raises(ValueError, match=message):
        parse_options(given)


def test_ray_without_ray_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ray is not installed; install with: .*mlprank\[tune\]"):
        parse_options({"out": "x", "engine": "ray"})


def test_a_fraction_of_a_gpu_where_there_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--tune.gpus_per_trial=0.5: there is no GPU here"):
        parse_options({"out": "x", "gpus_per_trial": 0.5})
    assert parse_options({"out": "x", "gpus_per_trial": 0.5, "address": "auto"}).gpus_per_trial == 0.5


def test_the_pruned_network_is_that_at_a_half_unless_an_amount_or_a_budget_is_given():
    assert parse_options({"out": "x"}).cut == {}
    assert parse_options({"out": "x", "metric": "pruned_top1"}).cut == {"amount": 0.5}
    assert parse_options({"out": "x", "metric": "pruned_top1", "amount": "0.8"}).cut == {"amount": 0.8}
    assert parse_options({"out": "x", "metric": "pruned_top1", "max_params": "0.3"}).cut == {"max_params": 0.3}
    assert parse_options({"out": "x", "metric": "pruned_top1", "max_drop": "0.5"}).cut == {"max_drop": 0.5}
