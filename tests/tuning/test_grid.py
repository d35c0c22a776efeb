"""Grid options are taken out first, converted by fit's parser, and refused by name before anything trains."""

import pytest

from mlprank.tuning.grid import expand, lookup, read_request

LR = "model.optimizer.init_args.lr"
DECAY = "model.optimizer.init_args.weight_decay"


def grid_of(config, *options):
    return expand(read_request(["--config", str(config), *options]))


def test_a_grid_is_the_product_of_its_values_in_order(config):
    grid = grid_of(config, f"--grid.{LR}", "[0.05, 1e-4]", f"--grid.{DECAY}=[1e-5, 0]", "--trainer.max_epochs=3")
    assert [dict(trial.point) for trial in grid.trials] == [
        {LR: lr, DECAY: decay} for lr in (0.05, 1e-4) for decay in (1e-5, 0.0)
    ]
    assert len({trial.key for trial in grid.trials}) == 4
    assert all(lookup(trial.config, LR) == trial.point[LR] for trial in grid.trials)
    assert all(trial.config["trainer"]["max_epochs"] == 3 for trial in grid.trials)
    assert grid.trials[1].label == "lr=0.05 weight_decay=0"


def test_text_that_yaml_takes_for_no_number_is_converted_by_the_parser(config):
    grid = grid_of(config, f"--grid.{LR}", "[1e-4]")
    assert read_request([f"--grid.{LR}=[1e-4]"]).grid[LR] == ["1e-4"]
    assert grid.identity["grid"][LR] == [1e-4]


def test_a_config_may_hold_grid_and_tune_and_the_command_line_wins(config):
    config.write_text(
        config.read_text()
        + "\ngrid:\n  model.optimizer.init_args.lr: [0.1, 1e-3]\n  model: {label_smoothing: [0.0, 0.1]}\n"
        + "tune: {out: here, engine: local}\n"
    )
    request = read_request(["--config", str(config), "--grid.model.label_smoothing=[0.2]", "--tune.engine", "batched"])
    assert request.grid == {LR: [0.1, 1e-3], "model.label_smoothing": [0.2]}
    assert request.tune == {"out": "here", "engine": "batched"}
    assert len(expand(request).trials) == 2


def test_a_key_does_not_depend_on_paths_loggers_or_what_acts_after_training(config):
    plain = grid_of(config, f"--grid.{LR}=[0.1]").trials[0]
    places = ("--trainer.default_root_dir=x", "--data.init_args.data_dir=y", "--trainer.logger=CSVLogger")
    other = grid_of(config, f"--grid.{LR}=[0.1]", *places, "--trainer.callbacks+=ModelCheckpoint").trials[0]
    assert other.key == plain.key
    assert grid_of(config, f"--grid.{LR}=[0.1]", "--seed_everything=1").trials[0].key != plain.key
    assert grid_of(config, f"--grid.{LR}=[0.1]", "--data.init_args.seed=1").trials[0].key != plain.key


def test_more_values_leave_the_identity_of_the_rest_the_same(config):
    small = grid_of(config, f"--grid.{LR}=[0.1]", f"--grid.{DECAY}=[0]")
    large = grid_of(config, f"--grid.{LR}=[0.1, 0.2]", f"--grid.{DECAY}=[0, 1]")
    other = grid_of(config, f"--grid.{LR}=[0.1]", f"--grid.{DECAY}=[0]", "--trainer.max_epochs=9")
    assert small.identity["base"] == large.identity["base"] != other.identity["base"]
    assert small.trials[0].key == large.trials[0].key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the grid is empty"),
        ([f"--grid.{LR}=[]"], rf"--grid.{LR}=\[\] must be a list of values, at least one"),
        ([f"--grid.{LR}=0.1"], "must be a list of values"),
        ([f"--grid.{LR}"], "needs a value"),
        ([f"--grid.{LR}=[0.1"], "must be a list of values"),
        (["--grid.model.optimizer.init_args.lrr=[1]"], r"Adam has no option 'lrr'; did you mean 'lr'\?"),
        (
            ["--grid.model.optimzer.init_args.lr=[1]"],
            "'model.optimzer.init_args.lr'; did you mean 'model.optimizer",
        ),
        (
            ["--grid.model.label_smothing=[1]"],
            "'model.label_smothing'; did you mean 'model.label_smoothing'",
        ),
        ([f"--grid.{LR}=[0.1, fast]"], "grid: lr=fast: model.optimizer.lr: 'fast' is not a number"),
        (
            ["--grid.data.init_args.batch_size=[3.5]"],
            "data.batch_size: '3.5' is not a whole number",
        ),
        ([f"--grid.{LR}=[1e-4, 0.0001]"], "lr=0.0001 and lr=0.0001 are the same trial"),
        (["--grid.trainer.default_root_dir=[a, b]"], "are the same trial but for paths or the logger"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused_by_name(config, options, message):
    with pytest.raises(ValueError, match=message):
        grid_of(config, *options)


def test_a_config_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match=r"config nowhere.yaml is neither a file nor a config of mlprank"):
        read_request(["--config", "nowhere.yaml"])


def test_a_config_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"broken.yaml cannot be read"):
        read_request(["--config", str(tmp_path / "broken.yaml")])
