"""The end of `fit`: prune the best weights in a copy, write and log it, apply it to the trainer's module."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from mlprank.artifact.checkpoint import read_weights, sha256
from mlprank.artifact.record import remember
from mlprank.callbacks.data import Settings, has_calibration_data, samples_of_rank
from mlprank.callbacks.run import check_same_masks, copied, find_network, is_lightning, summed, uncompiled
from mlprank.callbacks.training import TrainingMasks, averaging_done, described_pruning, plain_state_dicts
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.evaluation import Evaluation, evaluate, print_pruning, prune_amounts, scalars, write_outputs
from mlprank.pruning.front import BudgetError
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.shrink import DEFAULTS, shrink
from mlprank.surgery.copies import COMPILED
from mlprank.surgery.masks import apply_masks, bake_masks, mask_rows, recompute_uncalled
from mlprank.surgery.narrow import adopt_state, narrow, network_state
from mlprank.utils.files import whole_file
from mlprank.utils.modules import first_words


@dataclass(frozen=True)
class Dense:
    """The network before its first pruning: its checkpoint, None where nothing is written, and which it is."""

    path: Path | None
    what: str


@dataclass(frozen=True)
class Finish:
    """One end of training; `dense` is the network from before a pruning in training. Called on all processes."""

    trainer: Trainer
    module: LightningModule
    settings: Settings
    directory: Path
    masks: TrainingMasks
    dense: Dense | None

    def prune(self) -> tuple[list[Evaluation], list[dict[str, Path]], Dense | None]:
        """Prune, write, log, print and apply; return what was measured, the files, and the dense network."""
        if not has_calibration_data(self.trainer):
            rank_zero_warn(
                "Nothing was pruned: the run has no training data to calibrate on (is limit_train_batches=0?)."
            )
            return [], [], self.dense
        source, dense = self._weights()
        settings, reduce = self.settings, partial(summed, self.trainer)
        network = find_network(source, settings.network)
        labelled, split = settings.labelled(self.trainer, source)
        calibration = settings.calibration(self.trainer, source)
        if settings.max_drop is not None:
            validation, _ = settings.labelled(self.trainer, source, choosing=True)
            given = {name: value for name, value in vars(settings.recipe).items() if value != getattr(Recipe(), name)}
            samples = given.get("num_samples", DEFAULTS["num_samples"]) or settings.num_samples
            given["num_samples"] = samples_of_rank(self.trainer, samples)
            try:
                front = shrink(network, calibration, validation, max_drop=settings.max_drop, reduce=reduce, **given)
            except BudgetError as error:
                rank_zero_warn(f"Nothing was pruned: {error}")
                return [], [], dense
            rank_zero_info(str(front))
            evaluations = [evaluate(front.best, labelled, split=split, reduce=reduce)]
        else:
            evaluations = prune_amounts(
                network,
                calibration,
                amounts=settings.amounts,
                recipe=settings.recipe_of_rank(self.trainer),
                labelled=labelled,
                split=split,
                dense=self._before(),
                reduce=reduce,
            )
        for evaluation in evaluations:
            check_same_masks(self.trainer, evaluation.result.masks)
        files = self._written(evaluations, dense) if self.trainer.is_global_zero else []
        self._apply(evaluations[-1])
        return evaluations, files, dense

    def _weights(self) -> tuple[nn.Module, Dense]:
        """Copy the module with the weights to prune, and say which network is the dense one."""
        best = self._best_copy()
        if best is not None:
            return best[0], self.dense or best[1]
        copy = copied(self.module, self.masks.hooks.changing)
        if self.dense is not None:
            return copy, self.dense
        last = f"the dense network after {self.trainer.current_epoch} epochs, the last"
        if self.trainer.fast_dev_run:
            return copy, Dense(None, last)
        path = self.directory / "dense.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)
        return copy, Dense(path, last)

    def _best_copy(self) -> tuple[nn.Module, Dense] | None:
        """Copy the module with the best checkpoint's weights; after training under masks, the best with all masks."""
        rows = self.masks.rows
        for path in _best_first(self.trainer) if rows else [best_path(self.trainer)]:
            if path is None:
                continue
            try:
                loaded = self._loaded(path)
            except (ValueError, RuntimeError) as error:  # RuntimeError: it has other keys than the module
                rank_zero_warn(f"{path}: {first_words(error)}; it is passed over")
                continue
            network = find_network(loaded, self.settings.network)
            if rows:
                bake_masks(network)
                state = network_state(network)
                if any(bool((state[name][~kept.to(state[name].device)] != 0).any()) for name, kept in rows.items()):
                    continue
            mask_rows(network, rows)
            return loaded, Dense(path, _described(self.trainer, path))
        return None

    def _loaded(self, path: Path) -> nn.Module:
        """Copy the module with a checkpoint's weights, and its masks."""
        state = read_weights(path)["state_dict"]
        loaded = copied(self.module, self.masks.hooks.changing)
        plain_state_dicts(loaded)
        plain = {key.replace(f"{COMPILED}.", ""): value for key, value in state.items()}
        loaded.load_state_dict(plain, strict=self.module.strict_loading)
        return loaded

    def _before(self) -> nn.Module | None:
        """The network before its first pruning, where that was in training."""
        path = None if self.dense is None else self.dense.path
        return None if path is None or not path.is_file() else find_network(self._loaded(path), self.settings.network)

    def _written(self, evaluations: list[Evaluation], dense: Dense) -> list[dict[str, Path]]:
        files: list[dict[str, Path]] = []
        if not self.trainer.fast_dev_run:
            several, provenance = len(evaluations) > 1, self._provenance(dense)
            files = [
                write_outputs(each, self.directory, several=several, provenance=provenance) for each in evaluations
            ]
            for evaluation, written in zip(evaluations, files, strict=True):
                log_pruning(self.trainer, evaluation, written, dense_path=dense.path)
        after = ", trained on under masks since then" if self.masks.schedule is not None else ""
        said = [f"Before: {dense.what}. After: the pruned network{after}."]
        if self.masks.history:
            said += ["Pruned while training:", *(f"  {described_pruning(each)}" for each in self.masks.history)]
        rank_zero_info("\n".join(said))
        print_pruning(evaluations, files, dense=dense.path, config=self.directory / "config.yaml")
        return files

    def _provenance(self, dense: Dense) -> dict[str, Any]:
        data = type(self.trainer.datamodule).__name__ if self.trainer.datamodule is not None else None
        source, schedule = dense.path, self.masks.schedule
        return {
            "source": None if source is None else str(source),
            "source_sha256": None if source is None or not source.is_file() else sha256(source),
            "dense": dense.what,
            "calibration": {"data": data, "num_samples": self.settings.num_samples, "seed": self.settings.recipe.seed},
            "schedule": None if schedule is None else schedule.plain(),
            "pruned_in_training": self.masks.history,
        }

    def _apply(self, evaluation: Evaluation) -> None:
        """Let the trainer's module be the pruned network, and `best` the checkpoint of that."""
        apply, result = self.settings.apply, evaluation.result
        if apply == "none":
            return
        with uncompiled(self.module):
            network = find_network(self.module, self.settings.network)
            if apply == "mask":
                apply_masks(network, result)
                recompute_uncalled(network, result.example)
            else:
                bake_masks(network)
                narrow(network, result.slices, biases=result.biases)
                adopt_state(network, result.model)
                remember(network, result.record())
                if isinstance(self.module, ImageClassifier):
                    self.module.pruning = result.record().plain()
        checkpoints: Any = self.trainer.checkpoint_callback
        if is_lightning(checkpoints, "ModelCheckpoint") and checkpoints.best_model_path:
            path = self.directory / ("masked.ckpt" if apply == "mask" else "removed.ckpt")
            with averaging_done(self.trainer):
                self.trainer.save_checkpoint(path, weights_only=True)
            checkpoints.best_model_path = str(path)


