"""One run of `fit`, `validate`, `test` or `predict`, from its config to its end, and what a config asks for."""

import copy
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned
from mlprank.models import fill, weights_of
from mlprank.models.classifier import ImageClassifier
from mlprank.training.explain import root_of
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import ROWS, RunLogger, finish_wandb, place_loggers, prepare_wandb, wandb_is_running
from mlprank.training.parser import AddOptions, Config, command_parser, parse
from mlprank.training.progress import RunProgress
from mlprank.training.runs import CHECKPOINTS, CONFIG, WholeCheckpointIO, claimed, kept
from mlprank.utils.errors import OptionError, first_line
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
        """Keep the rows of `metrics.csv`; what the epoch logs is written a moment later, when a process may be dead."""
        epoch = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1}
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                written = {name for row in logger.rows if row.get("epoch") == epoch["epoch"] for name in row}
                row = {name: float(value) for name, value in trainer.logged_metrics.items() if name not in written}
                checkpoint[ROWS] = [*logger.rows, *([{**row, **epoch}] if row else [])]


@dataclass(frozen=True)
class Built:
    """What a config makes."""

    trainer: Trainer  # the trainer
    model: Any  # the module, initialised from the config's seed
    datamodule: Any  # the data
    loggers: tuple[Logger, ...] = ()  # of a trial: those that the config asks for, which its trainer has not


def build_parts(
    command: str, values: Mapping[str, Any], directory: Path | None
) -> tuple[LightningModule, LightningDataModule, dict[str, Any]]:
    """Seed everything and build what a config describes; of the trainer its arguments, with lists of instances."""
    parser = command_parser(command, foreign="class_path" in (values.get("model") or {}))
    options = parser.parse_object(copy.deepcopy(dict(values)))  # the parser would write into it
    if directory is not None:
        place_loggers(options.trainer.logger, directory)
        if "WandbLogger" in str(options.trainer.logger):
            prepare_wandb()
    built = _instantiate(parser, options, values)
    callbacks, plugins = _listed(built.trainer.callbacks), [*_listed(built.trainer.plugins), WholeCheckpointIO()]
    return built.model, built.get("data"), {**vars(built.trainer), "callbacks": callbacks, "plugins": plugins}


def _instantiate(parser: LightningArgumentParser, options: Namespace, values: Mapping[str, Any]) -> Namespace:
    """Seed everything and build the objects of parsed options; what is out of range is told as its class tells it."""
    if options.seed_everything is not False:
        drawn = options.seed_everything is True
        seed_everything(None if drawn else options.seed_everything, workers=True, verbose=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="jsonargparse")
            built: Namespace = parser.instantiate(options)
    except (ValueError, TypeError) as error:
        reason = root_of(error)
        if reason is error:
            raise
        raise reason from None
    if isinstance(built.model, ImageClassifier) and "model" in values["model"]:
        # Checkpoints of the image classifier describe the network as the config does; the config is logged whole.
        described = {name: values["model"][name] for name in ("model", "optimizer", "lr_scheduler")}
        built.model.save_hyperparameters({**built.model.hparams, **described}, logger=False)
    model, data = built.model, built.get("data")
    network, shape = getattr(model, "model", model), getattr(data, "in_shape", None)
    features, num_classes = getattr(network, "in_features", None), getattr(model, "num_classes", None)
    classes, problem = getattr(data, "num_classes", None), ""
    if shape is not None and isinstance(features, int) and math.prod(shape) != features:
        given = f"images of {'×'.join(map(str, shape))} = {math.prod(shape)} values"
        problem = f"takes in_features={features}, but {type(data).__name__} gives {given}"
    elif classes is not None and isinstance(num_classes, int) and classes > num_classes:
        problem = f"has num_classes={num_classes}, but {type(data).__name__} has {classes} classes"
    if problem:
        raise ValueError(f"{type(network).__name__} {problem}; give other data with --data, or another network")
    return built


