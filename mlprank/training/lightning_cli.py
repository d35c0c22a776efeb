"""`mlprank fit`, `validate`, `test` and `predict`: LightningCLI with run directories and plain errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only

import mlprank.callbacks
import mlprank.datamodules
import mlprank.models.schedule  # noqa: F401  (short class names work for what is imported)
from mlprank.models.classifier import ImageClassifier
from mlprank.training.checkpoints import WholeCheckpointIO, check_trained
from mlprank.training.lean_loop import lean_training
from mlprank.training.loggers import RunLogger, place_loggers
from mlprank.training.offline import finish_wandb, prepare_wandb, wandb_is_running
from mlprank.training.parser import Parser, config_of, prepare_arguments, reason_of
from mlprank.training.predictions import write_predictions
from mlprank.training.progress import ClockedProgressBar, EpochLines
from mlprank.training.run_directories import (
    CHECKPOINTS,
    claim_run,
    discard_if_empty,
    discard_partial,
    find_checkpoint,
    kept,
    run_of_config,
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

    def __init__(self, config: dict[str, Any], run: Path) -> None:
        self.config, self.run = config, run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log before the first step: a run that cannot start leaves nothing behind."""
        if trainer.is_global_zero:
            with whole_file(self.run / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(self.config, sort_keys=False))
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config)


