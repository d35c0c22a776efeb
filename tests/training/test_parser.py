from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlprank.cli.vocabulary import translate
from mlprank.training.parser import parse
from tests.conftest import CONFIG


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epoch=3"], "there is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["--model.optimiser=SGD"], "there is no option 'model.optimiser'; did you mean 'model.optimizer'?"),
        (["--data.batchsize=3"], "DigitsDataModule has no option 'batchsize'; did you mean 'batch_size'?"),
        (["--model.optimizer.lrr=3"], "Adam has no option 'lrr'; did you mean 'lr'?"),
        (["--model.optimizer.lr=fast"], "model.optimizer.lr: 'fast' is not a number"),
        (["--trainer.max_epochs=many"], "trainer.max_epochs: 'many' is not a whole number"),
        (["--model.optimizer=Adamm"], "model.optimizer: 'Adamm' is not a class that is known here; did you mean "
            "'Adam'?"),
        (["--trainer.callbacks=PruningCallbak"], "did you mean 'PruningCallback'?"),
        (["--model.optimizer.lr=-0.5"], "optimizer Adam: lr=-0.5 must be a finite number of at least 0, such as 0.001"),
        (["--model.optimizer=SGD", "--model.optimizer.lr=.nan"], "optimizer SGD: lr=nan must be a finite number"),
        (["--model.model=TwoLayersMLP"], "'TwoLayersMLP' is not a class that is known here; did you mean "
            "'TwoLayerMLP'?"),
        (["--model.label_smoothing=2"], "label_smoothing=2.0 must lie in [0, 1)"),
        (["--model.lr_scheduler=CyclicLR", "--model.lr_scheduler.base_lr=0.1", "--model.lr_scheduler.max_lr=1",
          "--model.optimizer=Adagrad"], "CyclicLR does not fit optimizer Adagrad"),
        (["--model.model=TwoLayerMLP", "--model.model.in_features=784"],
         "TwoLayerMLP takes in_features=784, but DigitsDataModule gives images of 1×8×8 = 64"),
        (["--model.model.num_classes=7"], "MLP has num_classes=7, but DigitsDataModule has 10 classes"),
        (["--model.model.widths=[0]"], "widths[0]=0 must be a whole number of at least 1"),
        (["--data.batch_size=0"], "fit: error: batch_size=0 must be a whole number of at least 1\n"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=2"], "fit: error: amount=2.0 is not in "
            "[0, 1)"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.graph=dig"],
         "trainer.callbacks.graph: 'dig' is not one of dag, chain; did you mean 'dag'?"),
        (["--data.auto_augment=cifar"],
         "data.auto_augment: 'cifar' is not one of cifar10, randaugment, augmix; did you mean 'cifar10'?"),
        (["--trainer.precision=bf16-mix"], "did you mean 'bf16-mixed'?"),
        (["--trainer.deterministic=yess"], "trainer.deterministic: 'yess' is not one of warn or true or false"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amont=0.5"],
         "PruningCallback has no option 'amont'; did you mean 'amount'?"),
        (["--trainer.logger=CSVLoger"], "trainer.logger: 'CSVLoger' is not a class that is known here; did you mean "
            "'CSVLogger'?"),
        (["--model.lr_scheduler.step_size=0"], "lr_scheduler StepLR fails after epoch 0: integer modulo by zero"),
        (["--data.batch_size=5000"], "batch_size=5000 exceeds the 1150 training images"),
        (["--config=none.yaml"], "config none.yaml is neither a file nor a config of mlprank"),
        (["--model.model=TwoLayerMLP", "--model.optimizer=CyclicLR"], "model.optimizer: 'CyclicLR' is not a class "
            "that"),
        (["--model.lr_scheduler=MultiStepLR"], "MultiStepLR needs milestones; give it with "
            "--model.lr_scheduler.milestones"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=nan"],
         "trainer.callbacks.amount: 'nan' is not a number or a list"),
        (["--trainer.callbacks=PruningCallback", "--trainer.callbacks.amount=0.9x"],
         "trainer.callbacks.amount: '0.9x' is not a number or a list"),
        (["--trainer.max_epochs=!!python/object/apply:os.system [ls]"], "is not a whole number"),
        (["--trainer.max_epochs=" + "[" * 5000], "is not a whole number"),
        (["--trainer.max_epochs"], "trainer.max_epochs needs a value: a whole number"),
        (["--trainer=3"], "trainer is a group of options; give one of them, such as --trainer.accelerator"),
        (["--data=DigitsData"], "data: 'DigitsData' is not a class that is known here; did you mean "
            "'DigitsDataModule'?"),
        (["--data=nowhere.Data"], "data: nowhere cannot be imported"),
        (["--model=torch.nn.Lineer"], "model: torch.nn has no 'Lineer'; did you mean 'Linear'?"),
        (["--trainer.max_epochs=1", "stray"], "'stray' is not an option; options start with --"),
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
        ("trainer: [\n", "config wrong.yaml cannot be read: "),
        ("trainer: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
        pytest.param(
            f"trainer: {3000 * '['}{3000 * ']'}\n",
            "config wrong.yaml cannot be read: it is nested too deeply",
            id="deep",
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_named_and_the_nearest_key_offered(
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
    assert "give a config, as in --config quickstart, or --model MLP" in result.err


def test_what_is_typed_wins_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    for arguments in (["--trainer.max_epochs", "7", "--config", "c.yaml"], ["-c", "c.yaml", "--trainer.max_epochs=7"]):
        assert parse("fit", translate("fit", arguments)).values["trainer"]["max_epochs"] == 7


def test_a_network_of_mlprank_is_meant_by_its_short_name_and_a_logger_gets_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("--model.model", "--model"):
        sizes = ["--model.model.in_features=64", "--model.model.widths=[3]", "--model.model.num_classes=10"]
        values = parse("fit", [key, "MLP", *sizes, "--trainer.logger=TensorBoardLogger"]).values
        assert values["model"]["model"]["class_path"] == "mlprank.models.MLP"
        assert values["trainer"]["logger"]["init_args"]["save_dir"] == "."
    values = parse(
        "fit", ["--model=MLP", "--model.in_features=64", "--model.widths=[3]", "--model.num_classes=10"]
    ).values
    assert values["model"]["model"]["init_args"]["widths"] == [3]


def test_the_first_config_names_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first.yaml", "second.yaml"):
        (tmp_path / name).write_text(CONFIG)
    assert parse("fit", ["--config", "first.yaml", "--config=second.yaml"]).base == Path("runs/first")
    assert parse("fit", ["--config", "second.yaml", "first.yaml"]).base == Path("runs/second")
    assert parse("fit", ["--model=TwoLayerMLP"]).base == Path("runs/default")
