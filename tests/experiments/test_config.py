"""The configuration of an experiment: what is wrong is said before anything runs."""

import importlib.util
import math
from pathlib import Path

import pytest
import yaml

from mlprank.experiments.config import ExperimentConfig, read_config, write_config
from mlprank.experiments.runner import Trained, cells_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("amount", [1.0, -0.1, float("nan"), True, "0.5"])
def test_an_amount_outside_its_range_is_named(amount: object) -> None:
    with pytest.raises(ValueError, match=r"amounts=.* is not in \[0, 1\); give the share of neurons"):
        ExperimentConfig(amounts=[0.5, amount])


@pytest.mark.parametrize("axis", ["networks", "measures", "methods", "amounts", "compensations", "graphs"])
def test_an_empty_axis_is_an_empty_grid(axis: str) -> None:
    with pytest.raises(ValueError, match=rf"the grid is empty: {axis} holds nothing"):
        ExperimentConfig(**{axis: []})


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("measure: [norm]\n")
    with pytest.raises(ValueError, match=r"wrong\.yaml: there is no key 'measure'; did you mean .measures.\?"):
        read_config(path)


def test_a_missing_file_a_broken_one_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config .*absent\.yaml is neither a file nor a config of mlprank"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"broken\.yaml cannot be read"):
        read_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match=r"list\.yaml holds a list, not the keys of an experiment"):
        read_config(tmp_path / "list.yaml")


def test_a_network_takes_the_data_set_of_the_thesis() -> None:
    assert ExperimentConfig(networks=["ThreeLayerMLP", "MLP@Digits"]).networks == (
        "ThreeLayerMLP@FashionMNIST",
        "MLP@Digits",
    )
    with pytest.raises(ValueError, match=r"'ThreLayerMLP' names no data set; did you mean .ThreeLayerMLP.\?"):
        ExperimentConfig(networks=["ThreLayerMLP"])
    with pytest.raises(ValueError, match=r"'A@B@C' is not MODEL@DATASET"):
        ExperimentConfig(networks=["A@B@C"])


def test_checkpoints_of_a_network_outside_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoints: 'ThreeLayerMLP@MNIST' is not in the grid; did you mean"):
        ExperimentConfig(networks=["ThreeLayerMLP"], checkpoints={"ThreeLayerMLP@MNIST": ["a.ckpt"]})
    with pytest.raises(TypeError, match=r"model_args of MLP@Digits: 3 must be a mapping"):
        ExperimentConfig(networks=["MLP@Digits"], model_args={"MLP@Digits": 3})


def test_other_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"graphs='dagg' is unknown; did you mean .dag.\?"):
        ExperimentConfig(graphs=["dagg"])
    with pytest.raises(ValueError, match=r"calibration_samples=1\.5 must be a whole number"):
        ExperimentConfig(calibration_samples=1.5)
    with pytest.raises(ValueError, match=r"calibration_samples=0 must be a whole number of at least 1"):
        ExperimentConfig(calibration_samples=0)
    with pytest.raises(ValueError, match=r"calibration_seeds=-1 must be a whole number of at least 0"):
        ExperimentConfig(calibration_seeds=[-1])
    with pytest.raises(TypeError, match=r"protect_output: 'yes' is neither true nor false"):
        ExperimentConfig(protect_output=["yes"])
    with pytest.raises(ValueError, match=r"device='gpu' is unknown.*; choose one of cpu, cuda, mps"):
        ExperimentConfig(device="gpu")
    with pytest.raises(TypeError, match=r"measure_args=.* must hold arguments by measure"):
        ExperimentConfig(measure_args={"norm": 2})


def test_what_is_written_reads_back_as_the_same_experiment(tmp_path: Path) -> None:
    config = ExperimentConfig(
        name="again",
        networks=["MLP@Digits"],
        checkpoints={"MLP@Digits": "a.ckpt"},
        model_args={"MLP@Digits": {"widths": [8]}},
        amounts=[0.1, 0.1, 0.2],
        measure_args={"ChannelNorm": {"p": 2}},
    )
    path = tmp_path / "config.yaml"
    path.write_text(write_config(config))
    assert ExperimentConfig(**read_config(path)) == config
    assert config.amounts == (0.1, 0.2)
    assert config.directory == Path("runs/experiments/again")


def test_numbers_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("amounts: [1e-1, 0.5]\n")
    assert read_config(path) == {"name": "e", "amounts": [0.1, 0.5]}
    assert yaml.safe_load("1e-1") == "1e-1"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_in_the_repository_makes_its_grid(path: Path) -> None:
    config = ExperimentConfig(**read_config(path))
    networks = [
        Trained(*network.split("@"), None, f"{network}.ckpt", f"{index:064d}")
        for index, network in enumerate(config.networks)
    ]
    axes = (config.measures, config.methods, config.amounts, config.protect_output, config.calibration_seeds)
    axes += (config.compensations, config.graphs)
    assert len(cells_of(config, networks)) == len(networks) * (1 + math.prod(map(len, axes)))


def test_ray_without_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"ray is not installed; install with: .*mlprank\[tune\]"):
        ExperimentConfig(networks=["TwoLayerMLP"], engine="ray")