class MLPRankCLI(LightningCLI):
    """Builds the classifier, the data and the trainer from options and configs, and runs one command.

    Args:
        arguments: The command and its options.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = prepare_arguments(arguments)
        self.command = arguments[0]
        self.run: Path | None = None
        self._resumed: Path | None = None
        self._resumed_step = 0
        foreign = wandb_is_running()
        try:
            super().__init__(
                ImageClassifier,
                LightningDataModule,
                subclass_mode_data=True,
                save_config_callback=None,
                parser_class=Parser,
                trainer_defaults={"enable_model_summary": False},
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=self.arguments,
            )
        finally:
            if not foreign:
                finish_wandb(failed=sys.exc_info()[0] is not None)
            if _is_first_process():
                discard_if_empty(self.run)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make the bundled digits the data that nothing else is said about."""
        parser.set_defaults({"data": {"class_path": "mlprank.datamodules.DigitsDataModule"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments that were given, whatever the process was started with."""
        parser.prog = "mlprank"
        self.config = parser.parse_args(args)

    @property
    def options(self) -> Namespace:
        """The parsed options of the command."""
        options: Namespace = self.config[self.command]
        return options

    @property
    def base(self) -> Path:
        """Directory of this config's runs: `trainer.default_root_dir`, else `runs/` and the config's name."""
        given = self.options.trainer.default_root_dir
        config = config_of(self.arguments)
        return Path(given) if given else Path("runs") / (config.stem if config else "default")

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint; unlike Lightning's, its hyper-parameters never override what the user typed."""
        given = self.options.get("ckpt_path")
        if given is None:
            if self.command != "fit":
                raise ValueError(
                    f"mlprank {self.command} needs --ckpt_path: a file, or `best` or `last` of the newest run"
                )
            return
        path = Path(given)
        if given in ("last", "best"):
            run = run_of_config(config_of(self.arguments), self.base)
            path = find_checkpoint(self.base, given, run=run)
            self._resumed = path.parent.parent if given == "last" and self.command == "fit" else None
        self._resumed_step = check_trained(path)
        self.options.ckpt_path = str(path)

    def before_instantiate_classes(self) -> None:
        """Give the run its directory, send the loggers there, and note the config in plain types."""
        base, trainer = self.base, self.options.trainer
        asked = self.config.clone()
        asked[self.command].trainer.default_root_dir = str(base)
        asked[self.command].ckpt_path = None
        plain = yaml.safe_load(self.parser.dump(asked, skip_unset=False))
        self.plain: dict[str, Any] = plain[self.command]
        logs = trainer.logger not in (None, True, False)
        if self.command == "fit" or self.command == "predict" or logs:
            self.run = None if trainer.fast_dev_run else self._claim(base)
        if self.run is not None:
            place_loggers(trainer.logger, self.run)
            if "WandbLogger" in str(trainer.logger) and _is_first_process():
                prepare_wandb()

    def _claim(self, base: Path) -> Path:
        if self._resumed is not None:
            if _is_first_process():
                discard_partial(self._resumed)
            return self._resumed
        if not _is_first_process():
            return Path(os.environ.get(_RUN_VARIABLE, base))
        run = claim_run(base if self.command == "fit" else base / self.command)
        os.environ[_RUN_VARIABLE] = str(run)
        return run

    def instantiate_classes(self) -> None:
        """Build trainer, classifier and data; an argument out of range is told as its class tells it."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            reason = reason_of(error)
            if reason is error:
                raise
            raise reason from None

    def after_instantiate_classes(self) -> None:
        """Let checkpoints describe the network as the config does; refuse one that does not fit the data."""
        described = {name: self.plain["model"][name] for name in ("model", "optimizer", "lr_scheduler")}
        self.model.save_hyperparameters({**self.model.hparams, **described}, logger=False)  # the config is logged whole
        network, data = self.model.model, self.datamodule
        shape = getattr(data, "in_shape", None)
        features = getattr(network, "in_features", None)
        if shape is not None and features is not None and shape[0] * shape[1] * shape[2] != features:
            raise ValueError(
                f"{type(network).__name__} takes in_features={features}, but {type(data).__name__} gives images of "
                f"{'×'.join(map(str, shape))} = {shape[0] * shape[1] * shape[2]} values; change model.model or data"
            )
        classes = getattr(data, "num_classes", None)
        if classes is not None and classes > self.model.num_classes:
            raise ValueError(
                f"{type(network).__name__} has num_classes={self.model.num_classes}, but {type(data).__name__} has "
                f"{classes} classes; change model.model or data"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with what a run needs: its directory, a logger, checkpoints, progress."""
        given = self.config_init[self.command].trainer
        callbacks = given.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
        kwargs["default_root_dir"] = str(self.run or self.base)
        if self.command == "fit" and self.run is not None:
            callbacks += self._run_callbacks(self.run, callbacks, checkpoints=given.enable_checkpointing is not False)
            if given.logger in (None, True):
                kwargs["logger"] = RunLogger(self.run, steps=self._resumed_step)
        elif given.logger in (None, True):
            kwargs["logger"] = False
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            if sys.stdout.isatty():
                callbacks.append(ClockedProgressBar())
            else:
                kwargs["enable_progress_bar"] = False
                callbacks.append(EpochLines())
        plugins = given.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO()]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _run_callbacks(self, run: Path, given: list[Callback], *, checkpoints: bool) -> list[Callback]:
        ours: list[Callback] = [SaveRun(self.plain, run)]
        if checkpoints and not any(isinstance(callback, Checkpoint) for callback in given):
            place = run / CHECKPOINTS
            if self.options.trainer.limit_val_batches != 0:
                ours.append(ModelCheckpoint(place, filename="best", monitor="val_top1", mode="max"))
            # save_last=True would write last.ckpt only where best.ckpt is written
            ours.append(ModelCheckpoint(place, filename="last", enable_version_counter=False))
        return ours

    def fit(self, **kwargs: Any) -> None:
        """Train; Ctrl-C becomes a KeyboardInterrupt that says what was kept."""
        if self.run is not None and _is_first_process():
            print(f"mlprank fit: {'goes on in' if self._resumed else 'writes to'} {self.run}", flush=True)
        try:
            with lean_training(self.trainer):
                self.trainer.fit(**kwargs)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt(kept(self.run)) from None

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write the predictions into a directory of their own."""
        outputs = self.trainer.predict(**{**kwargs, "return_predictions": True})
        if self.run is not None and outputs and _is_first_process():
            path = self.run / "predictions.csv"
            print(f"mlprank predict: {write_predictions(outputs, path)} predictions in {path}")  # type: ignore[arg-type]


def _is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def main(argv: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        argv: The command and its options.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an option, a config or a file cannot be used; other errors of the user pass as they are.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in _UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message)
    try:
        MLPRankCLI(argv)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    return 0
