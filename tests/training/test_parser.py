from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlprank.training.parser import config_of, prepare_arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epoch=3"], "there is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["--optimizer=SGD"], "there is no option 'optimizer'; did you mean 'model.optimizer'?"),
        (["--data.batchsize=3"], "DigitsDataModule has no option 'batchsize'; did you mean 'batch_size'?"),
        (["--model.optimizer.lrr=3"], "Adam has no option 'lrr'; did you mean 'lr'?"),
        (["--model.optimizer.lr=fast"], "model.optimizer.lr: 'fast' is no float"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs: 'many' is no int"),
        (["--model.optimizer=Adamm"], "model.optimizer: 'Adamm' is no class that is known here; did you mean 'Adam'?"),
        (["--trainer.callbacks=PruningCallbak"], "did you mean 'PruningCallback'?"),
        (["--model.optimizer.lr=-0.5"], "optimizer Adam: lr=-0.5 must be a finite number of at least 0, such as 0.001"),
        (["--model.optimizer=SGD", "--model.optimizer.lr=.nan"], "optimizer SGD: lr=nan must be a finite number"),
        (["--model.model=TwoLayersMLP"], "'TwoLayersMLP' is no class that is known here; did you mean 'TwoLayerMLP'?"),
        (["--model.label_smoothing=2"], "label_smoothing=2.0 must lie in [0, 1)"),
        (["--model.lr_scheduler=CyclicLR", "--model.lr_scheduler.base_lr=0.1", "--model.lr_scheduler.max_lr=1",
          "--model.optimizer=Adagrad"], "CyclicLR does not fit optimizer Adagrad"),
        (["--model.model=TwoLayerMLP", "--model.model.in_features=784"],
         "TwoLayerMLP takes in_features=784, but DigitsDataModule gives images of 1×8×8 = 64"),
        (["--model.model.num_classes=7"], "MLP has num_classes=7, but DigitsDataModule has 10 classes"),
        (["--model.model.widths=[0]"], "widths[0]=0 must be at least 1"),
        (["--data.batch_size=0"], "fit: error: batch_size=0: must be at least 1, such as 64\n"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=2"], "fit: error: amount=2.0 is not in [0, 1)"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.graph=dig"],
         "trainer.callbacks.graph: 'dig' is none of dag, chain; did you mean 'dag'?"),
        (["--data.auto_augment=cifar"],
         "data.auto_augment: 'cifar' is none of cifar10, randaugment, augmix; did you mean 'cifar10'?"),
        (["--trainer.precision=bf16-mix"], "did you mean 'bf16-mixed'?"),
        (["--trainer.deterministic=yess"], "trainer.deterministic: 'yess' is none of warn and no bool"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amont=0.5"],
         "PruningCallback has no option 'amont'; did you mean 'amount'?"),
        (["--trainer.logger=CSVLoger"], "trainer.logger: 'CSVLoger' is no class that is known here; did you mean 'CSVLogger'?"),
        (["--model.lr_scheduler.step_size=0"], "lr_scheduler StepLR fails after epoch 0: integer modulo by zero"),
        (["--data.batch_size=5000"], "batch_size=5000 exceeds the 1150 training images"),
        (["--config=none.yaml"], "none.yaml"),
    ],
)  # fmt: skip
def test_wrong_input_is_named_in_few_lines_and_leaves_nothing(
    mlprank: Callable[..., Any], tmp_path: Path, options: list[str], message: str
) -> None:
    result = mlprank("fit", "--config", "small.yaml", *options)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("mlprank fit: error: ")
    assert len(result.err.splitlines()) <= 8
    assert not list(tmp_path.glob("runs/small/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  max_epoch: 3\n", "there is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("trainr:\n  max_epochs: 3\n", "there is no option 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?"),
        ("data:\n  class_path: DigitsDataModule\n  init_args: {batchsize: 3}\n", "did you mean 'batch_size'?"),
        ("trainer: [\n", "Problems parsing config"),
    ],
)
def test_a_misspelt_key_in_a_config_is_named_with_the_nearest(
    mlprank: Callable[..., Any], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    result = mlprank("fit", "--config=small.yaml", "--config", "wrong.yaml")
    assert result.code == 2
    assert message in result.err


def test_a_schedule_that_makes_the_rate_negative_stops_and_keeps_what_there_is(
    mlprank: Callable[..., Any], tmp_path: Path
) -> None:
    result = mlprank("fit", "--config=small.yaml", "--model.lr_scheduler.gamma=-1", "--trainer.max_epochs=3")
    assert result.code == 2
    assert "lr_scheduler has set lr=-0.003 for epoch 1" in result.err
    assert (tmp_path / "runs/small/001/checkpoints/last.ckpt").is_file()


def test_no_network_says_how_to_give_one(mlprank: Callable[..., Any]) -> None:
    result = mlprank("fit")
    assert result.code == 2
    assert "give a config, as in --config configs/quickstart.yaml" in result.err


def test_short_names_places_and_the_config_of_a_checkpoint_are_completed(tmp_path: Path) -> None:
    assert prepare_arguments(["fit", "--model.model=MLP"]) == ["fit", "--model.model=mlprank.models.MLP"]
    assert prepare_arguments(["fit", "--model.model", "MLP", "-x"]) == ["fit", "--model.model=mlprank.models.MLP", "-x"]
    logger = "--trainer.logger=TensorBoardLogger"
    assert prepare_arguments(["fit", logger]) == ["fit", logger, "--trainer.logger.save_dir=."]
    checkpoint = tmp_path / "001" / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    test = ["test", "--ckpt_path", str(checkpoint)]
    assert prepare_arguments(test) == test
    config = tmp_path / "001" / "config.yaml"
    config.touch()
    assert prepare_arguments(test) == ["test", f"--config={config}", *test[1:]]
    assert prepare_arguments([*test, "--config=other.yaml"]) == [*test, "--config=other.yaml"]


def test_the_first_config_names_the_runs() -> None:
    assert config_of(["fit", "--config", "a/quickstart.yaml", "--config=b.yaml"]) == Path("a/quickstart.yaml")
    assert config_of(["fit", "-c", "a.yaml"]) == Path("a.yaml")
    assert config_of(["fit"]) is None
