"""A pruning, in every logger of a run, each in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from mlprank.pruning.evaluation import Evaluation
from mlprank.pruning.outputs import scalars


def log_pruning(
    trainer: Trainer, evaluation: Evaluation, files: Mapping[str, Path], *, dense_path: Path | None
) -> None:
    """Log the numbers of a pruning to every logger, and tables, histograms, picture and file to those that can hold them.

    Args:
        trainer: The run; call it on rank 0.
        evaluation: The pruning.
        files: Its files, by what they hold.
        dense_path: The dense checkpoint, for the artifact's lineage.
    """
    for logger in trainer.loggers:
        logger.log_metrics(scalars(evaluation), step=trainer.global_step)
        if isinstance(logger, WandbLogger):
            _log_wandb(logger, evaluation, files, dense_path)
        elif isinstance(logger, TensorBoardLogger):
            _log_tensorboard(logger, evaluation, trainer.global_step)
        logger.save()


def _log_wandb(logger: WandbLogger, evaluation: Evaluation, files: Mapping[str, Path], dense_path: Path | None) -> None:
    import wandb

    result = evaluation.result
    rows = [[name, wide, narrow] for name, (wide, narrow) in result.widths.items()]
    content: dict[str, Any] = {
        "pruning/layers": wandb.Table(columns=["layer", "before", "after"], data=rows),
        "pruning/picture": wandb.Image(str(files["picture"])),
    }
    content |= {f"centrality/{name}": wandb.Histogram(score.tolist()) for name, score in result.scores.items()}
    run = logger.experiment
    run.log(content)
    metadata = {"recipe": result.recipe.plain(), "achieved": result.achieved, "source": str(dense_path)}
    if dense_path is not None and dense_path.is_file():
        dense = wandb.Artifact(f"dense-{run.id}", type="model")
        dense.add_file(str(dense_path))
        run.log_artifact(dense)
        if not run.offline:
            run.use_artifact(dense)
    pruned = wandb.Artifact(f"{files['pruned network'].stem}-{run.id}", type="pruned-model", metadata=metadata)
    pruned.add_file(str(files["pruned network"]))
    run.log_artifact(pruned)


def _log_tensorboard(logger: Logger, evaluation: Evaluation, step: int) -> None:
    for name, score in evaluation.result.scores.items():
        logger.experiment.add_histogram(f"centrality/{name}", score.cpu(), step)