def with_weights(model: LightningModule, path: Path) -> LightningModule:
    """Return a module with the weights of a checkpoint: dense, masked or narrow, of the module or of its network."""
    content = read_checkpoint(path)
    state = weights_of(content, path)
    own: Any = content.get("mlprank")
    is_narrow = isinstance(own, Mapping) and "slices" in own
    if all(name.startswith("module.") for name in state):  # DistributedDataParallel's names
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if not isinstance(model, ImageClassifier):
        if is_narrow:
            return cast(LightningModule, load_pruned(path, model))
        if set(state) <= set(model.state_dict()):
            model.on_load_checkpoint({**content, "state_dict": state})
        fill(model, state, path)
        return model
    if not set(state) & set(model.state_dict()) and set(state) & set(model.model.state_dict()):
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        if is_narrow:
            slices = {f"model.{name}": kept for name, kept in own["slices"].items()}
            own = {**own, "slices": slices, "biases": [f"model.{name}" for name in own.get("biases", ())]}
    model.on_load_checkpoint({**content, "state_dict": state, **({} if own is None else {"mlprank": own})})
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class Opened:
    """A checkpoint with what a command needs to work on it."""

    config: Config
    checkpoint: Path
    options: Namespace  # with instances in place of classes
    module: LightningModule  # in evaluation mode, on the device that was asked for
    data: Any  # set up


def open_checkpoint(command: str, arguments: Sequence[str], add_options: AddOptions) -> Opened:
    """Parse the command line of a command that works on a checkpoint, as `parse` does, and open the checkpoint.

    `--accelerator` is "cpu", "gpu", "cuda", "mps" or "auto", the best that there is; "cuda:1" chooses one.
    """
    config = parse(command, arguments, add_options)
    accelerator: str = config.options.accelerator
    name, _, index = accelerator.partition(":")
    if index and not index.isdecimal():
        raise OptionError(f"accelerator={accelerator!r}: {index!r} is not the number of a device, as 0 is in cuda:0")
    try:
        device = Fabric(accelerator=name, devices=[int(index)] if index else 1).device
    except (ValueError, TypeError, RuntimeError) as error:
        raise OptionError(f"accelerator={accelerator!r}: {first_line(error)}") from error
    if config.taken is not None:
        print(f"mlprank {command}: takes model and data from {config.taken}", flush=True)
    built = _instantiate(config.parser, config.options, config.values)
    assert config.checkpoint is not None
    module, data = with_weights(built.model, config.checkpoint).to(device).eval(), built.get("data")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    return Opened(config, config.checkpoint, built, module, data)


def build_trial(
    config: Mapping[str, Any], directory: Path, callbacks: Sequence[Callback] = (), **options: Any
) -> Built:
    """Seed everything and build what `parse_fit` returned: silent, and writing nowhere by itself.

    Loggers write to the directory, the trainer's root. `callbacks` are added to the config's, and `options` of the
    trainer override them.
    """
    model, data, given = build_parts("fit", config, directory)
    loggers = tuple(logger for logger in _listed(given["logger"]) if isinstance(logger, Logger))
    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    ours = {"default_root_dir": str(directory), "callbacks": [*given["callbacks"], *callbacks]}
    return Built(Trainer(**{**given, **silent, **ours, **options}), model, data, loggers)


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C into a KeyboardInterrupt."""
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


def _listed(value: Any) -> list[Any]:
    """None as no item, one item as a list of it."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


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
            options["logger"] = RunLogger(directory, config.rows)
    elif loggers in (None, True):
        options["logger"] = False
    if given["enable_progress_bar"] is not False and not any(isinstance(each, ProgressBar) for each in callbacks):
        callbacks.insert(0, RunProgress())  # first, so that its bar has gone where others speak
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
    elif getattr(rank_zero_only, "rank", 0) > 0:
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
            start, weights_only = config.checkpoint if config.goes_on else None, config.values["weights_only"]
            trainer.fit(built.model, datamodule=built.datamodule, ckpt_path=start, weights_only=weights_only)
    elif command == "predict":
        outputs: Any = trainer.predict(built.model, datamodule=built.datamodule, return_predictions=True)
        if directory is not None and outputs and trainer.is_global_zero:
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


@rank_zero_only
def _say(text: str) -> None:
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
