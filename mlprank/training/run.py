"""One run of `fit`, `validate`, `test` or `predict`, from its config to its end."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from mlprank.training.build import Built, build_parts, interruptible, with_weights
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import LOGGED, RunLogger, finish_wandb, wandb_is_running
from mlprank.training.parser import Config, parse
from mlprank.training.progress import RunProgress
from mlprank.training.runs import CHECKPOINTS, CONFIG, WholeCheckpointIO, claimed, kept
from mlprank.utils.files import write_csv, write_whole

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
    """Writes the full config into the run directory and logs it, on the first process."""

    def __init__(self, config: Mapping[str, Any], run: Path) -> None:
        self.config, self.run = dict(config), run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log before the first step: a run that cannot start leaves nothing behind."""
        if trainer.is_global_zero:
            write_whole(self.run / CONFIG, yaml.safe_dump(self.config, sort_keys=False))
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the epoch logs: loggers get it a moment after the checkpoint, and a process may end in between."""
        logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
        checkpoint[LOGGED] = {**logged, "epoch": trainer.current_epoch, "step": trainer.global_step - 1}


def main(arguments: Sequence[str]) -> int:
    """Run `mlprank fit`, `validate`, `test` or `predict`."""
    run(parse(arguments[0], arguments[1:]))
    return 0


def run(config: Config) -> None:
    """Build what a config asks for and run its command; after Ctrl-C, a KeyboardInterrupt says what is kept."""
    foreign = wandb_is_running()
    written: Path | None = None
    if config.taken is not None:
        what = "options" if config.command == "fit" else "model and data"
        _say(f"mlprank {config.command}: takes {what} from {config.taken}")
    try:
        with _directory(config) as directory:
            written = directory if config.command == "fit" else None
            built = build(config, directory)
            with interruptible(built.trainer):
                _execute(config, built, directory)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(kept(written)) from None
    finally:
        if not foreign:
            finish_wandb(failed=sys.exc_info()[0] is not None)


def build(config: Config, directory: Path | None) -> Built:
    """Build trainer, module and data of a run; the module has the weights of the checkpoint that it starts from."""
    model, data, given = build_parts(config.command, config.values, directory)
    callbacks = given["callbacks"]
    options: dict[str, Any] = {"default_root_dir": str(directory or config.base)}
    loggers = given["logger"]
    if config.command == "fit" and directory is not None:
        callbacks += _run_callbacks(config, directory, callbacks)
        if loggers in (None, True):
            options["logger"] = RunLogger(directory, steps=config.steps, logged=config.logged)
    elif loggers in (None, True):
        options["logger"] = False
    if given["enable_progress_bar"] is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
        callbacks.insert(0, RunProgress())  # first, so that its bar has gone where others speak
    options["plugins"] = [*given["plugins"], WholeCheckpointIO()]
    if config.checkpoint is not None and not config.goes_on:
        model = with_weights(model, config.checkpoint)
    return Built(Trainer(**{**given, "callbacks": callbacks, **options}), model, data)


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
        with claimed(base, run=config.resumed) as directory:
            os.environ[_RUN_VARIABLE] = str(directory)
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
        # What the epoch logs is known at its end; within an epoch there are validations to save after.
        at_end = True if trainer["val_check_interval"] in (None, 1, 1.0) else None
        ours.append(
            ModelCheckpoint(place, filename="last", save_on_train_epoch_end=at_end, enable_version_counter=False)
        )
    return ours


def _execute(config: Config, built: Built, directory: Path | None) -> None:
    """Run the command of a config with what it asks for."""
    trainer, command = built.trainer, config.command
    if command == "fit":
        if directory is not None:
            _say(f"mlprank fit: {'goes on in' if config.resumed else 'writes to'} {directory}")
        if config.checkpoint is not None and not config.goes_on:
            _say(f"mlprank fit: trains on from the weights of {config.checkpoint}")
        with lean_training(trainer):
            options: Any = {"ckpt_path": config.checkpoint if config.goes_on else None}
            options["weights_only"] = config.values["weights_only"]
            trainer.fit(built.model, datamodule=built.datamodule, **options)
    elif command == "predict":
        outputs: Any = trainer.predict(built.model, datamodule=built.datamodule, return_predictions=True)
        if directory is not None and outputs and is_first_process():
            if not all(isinstance(each, Tensor) and each.ndim == 2 for each in outputs):
                kind = type(outputs[0]).__name__
                raise TypeError(f"predict_step returns {kind}; a table needs class probabilities, (N, num_classes)")
            probabilities, classes = torch.cat(list(outputs)).max(dim=1)
            found = enumerate(zip(classes.tolist(), probabilities.tolist(), strict=True))
            rows = [{"index": n, "class": label, "probability": f"{value:.6f}"} for n, (label, value) in found]
            path = write_csv(directory / "predictions.csv", rows)
            _say(f"mlprank predict: {len(rows)} predictions in {path}")
    else:
        for result in getattr(trainer, command)(built.model, datamodule=built.datamodule):
            for name, value in result.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{name} is {value}: the network of {config.checkpoint} gives values that are not finite; it "
                        "has diverged, or the file is damaged, or the data is not what it was trained on"
                    )


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _say(text: str) -> None:
    if is_first_process():
        print(text, flush=True)


def quieten() -> None:
    """Leave out what Lightning says that nobody can act on; what callbacks say is shown."""
    for message in _UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    own = Path(sys.modules["lightning"].__file__ or "").parent
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        # prints to what is `sys.stderr` at the time: a bar puts that above itself
        logging.getLogger(name).handlers = [logging._StderrHandler()]  # type: ignore[attr-defined]
        messages = logging.getLogger(f"{name}.utilities.rank_zero")
        messages.setLevel(logging.INFO)
        messages.addFilter(lambda each: each.levelno >= logging.WARNING or own not in Path(each.pathname).parents)