def keep_dense(trainer: Trainer, path: Path) -> Dense:
    """Write the dense network before the first pruning to a file; call it on all processes.

    It is the best checkpoint so far, where the run has one of a monitored value; otherwise the network as it is now.
    """
    best, monitor = best_path(trainer), getattr(trainer.checkpoint_callback, "monitor", None)
    if best is None or monitor is None:
        trainer.save_checkpoint(path, weights_only=True)
        return Dense(path, f"the dense network after {trainer.current_epoch} epochs, when pruning began")
    if trainer.is_global_zero:
        with whole_file(path) as temporary:
            shutil.copyfile(best, temporary)
    trainer.strategy.barrier()
    return Dense(path, f"{_described(trainer, best)} before pruning began")


def _described(trainer: Trainer, path: Path) -> str:
    """Say which network a checkpoint holds."""
    checkpoints: Any = trainer.checkpoint_callback
    monitor, scores = getattr(checkpoints, "monitor", None), getattr(checkpoints, "best_k_models", {})
    score = scores.get(str(path), getattr(checkpoints, "best_model_score", None))
    epoch = read_weights(path).get("epoch", 0) + 1  # as the lines of the training count
    value = "" if score is None or monitor is None else f" by {monitor} ({float(score):.4g})"
    return f"the dense network of epoch {epoch}, " + (f"the best{value}" if monitor else "the last checkpoint")


def best_path(trainer: Trainer) -> Path | None:
    """Return the best checkpoint of a run, if there is one."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path and Path(path).is_file() else None


def _best_first(trainer: Trainer) -> Iterator[Path]:
    """The checkpoints that are kept, from the best to the worst."""
    checkpoints: Any = trainer.checkpoint_callback
    if not is_lightning(checkpoints, "ModelCheckpoint"):
        return
    kept = sorted(checkpoints.best_k_models.items(), key=lambda item: float(item[1]), reverse=checkpoints.mode == "max")
    paths = dict.fromkeys([path for path, _ in kept] + [checkpoints.best_model_path])
    yield from (Path(path) for path in paths if path and Path(path).is_file())


def log_pruning(
    trainer: Trainer, evaluation: Evaluation, files: Mapping[str, Path], *, dense_path: Path | None
) -> None:
    """Log the numbers of a pruning to every logger, and tables, histograms, picture and files where they fit."""
    for logger in trainer.loggers:
        logger.log_metrics(scalars(evaluation), step=trainer.global_step)
        if is_lightning(logger, "WandbLogger"):
            _log_wandb(logger, evaluation, files, dense_path)
        elif is_lightning(logger, "TensorBoardLogger"):
            for name, score in evaluation.result.scores.items():
                logger.experiment.add_histogram(f"centrality/{name}", score.cpu(), trainer.global_step)
        logger.save()


def _log_wandb(logger: Any, evaluation: Evaluation, files: Mapping[str, Path], dense_path: Path | None) -> None:
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
