"""`mlprank prune`: prune a checkpoint without training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

import mlprank.callbacks
import mlprank.datamodules
import mlprank.models.schedule  # noqa: F401  (short class names work for what is imported)
from mlprank.artifact.checkpoint import read_checkpoint, sha256
from mlprank.callbacks import PruningCallback
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.evaluation import prune_amounts
from mlprank.pruning.outputs import write_outputs
from mlprank.pruning.table import print_pruning
from mlprank.training.checkpoints import check_trained
from mlprank.training.parser import Parser, config_of, prepare_arguments, values_of
from mlprank.training.run_directories import beside_checkpoint, claim_run, discard_if_empty
from mlprank.utils.files import whole_file

_OF_FITTING = {"apply", "dirpath", "network", "schedule", "finetune_epochs"}
"""Arguments of the PruningCallback that only mean something while a network is trained."""


def main(argv: list[str]) -> int:
    """Prune a checkpoint, evaluate it, and write it down.

    Args:
        argv: The options. Where the run's config has a PruningCallback, its arguments count unless others are typed.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an option, a config or a file cannot be used.
    """
    arguments = prepare_arguments(["prune", *argv])
    config = config_of(arguments)
    parser = _parser(_of_callback(config))
    checkpoint = _checkpoint(arguments)
    options = parser.parse_args(_configs_first(arguments[1:]))
    callback = PruningCallback(**{name: parser.instantiate_classes(options)[name] for name in _choices()})
    assert checkpoint is not None
    directory = claim_run(Path(options.out) if options.out else _home(checkpoint) / "prune")
    try:
        return _prune(parser, options, callback, directory)
    finally:
        discard_if_empty(directory)


def _prune(parser: Parser, options: Namespace, callback: PruningCallback, directory: Path) -> int:
    checkpoint = Path(options.ckpt_path)
    built = parser.instantiate_classes(options)
    module = _module(built.get("model"), checkpoint).to(options.device)
    data: Any = built.data
    data.setup("fit")
    data.setup("test")
    evaluations = prune_amounts(
        module,
        data.calibration_dataloader(num_samples=callback.settings.num_samples, seed=callback.settings.recipe.seed),
        amounts=callback.settings.amounts,
        recipe=callback.settings.recipe,
        labelled=data.test_dataloader(),
        split="test",
    )
    provenance = {
        "source": str(checkpoint),
        "source_sha256": sha256(checkpoint),
        "calibration": {
            "data": type(data).__name__,
            "num_samples": callback.settings.num_samples,
            "seed": callback.settings.recipe.seed,
        },
    }
    files = [
        write_outputs(each, directory, several=len(evaluations) > 1, provenance=provenance) for each in evaluations
    ]
    config = directory / "config.yaml"
    with whole_file(config) as temporary:
        temporary.write_text(parser.dump(options, skip_unset=False))
    print_pruning(evaluations, files, dense=checkpoint, config=config)
    return 0


def _parser(defaults: Mapping[str, Any]) -> Parser:
    """The options of `prune`: a fit's config is taken whole, and what only training needs is passed over."""
    parser = Parser(
        prog="mlprank prune", description="Prune a checkpoint without training, evaluate it, and write it down."
    )
    parser.add_argument("-c", "--config", action="config", help="A config that `mlprank fit` saved, or one of prune.")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="The checkpoint to prune, dense or pruned.")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Where numbered prunings go; `prune` in the checkpoint's run by default.",
    )
    parser.add_argument("--device", type=str, default="cpu", help="Where to calibrate and evaluate, such as cuda.")
    parser.add_class_arguments(PruningCallback, skip=_OF_FITTING)
    parser.add_lightning_class_args(ImageClassifier, "model", required=False)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser.set_defaults({"data": {"class_path": "mlprank.datamodules.DigitsDataModule"}})
    for name, kind in (("seed_everything", bool | int | None), ("trainer", dict | None), ("weights_only", bool | None)):
        parser.add_argument(f"--{name}", type=kind, default=None, help="Part of a fit's config; not used here.")
    parser.set_defaults(dict(defaults))
    return parser


def _checkpoint(arguments: list[str]) -> Path | None:
    """The checkpoint that was typed, checked; None where help is asked for."""
    given = values_of(arguments, "--ckpt_path")
    if not given:
        if {"-h", "--help", "--print_config"} & set(arguments):
            return None
        raise ValueError("mlprank prune needs --ckpt_path: a checkpoint that `mlprank fit` wrote")
    check_trained(Path(given[-1]))
    return Path(given[-1])


def _configs_first(arguments: list[str]) -> list[str]:
    """Put configs before other options, so that what is typed wins wherever it stands."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name in ("--config", "-c"):
            configs += (
                [argument] if equals else [argument, *[value for value in [next(rest, None)] if value is not None]]
            )
        else:
            others.append(argument)
    return [*configs, *others]


def _choices() -> list[str]:
    return [name for name in inspect.signature(PruningCallback).parameters if name not in _OF_FITTING]


def _of_callback(config: Path | None) -> dict[str, Any]:
    """What a fit's config says to its PruningCallback."""
    content = yaml.safe_load(config.read_text()) if config is not None and config.is_file() else None
    trainer = content.get("trainer") if isinstance(content, dict) else None
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for entry in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(entry, dict) and str(entry.get("class_path", "")).rpartition(".")[2] == PruningCallback.__name__:
            return {name: value for name, value in (entry.get("init_args") or {}).items() if name in _choices()}
    return {}


def _module(built: ImageClassifier | None, checkpoint: Path) -> ImageClassifier:
    """The classifier of the config with the checkpoint's weights; the checkpoint's own where no config describes one."""
    if not isinstance(built, ImageClassifier):
        return ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    content = read_checkpoint(checkpoint)
    built.on_load_checkpoint(content)
    built.load_state_dict(content["state_dict"])
    return built


def _home(checkpoint: Path) -> Path:
    """The run directory that a checkpoint belongs to, or the directory that it lies in."""
    config = beside_checkpoint(checkpoint)
    return config.parent if config is not None else checkpoint.parent
