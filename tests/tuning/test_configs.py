"""The grids and sweeps of the thesis run as they stand."""

import itertools
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from mlprank.training.parser import parse_fit
from mlprank.tuning.grid import expand, lookup, parse_options, read_request

CONFIGS = Path(__file__).parents[2] / "configs"
EPOCHS = {
    "two_layer_mnist": 20,
    "three_layer_fashion_mnist": 50,
    "six_layer_cifar10": 100,
    "twelve_layer_cifar100": 200,
}
LR, DECAY = (f"model.optimizer.init_args.{name}" for name in ("lr", "weight_decay"))
RATES = [0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001]
DECAYS = [1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10]


@pytest.mark.parametrize("name", EPOCHS)
def test_the_grid_of_a_network_has_the_36_trials_of_the_thesis(name):
    request = read_request([f"--config={CONFIGS}/thesis/{name}.yaml", f"--config={CONFIGS}/tune/{name}.yaml"])
    assert parse_options(request.tune).out == f"runs/tune/{name}"
    assert request.grid == {LR: RATES, DECAY: DECAYS}
    few = {LR: RATES[:1], DECAY: DECAYS[:2]}
    grid = expand(type(request)(request.arguments, few, request.tune))
    assert [trial.config["trainer"]["max_epochs"] for trial in grid.trials] == [EPOCHS[name]] * 2
    assert all(trial.config["trainer"]["callbacks"] is None for trial in grid.trials)


def command_of(sweep, args):
    """Fill in the macros of a sweep's command as wandb's agent does."""
    values = create_sweep_command_args({"args": {key: {"value": value} for key, value in args.items()}})
    values |= {"interpreter": ["python"], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command(list(sweep["command"])):
        words += values[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.parametrize(("name", "method"), itertools.product(EPOCHS, ("grid", "bayes")))
def test_the_command_of_a_sweep_parses_as_it_stands(monkeypatch, name, method):
    monkeypatch.chdir(CONFIGS.parent)
    sweep = yaml.safe_load((CONFIGS / "sweeps" / f"{name}_{method}.yaml").read_text())
    assert sweep["method"] == method
    assert sweep["metric"] == {"name": "val_top1", "goal": "maximize"}
    assert all("values" in p or p["distribution"] == "log_uniform_values" for p in sweep["parameters"].values())
    assert set(sweep["parameters"]) == {LR, DECAY}
    words = command_of(sweep, {LR: 0.0005, DECAY: 1e-09})
    assert words[:3] == ["/usr/bin/env", "mlprank", "fit"]
    config = parse_fit(words[3:])
    assert (lookup(config, LR), lookup(config, DECAY)) == (0.0005, 1e-9)
    assert config["trainer"]["max_epochs"] == EPOCHS[name]
    assert config["trainer"]["logger"][0]["class_path"].endswith("WandbLogger")
