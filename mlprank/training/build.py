"""The parser and the builder of `mlprank fit`, for many trials in one process."""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger

from mlprank.models.classifier import ImageClassifier
from mlprank.training.checkpoints import WholeCheckpointIO
from mlprank.training.lightning_cli import MLPRankCLI
from mlprank.training.parser import prepare_arguments


@dataclass(frozen=True)
class Built:
    """What a config makes.

    Attributes:
        trainer: The trainer.
        model: The classifier, initialised from the config's seed.
        datamodule: The data.
        loggers: Those that the config asks for; the trainer has them only where it was asked to.
    """

    trainer: Trainer
    model: ImageClassifier
    datamodule: Any
    loggers: tuple[Logger, ...]


class TrialCLI(MLPRankCLI):
    """Parses and builds as `mlprank fit` does, as often as asked; the parser is made once.

    Attributes:
        environment: Where the trainers believe to run; None lets Lightning find out.
    """

    def __init__(self) -> None:
        self._directory = Path()
        self._trainer: dict[str, Any] = {}
        self._callbacks: list[Callback] = []
        self.environment: ClusterEnvironment | None = None
        self._waiting = True
        super().__init__(["fit"])
        self._waiting = False

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse options and configs as `mlprank fit` does.

        Args:
            arguments: The options, without the command.

        Returns:
            The whole resolved config in plain types.

        Raises:
            ValueError: If an option is unknown or has a wrong value; the text names it.
        """
        parsed = self.parser.parse_args(prepare_arguments(["fit", *arguments]))
        config: dict[str, Any] = yaml.safe_load(self.parser.dump(parsed, skip_unset=False))["fit"]
        return config

    def build(
        self,
        config: Mapping[str, Any],
        directory: Path,
        *,
        callbacks: Sequence[Callback] = (),
        trainer: Mapping[str, Any] | None = None,
    ) -> Built:
        """Seed everything and build what a resolved config asks for.

        Args:
            config: What `parse` returned.
            directory: Where loggers write; the trainer's root.
            callbacks: To add to the config's.
            trainer: Options of the Trainer that override the config's.

        Returns:
            Trainer, classifier and data.

        Raises:
            ValueError: If an argument is out of range or network and data do not fit.
        """
        self._directory, self._callbacks, self._trainer = directory, list(callbacks), dict(trainer or {})
        self.config = self.parser.parse_object({"subcommand": "fit", "fit": copy.deepcopy(dict(config))})
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        given = self.config_init["fit"].trainer.logger
        loggers = given if isinstance(given, list) else [given]
        return Built(
            trainer=self.trainer,
            model=self.model,
            datamodule=self.datamodule,
            loggers=tuple(logger for logger in loggers if isinstance(logger, Logger)),
        )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Leave parsing to `parse`."""
        options = Namespace(seed_everything=False, trainer=Namespace())  # type: ignore[no-untyped-call]
        self.config = Namespace(subcommand="fit", fit=options)  # type: ignore[no-untyped-call]

    def _parse_ckpt_path(self) -> None:
        """A trial starts from scratch."""

    def before_instantiate_classes(self) -> None:
        """Place the loggers, except while the parser is being made."""
        if not self._waiting:
            super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        """Build, except while the parser is being made."""
        if not self._waiting:
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Check that network and data fit, except while the parser is being made."""
        if not self._waiting:
            super().after_instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing: `build` hands out what was built."""

    def _claim(self, base: Path) -> Path:
        return self._directory

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer: silent, with our callbacks, writing nowhere by itself."""
        given = self.config_init["fit"].trainer
        callbacks = given.callbacks or []
        plugins = given.plugins or []
        environment = [] if self.environment is None else [self.environment]
        ours: dict[str, Any] = {
            "default_root_dir": str(self._directory),
            "callbacks": [*(callbacks if isinstance(callbacks, list) else [callbacks]), *self._callbacks],
            "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO(), *environment],
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return LightningCLI.instantiate_trainer(self, **{**kwargs, **ours, **self._trainer})


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C into a KeyboardInterrupt.

    Args:
        trainer: The trainer that fits within the block.

    Raises:
        KeyboardInterrupt: If the user interrupted the training.
    """
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None
