"""The end of `fit`: prune the best weights in a copy, write and log it, and let the trainer's module be the pruned network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from mlprank.artifact.checkpoint import sha256
from mlprank.artifact.pruned import artifact_record
from mlprank.callbacks.averaging import averaging_done
from mlprank.callbacks.batches import calibration_batches, has_calibration_data, samples_of_rank, test_batches
from mlprank.callbacks.logging import log_pruning
from mlprank.callbacks.networks import copied, find_network, uncompiled
from mlprank.callbacks.ranks import check_same_masks, summed
from mlprank.callbacks.settings import Settings
from mlprank.callbacks.weights import best_copy, load_copy
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.evaluation import Evaluation, prune_amounts
from mlprank.pruning.outputs import write_outputs
from mlprank.pruning.table import print_pruning
from mlprank.surgery.masks import apply_masks, bake_masks, recompute_uncalled
from mlprank.surgery.narrow import adopt_state, narrow


@dataclass(frozen=True)
class Finish:
    """One end of training; call everything on all processes.

    Attributes:
        trainer: The run.
        module: Its module.
        settings: What to do.
        directory: Where to write.
        rows: Masks that training has ended with, by parameter; empty where nothing has been pruned yet.
        dense_path: A checkpoint from before the first pruning, where there was one.
        schedule: The schedule as plain types, for the record.
    """

    trainer: Trainer
    module: LightningModule
    settings: Settings
    directory: Path
    rows: Mapping[str, Tensor]
    dense_path: Path | None
    schedule: Mapping[str, Any] | None

    def prune(self) -> tuple[list[Evaluation], list[dict[str, Path]], Path | None]:
        """Prune, write, log, print and apply.

        Returns:
            What was measured, the files, and the dense checkpoint; nothing where there is no data to calibrate on.
        """
        if not has_calibration_data(self.trainer):
            rank_zero_warn(
                "Nothing was pruned: the run has no training data to calibrate on (is limit_train_batches=0?)."
            )
            return [], [], self.dense_path
        source, dense_path = self._weights()
        network = find_network(source, self.settings.network)
        labelled, split = test_batches(self.trainer, network)
        evaluations = prune_amounts(
            network,
            calibration_batches(
                self.trainer, network, num_samples=self.settings.num_samples, seed=self.settings.recipe.seed
            ),
            amounts=self.settings.amounts,
            recipe=replace(self.settings.recipe, num_samples=samples_of_rank(self.trainer, self.settings.num_samples)),
            labelled=labelled,
            split=split,
            dense=self._before(),
            reduce=partial(summed, self.trainer),
        )
        for evaluation in evaluations:
            check_same_masks(self.trainer, evaluation.result.masks)
        files = self._written(evaluations, dense_path)
        self._apply(evaluations[-1])
        return evaluations, files, dense_path

    def _weights(self) -> tuple[nn.Module, Path | None]:
        """Copy the module with the weights to prune, and say which checkpoint is the dense one."""
        best = best_copy(self.trainer, self.module, self.settings.network, rows=self.rows)
        if best is not None:
            return best[0], self.dense_path or best[1]
        if self.dense_path is not None or self.trainer.fast_dev_run:
            return copied(self.module), self.dense_path
        path = self.directory / "dense.ckpt"
        self.trainer.save_checkpoint(path, weights_only=True)
        return copied(self.module), path

    def _before(self) -> nn.Module | None:
        """The network before its first pruning, where that was in training."""
        if self.dense_path is None or not self.dense_path.is_file():
            return None
        return find_network(load_copy(self.module, self.dense_path), self.settings.network)

    def _written(self, evaluations: list[Evaluation], dense_path: Path | None) -> list[dict[str, Path]]:
        if not self.trainer.is_global_zero:
            return []
        files: list[dict[str, Path]] = []
        if not self.trainer.fast_dev_run:
            several, provenance = len(evaluations) > 1, self._provenance(dense_path)
            files = [
                write_outputs(each, self.directory, several=several, provenance=provenance) for each in evaluations
            ]
            for evaluation, written in zip(evaluations, files, strict=True):
                log_pruning(self.trainer, evaluation, written, dense_path=dense_path)
        print_pruning(evaluations, files, dense=dense_path, config=self.directory / "config.yaml")
        return files

    def _provenance(self, source: Path | None) -> dict[str, Any]:
        data = type(self.trainer.datamodule).__name__ if self.trainer.datamodule is not None else None
        return {
            "source": None if source is None else str(source),
            "source_sha256": None if source is None or not source.is_file() else sha256(source),
            "calibration": {"data": data, "num_samples": self.settings.num_samples, "seed": self.settings.recipe.seed},
            "schedule": None if self.schedule is None else dict(self.schedule),
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
                if isinstance(self.module, ImageClassifier):
                    self.module.pruning = artifact_record(result)
        checkpoints = self.trainer.checkpoint_callback
        if isinstance(checkpoints, ModelCheckpoint) and checkpoints.best_model_path:
            path = self.directory / ("masked.ckpt" if apply == "mask" else "removed.ckpt")
            with averaging_done(self.trainer):
                self.trainer.save_checkpoint(path, weights_only=True)
            checkpoints.best_model_path = str(path)
