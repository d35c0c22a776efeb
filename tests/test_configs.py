import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger
from torch.optim import Adam
from torch.optim.lr_scheduler import StepLR

from mlprank.callbacks import PruningCallback
from mlprank.models import MODELS
from mlprank.training.parser import parse
from mlprank.training.run import build

ROOT = Path(__file__).parent.parent / "configs"
ALL = sorted(ROOT.rglob("*.yaml"))
TRAINING = [ROOT / "quickstart.yaml", *sorted((ROOT / "thesis").glob("*.yaml")), *sorted((ROOT / "cnn").glob("*.yaml"))]

# The thesis's recipes: network, data, epochs, learning rate, weight decay, augmentation.
THESIS: dict[str, tuple[str, str, int, float, float, str | None]] = {
    "two_layer_mnist": ("TwoLayerMLP", "MNIST", 20, 0.005, 1e-8, None),
    "three_layer_fashion_mnist": ("ThreeLayerMLP", "FashionMNIST", 100, 0.005, 1e-10, None),
    "six_layer_cifar10": ("SixLayerMLP", "CIFAR10", 200, 0.0001, 1e-9, "cifar10"),
    "twelve_layer_cifar100": ("TwelveLayerMLP", "CIFAR100", 200, 0.0001, 1e-9, "cifar10"),
}


def _build(*configs: Path, directory: Path | None = None) -> Any:
    return build(parse("fit", [f"--config={config}" for config in configs]), directory)


@pytest.mark.parametrize("config", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_header_says_what_it_is_and_the_command_that_runs_it(config: Path) -> None:
    header = [line for line in config.read_text().splitlines() if line.startswith("#")]
    assert len(header) >= 2, header
    commands = [line for line in header if line.startswith("# Run:")]
    assert commands, "the header's `# Run:` line is the command"
    assert re.search(rf"\bconfigs/{config.relative_to(ROOT)}\b", commands[0])
    assert isinstance(yaml.safe_load(config.read_text()), dict)


@pytest.mark.parametrize("config", TRAINING, ids=lambda path: path.stem)
def test_every_training_config_builds_network_data_and_trainer(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = _build(config)
    assert type(built.model.model) in MODELS.values()
    assert any(isinstance(callback, PruningCallback) for callback in built.trainer.callbacks)
    [written] = parse("fit", [f"--config={config}"]).values["trainer"]["callbacks"]
    assert written["init_args"]["amount"] == 0.5
    assert not list(tmp_path.glob("runs/*/*")), "what did not run leaves nothing"


def test_the_thesis_has_its_four_recipes_and_no_other() -> None:
    assert sorted(path.stem for path in (ROOT / "thesis").glob("*.yaml")) == sorted(THESIS)


@pytest.mark.parametrize("name", THESIS)
def test_a_thesis_config_is_the_published_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network, data, epochs, rate, decay, augment = THESIS[name]
    built = _build(ROOT / "thesis" / f"{name}.yaml")
    assert type(built.model.model).__name__ == network
    assert type(built.datamodule).__name__ == f"{data}DataModule"
    assert (built.trainer.max_epochs, built.datamodule.batch_size) == (epochs, 512)
    assert built.datamodule.hparams.auto_augment == augment
    assert built.datamodule.validation_fraction == 0.2
    optimizer, schedule = built.model._build_optimizer()
    assert type(optimizer) is Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (rate, decay)
    assert optimizer.defaults["decoupled_weight_decay"] is False
    assert type(schedule) is StepLR
    assert (schedule.step_size, schedule.gamma) == (30, 0.1)


def test_the_logging_config_composes_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/quickstart/001")
    built = _build(ROOT / "quickstart.yaml", ROOT / "logging" / "wandb.yaml", directory=run)
    [logger] = built.trainer.loggers
    assert isinstance(logger, WandbLogger)
    assert logger.save_dir == str(tmp_path / "runs/quickstart/001")
