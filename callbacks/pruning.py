"""When to prune a Lightning run: at the end of `fit`, on the best weights, with everything a person wants to keep written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from mlprank.callbacks.batches import calibration_batches, test_batches
from mlprank.callbacks.logging import log_pruning
from torch import nn

from mlprank.artifact import artifact_record, read_checkpoint, sha256
from mlprank.compensation import Compensation, get_compensation
from mlprank.evaluation import Evaluation, prune_amounts
from mlprank.masking import apply_masks
from mlprank.measures import Measure, get_measure
from mlprank.methods import Method, get_method
from mlprank.models.classifier import ImageClassifier
from mlprank.outputs import write_outputs
from mlprank.removal import adopt_state, narrow, with_state
from mlprank.selection import check_amount
from mlprank.table import print_pruning


class PruningCallback(Callback):
    """Prune the network when fitting ends.

    The best checkpoint's weights are pruned where there is one, otherwise the last ones, in a copy. Written to the run directory:
    `pruned.ckpt`, `scores.safetensors`, `metrics.json` and `pruning.png`, one set for each amount. Afterwards `trainer.test()` tests
    the pruned network, as does `ckpt_path="best"`; the path of the dense checkpoint is in `dense_path`.

    Args:
        amount: The share of neurons to remove, in [0, 1); several shares give a network each, and the last one is applied; a mapping
            gives shares by layer name.
        measure: What scores neurons: weighted_pagerank, modified_pagerank, random, norm, activation, wanda, reconstruction; with parameters
            as in {name: norm, p: 2}; or an instance.
        method: What turns scores into masks: "local", "global", or an instance.
        compensation: What a pruned neuron leaves behind: "constant", "zero", "mean", "least_squares", or an instance.
        graph: "dag", the true graph of neurons, or "chain", the published reading.
        protect_output: Keep every output neuron.
        protect: Names of layers to keep whole; `*` and `[2-5]` match as in file names.
        min_neurons: At least so many neurons stay in every layer.
        round_to: The number of kept neurons becomes a multiple of this.
        num_samples: Number of calibration samples.
        seed: Seed of their draw.
        network: Name of the submodule to prune; by default what `forward` runs, or the only submodule where there is no `forward`.
        apply: What becomes of the trainer's module: "mask" gives it the masked weights and torch's own pruning masks, "remove" the
            narrow network, "none" leaves it alone.
        dirpath: Where to write; the run directory by default.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        amount: float | list[float] | dict[str, float] = 0.5,
        *,
        measure: dict[str, Any] | str | Measure = "weighted_pagerank",
        method: dict[str, Any] | str | Method = "local",
        compensation: dict[str, Any] | str | Compensation = "least_squares",
        graph: Literal["dag", "chain"] = "dag",
        protect_output: bool = True,
        protect: Sequence[str] = (),
        min_neurons: int = 1,
        round_to: int = 1,
        num_samples: int = 1024,
        seed: int = 0,
        network: str | None = None,
        apply: Literal["mask", "remove", "none"] = "mask",
        dirpath: str | None = None,
    ) -> None:
        super().__init__()
        self.amounts: list[float | Mapping[str, float]] = list(amount) if isinstance(amount, list) else [amount]
        if not self.amounts:
            raise ValueError("amount=[] holds no amount; give at least one, such as 0.5")
        for each in self.amounts:
            check_amount(each)
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: calibration needs at least 1 sample, such as 1024")
        if apply not in ("mask", "remove", "none"):
            raise ValueError(f'apply="{apply}" is unknown; choose "mask", "remove" or "none"')
        if graph not in ("dag", "chain"):
            raise ValueError(f'graph="{graph}" is unknown; choose "dag" or "chain"')
        self.recipe: dict[str, Any] = {
            "measure": get_measure(measure),
            "method": get_method(method),
            "compensation": get_compensation(compensation),
            "protect_output": protect_output,
            "protect": tuple(protect),
            "min_neurons": min_neurons,
            "round_to": round_to,
        }
        self.graph, self.num_samples, self.seed = graph, num_samples, seed
        self.network, self.apply, self.dirpath = network, apply, dirpath
        self.dense_path: Path | None = None
        self.evaluations: list[Evaluation] = []
        self.files: list[dict[str, Path]] = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune a copy of the best weights, write and log what came out, and apply it to the trainer's module."""
        directory = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
        dense = self._dense(trainer, pl_module, directory)
        name = self.network if self.network is not None else network_name(dense)
        network = dense.get_submodule(name)
        labelled, split = test_batches(trainer, network)
        self.evaluations = prune_amounts(
            network,
            calibration_batches(trainer, network, num_samples=self.num_samples, seed=self.seed),
            amounts=self.amounts,
            graph=self.graph,
            num_samples=self.num_samples,
            recipe=self.recipe,
            labelled=labelled,
            split=split,
        )
        if trainer.is_global_zero and not trainer.fast_dev_run:
            provenance = self._provenance(trainer)
            self.files = [
                write_outputs(each, directory, several=len(self.amounts) > 1, provenance=provenance)
                for each in self.evaluations
            ]
            for evaluation, files in zip(self.evaluations, self.files, strict=True):
                log_pruning(trainer, evaluation, files, dense_path=self.dense_path)
        if trainer.is_global_zero:
            print_pruning(self.evaluations, self.files, dense=self.dense_path, config=directory / "config.yaml")
        self._apply(trainer, pl_module, name, directory)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what an interrupted fit leaves behind."""
        if isinstance(exception, KeyboardInterrupt):
            best = _best_path(trainer)
            kept = (
                f"the best checkpoint so far is {best}; mlprank prune takes it"
                if best
                else "no checkpoint has been written yet"
            )
            rank_zero_info(f"Interrupted, nothing was pruned: {kept}.")

    def _dense(self, trainer: Trainer, pl_module: LightningModule, directory: Path) -> nn.Module:
        """Copy the trainer's module with the best checkpoint's weights where there is one; note where the dense weights are."""
        dense = with_state(pl_module, {})
        best = _best_path(trainer)
        if best is not None:
            try:
                dense.load_state_dict(read_checkpoint(best)["state_dict"])
            except ValueError as error:
                rank_zero_warn(f"{error}; the network is pruned with its last weights instead of its best")
            else:
                self.dense_path = best
                return dense
        if not trainer.fast_dev_run:
            self.dense_path = directory / "dense.ckpt"
            trainer.save_checkpoint(self.dense_path, weights_only=True)
        return dense

    def _provenance(self, trainer: Trainer) -> dict[str, Any]:
        source = self.dense_path
        data = type(trainer.datamodule).__name__ if trainer.datamodule is not None else None
        return {
            "source": None if source is None else str(source),
            "source_sha256": None if source is None or not source.is_file() else sha256(source),
            "calibration": {"data": data, "num_samples": self.num_samples, "seed": self.seed},
        }

    def _apply(self, trainer: Trainer, pl_module: LightningModule, name: str, directory: Path) -> None:
        """Let the trainer's module be the pruned network, and `best` the checkpoint of that."""
        result = self.evaluations[-1].result
        network = pl_module.get_submodule(name)
        if self.apply == "none":
            return
        if self.apply == "mask":
            apply_masks(network, result)
        else:
            narrow(network, result.slices, biases=result.biases)
            adopt_state(network, result.model)
            if isinstance(pl_module, ImageClassifier):
                pl_module.pruning = artifact_record(result)
        checkpoints = trainer.checkpoint_callback
        if isinstance(checkpoints, ModelCheckpoint) and checkpoints.best_model_path:
            path = directory / ("masked.ckpt" if self.apply == "mask" else "removed.ckpt")
            trainer.save_checkpoint(path, weights_only=True)
            checkpoints.best_model_path = str(path)


def network_name(module: nn.Module) -> str:
    """Return the name of the submodule that a LightningModule's `forward` stands for; empty for the module itself.

    Raises:
        ValueError: If it has no `forward` and not exactly one submodule with parameters.
    """
    if type(module).forward is not LightningModule.forward:
        return ""
    children = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    if len(children) != 1:
        raise ValueError(
            f"{type(module).__name__} has no forward and {len(children)} submodules with parameters ({', '.join(children)}); say which to"
            ' prune, as in PruningCallback(network="net")'
        )
    return children[0]


def _best_path(trainer: Trainer) -> Path | None:
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    return Path(path) if path and Path(path).is_file() else None
