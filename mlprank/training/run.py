"""One run of `fit`, `validate`, `test` or `predict`, from its config to its end."""

from __future__ import annotations

import csv
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.training.build import Built, build_parts, interruptible, with_weights
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import RunLogger, finish_wandb, wandb_is_running
from mlprank.training.parser import Config
from mlprank.training.progress import RunProgress
from mlprank.training.runs import (
    CHECKPOINTS,
    CONFIG,
    WholeCheckpointIO,
    claim_run,
    discard_abandoned,
    held,
    kept,
)
from mlprank.utils.files import whole_file

_RUN_VARIABLE = "MLPRANK_RUN"
"""Tells the processes that a distributed run starts which directory the first of them has claimed."""

_UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",  # the batches are indexed from memory
    ".*smaller than the logging interval.*",  # everything is logged once an epoch
    ".*isinstance.treespec, LeafSpec.*",
    ".*The dirpath has changed from.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*exists and is not empty.*",  # a run that goes on writes where it wrote before
)


class SaveRun(Callback):
    """Writes the full config into the run directory and logs it, on the first process.

    Args:
        config: The config in plain types.
        run: The run directory.
    """

    def __init__(self, config: Mapping[str, Any], run: Path) -> None:
        self.config, self.run = dict(config), run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log before the first step: a run that cannot start leaves nothing behind."""
        if trainer.is_global_zero:
            with whole_file(self.run / CONFIG) as temporary:
                temporary.write_text(yaml.safe_dump(self.config, sort_keys=False))
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config)


def run(config: Config) -> None:
    """Build what a config asks for and run its command.

    Args:
        config: What `mlprank.training.parser.parse` returned.

    Raises:
        ValueError: If something that the user gave cannot be used; other errors of the user pass as they are.
        FloatingPointError: If a loss is not a finite number.
        KeyboardInterrupt: After Ctrl-C; the text says what is kept.
    """
    foreign = wandb_is_running()
    if config.taken is not None and is_first_process():
        print(f"mlprank {config.command}: takes {_what(config)} from {config.taken}", flush=True)
    try:
        with _directory(config) as directory:
            _COMMANDS[config.command](config, build(config, directory), directory)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    finally:
        if not foreign:
            finish_wandb(failed=sys.exc_info()[0] is not None)


def build(config: Config, directory: Path | None) -> Built:
    """Build trainer, module and data of a run; the module has the weights of the checkpoint that it starts from.

    Args:
        config: The config.
        directory: The run directory; None where nothing is written.
    """
    parts = build_parts(config.command, config.values, directory)
    given, callbacks = parts.trainer, parts.trainer["callbacks"]
    options: dict[str, Any] = {"default_root_dir": str(directory or config.base)}
    loggers = given["logger"]
    if config.command == "fit" and directory is not None:
        callbacks += _run_callbacks(config, directory, callbacks)
        if loggers in (None, True):
            options["logger"] = RunLogger(directory, steps=config.steps if config.resumed else 0)
    elif loggers in (None, True):
        options["logger"] = False
    if given["enable_progress_bar"] is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
        callbacks.append(RunProgress())
    options["plugins"] = [*given["plugins"], WholeCheckpointIO()]
    model: LightningModule = parts.model
    if config.checkpoint is not None and not goes_on(config):
        model = with_weights(model, config.checkpoint)
    trainer = Trainer(**{**given, "callbacks": callbacks, **options})
    own = loggers if isinstance(loggers, list) else [loggers]
    return Built(trainer, model, parts.data, tuple(each for each in own if isinstance(each, Logger)))


def goes_on(config: Config) -> bool:
    """Whether a training goes on from its checkpoint, which holds more than weights."""
    if config.command != "fit" or config.checkpoint is None:
        return False
    return "optimizer_states" in read_checkpoint(config.checkpoint)


@contextmanager
def _directory(config: Config) -> Iterator[Path | None]:
    """Claim and hold the directory that a run writes to; None where it writes nothing."""
    trainer = config.values["trainer"]
    logs = trainer["logger"] not in (None, True, False)
    if trainer["fast_dev_run"] or not (config.command in ("fit", "predict") or logs):
        yield None
    elif not is_first_process():
        yield Path(os.environ.get(_RUN_VARIABLE, config.base))
    else:
        base = config.base if config.command == "fit" else config.base / config.command
        discard_abandoned(base)
        directory = config.resumed or claim_run(base)
        os.environ[_RUN_VARIABLE] = str(directory)
        with held(directory):
            yield directory


def _run_callbacks(config: Config, run: Path, given: Sequence[Callback]) -> list[Callback]:
    trainer = config.values["trainer"]
    saved = {**config.values, "trainer": {**trainer, "default_root_dir": str(config.base)}}
    ours: list[Callback] = [SaveRun(saved, run)]
    if trainer["enable_checkpointing"] is not False and not any(isinstance(each, Checkpoint) for each in given):
        place = run / CHECKPOINTS
        if trainer["limit_val_batches"] != 0 and config.values["model"].get("class_path") is None:
            ours.append(ModelCheckpoint(place, filename="best", monitor="val_top1", mode="max"))
        # save_last=True would write last.ckpt only where best.ckpt is written
        ours.append(ModelCheckpoint(place, filename="last", enable_version_counter=False))
    return ours


def _fit(config: Config, built: Built, directory: Path | None) -> None:
    """Train; Ctrl-C becomes a KeyboardInterrupt that says what was kept."""
    if directory is not None and is_first_process():
        print(f"mlprank fit: {'goes on in' if config.resumed else 'writes to'} {directory}", flush=True)
    checkpoint = config.checkpoint if goes_on(config) else None
    if config.checkpoint is not None and checkpoint is None and is_first_process():
        print(f"mlprank fit: trains on from the weights of {config.checkpoint}", flush=True)
    try:
        with interruptible(built.trainer), lean_training(built.trainer):
            plain_types = config.values["weights_only"]
            built.trainer.fit(built.model, datamodule=built.datamodule, ckpt_path=checkpoint, weights_only=plain_types)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept(directory)) from None


def _validate(config: Config, built: Built, directory: Path | None) -> None:
    with interruptible(built.trainer):
        _check_finite(config, built.trainer.validate(built.model, datamodule=built.datamodule))


def _test(config: Config, built: Built, directory: Path | None) -> None:
    with interruptible(built.trainer):
        _check_finite(config, built.trainer.test(built.model, datamodule=built.datamodule))


def _check_finite(config: Config, results: Sequence[Mapping[str, float]]) -> None:
    """Refuse results that a damaged or diverged network gives."""
    for result in results:
        for name, value in result.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value}: the network of {config.checkpoint} gives values that are not finite; it has "
                    "diverged, or the file is damaged, or the data is not what it was trained on"
                )


def _predict(config: Config, built: Built, directory: Path | None) -> None:
    with interruptible(built.trainer):
        outputs = built.trainer.predict(built.model, datamodule=built.datamodule, return_predictions=True)
    if directory is not None and outputs and is_first_process():
        path = directory / "predictions.csv"
        print(f"mlprank predict: {write_predictions(outputs, path)} predictions in {path}")  # type: ignore[arg-type]


_COMMANDS: dict[str, Callable[[Config, Built, Path | None], None]] = {
    "fit": _fit,
    "validate": _validate,
    "test": _test,
    "predict": _predict,
}


def write_predictions(outputs: Sequence[Tensor], path: Path) -> int:
    """Write a row per image: its index, the most probable class and that class's probability.

    Args:
        outputs: Class probabilities by batch, shape (N, num_classes).
        path: The CSV file.

    Returns:
        The number of images.

    Raises:
        TypeError: If the outputs of `predict_step` are not such tensors.
    """
    if not all(isinstance(each, Tensor) and each.ndim == 2 for each in outputs):
        raise TypeError(
            f"predict_step returns {type(outputs[0]).__name__}; a table needs class probabilities, shape (N, num_classes)"
        )
    probabilities, classes = torch.cat(list(outputs)).max(dim=1)
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("index", "class", "probability"))
        rows = zip(classes.tolist(), probabilities.tolist(), strict=True)
        writer.writerows((index, label, f"{value:.6f}") for index, (label, value) in enumerate(rows))
    return len(classes)


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first."""
    return getattr(rank_zero_only, "rank", 0) == 0


def quieten() -> None:
    """Leave out what Lightning says that nobody can act on; what callbacks say is shown."""
    for message in _UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        messages = logging.getLogger(f"{name}.utilities.rank_zero")
        messages.setLevel(logging.INFO)
        messages.addFilter(_of_callbacks)


def _of_callbacks(record: logging.LogRecord) -> bool:
    """Whether a message is a warning, or does not come from Lightning's own sources."""
    own = Path(sys.modules["lightning"].__file__ or "").parent
    return record.levelno >= logging.WARNING or own not in Path(record.pathname).parents


def _what(config: Config) -> str:
    return "options" if config.command == "fit" else "model and data"
