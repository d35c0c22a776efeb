"""When to prune a Lightning run: at the end of `fit`, or step by step while it trains."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info

from mlprank.callbacks.data import Settings, find_inputs
from mlprank.callbacks.finish import Dense, Finish, best_path, keep_dense
from mlprank.callbacks.run import check_writable, is_lightning, run_directory
from mlprank.callbacks.schedule import Linear, Schedule, get_schedule, resolve_schedule
from mlprank.callbacks.training import (
    TrainingMasks,
    averaged_modules,
    described_pruning,
    plain_state_dicts,
    sharpen_masks,
)
from mlprank.pruning.evaluation import Evaluation, from_here
from mlprank.pruning.recipe import document_fields, make_recipe, takes_recipe
from mlprank.surgery.masks import compute_own


class PruningCallback(Callback):
    """Prune the network when fitting ends, or while it trains.

    When fitting ends, the best checkpoint's weights are pruned where there is one, otherwise the last ones, in a copy.
    Written to the run directory: `pruned.ckpt`, `scores.safetensors`, `metrics.json` and `pruning.png`, one set for
    each amount. Afterwards `trainer.test()` tests the pruned network, as does `ckpt_path="best"`; the path of the dense
    checkpoint is in `dense_path`.

    With a `schedule` or `finetune_epochs` neurons go under torch's pruning masks at the start of epochs, by the
    network's weights and the calibration data at that time; what is left is trained on. Amounts are absolute, and a
    pruned neuron stays pruned. Checkpoints have the module's own keys all the time, with pruned rows at zero.

    Neurons are ranked on the data module's `calibration_dataloader(num_samples, seed)` where it has one, otherwise on
    the training data, with the inputs that the network gets from `training_step`. Forward hooks that only observe see
    nothing of it.

    Args:
        amount: The share of neurons to remove, in [0, 1); several shares give a network each, and the last one is
            applied; a mapping gives shares by layer name.
        network: Name of the submodule to prune; by default what `forward` runs, or the only submodule where there is no
            `forward`.
        apply: What becomes of the trainer's module: "mask" gives it the masked weights and torch's own pruning masks,
            "remove" the narrow network, "none" leaves it alone.
        schedule: Prune in steps while training: "linear", "cubic", a registered name, a dotted path, or an instance
            with epochs, such as `Cubic(start_epoch=2)`; None prunes in one step.
        finetune_epochs: Epochs of training after the last step; None for a quarter of them with a schedule, and none
            without.
        dirpath: Where to write; the run directory by default.
        max_drop: Percentage points of validation top-1 accuracy that may be lost (of agreement with the dense network's
            predictions, where there are no labels): finds the smallest network at the end of fit, by `mlprank.shrink`,
            in place of an amount.
        network_inputs: Makes the network's inputs of a batch, where neither the batch's first entry nor what the
            network gets while training is right: a function, or its dotted path.
        **fields: The fields of `Recipe`, by name.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If `schedule` is not a schedule.

    Examples:
        >>> from mlprank.datamodules import DigitsDataModule
        >>> from mlprank.models import MLP
        >>> from mlprank.models.classifier import ImageClassifier
        >>> callback = PruningCallback(amount=0.5, apply="remove", dirpath="pruned")
        >>> trainer = Trainer(
        ...     max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> module = ImageClassifier(MLP(64, [32], 10))
        >>> trainer.fit(module, DigitsDataModule())
        MLP pruned by weighted_pagerank, local, least_squares, dag
        ...
        >>> module.model.fc1.out_features
        16
    """

    @takes_recipe
    def __init__(
        self,
        amount: float | list[float] | dict[str, float] = 0.5,
        *,
        network: str | None = None,
        apply: Literal["mask", "remove", "none"] = "mask",
        schedule: dict[str, Any] | str | Schedule | None = None,
        finetune_epochs: int | None = None,
        dirpath: str | None = None,
        max_drop: float | None = None,
        network_inputs: str | Callable[[Any], Any] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        amounts = tuple(amount) if isinstance(amount, list) else (amount,)
        recipe, inputs = make_recipe(None, fields), find_inputs(network_inputs)
        self.settings = Settings(amounts, recipe, network, apply, inputs, max_drop)
        self.schedule, self.finetune_epochs = get_schedule(schedule, finetune_epochs=finetune_epochs), finetune_epochs
        remedy = "or leave out schedule and finetune_epochs"
        if self.in_training and len(amounts) > 1:
            raise ValueError(f"amount={amount}: pruning in training reaches one amount; give one, {remedy}")
        if self.in_training and max_drop is not None:
            raise ValueError(
                f"max_drop={max_drop}: pruning in training has to know its amount; give an amount, {remedy}"
            )
        if self.schedule is not None:
            self.schedule.check_target(amounts[0])
        self.dirpath = dirpath
        self.dense: Dense | None = None
        self.evaluations: list[Evaluation] = []
        self.files: list[dict[str, Path]] = []
        self.masks = TrainingMasks(self.settings)
        self._directory = Path()
        self._fitting = self._finishing = False

    @property
    def in_training(self) -> bool:
        """Whether anything is pruned before training ends."""
        return self.schedule is not None or bool(self.finetune_epochs)

    @property
    def dense_path(self) -> Path | None:
        """The checkpoint of the dense network."""
        return None if self.dense is None else self.dense.path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot go together, and let the module load masked and dense checkpoints alike."""
        self._fitting = stage == "fit"
        if self._fitting:
            check_alone(self, trainer.callbacks)
            if refused := refused_strategy(trainer.strategy):
                raise ValueError(refused)
            self.masks, self.dense, self._finishing = TrainingMasks(self.settings), None, False
        for module in [pl_module, *averaged_modules(trainer)]:
            plain_state_dicts(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the directory can be written to and the schedule fits; go on with the masks of a resumed run."""
        self._directory = run_directory(trainer, self.dirpath)
        if not trainer.fast_dev_run:
            check_writable(trainer, self._directory)
        if self.masks.schedule is None and self.in_training:
            epochs = {"finetune_epochs": self.finetune_epochs, "max_epochs": trainer.max_epochs}
            self.masks.schedule = Linear(0, 0) if trainer.fast_dev_run else resolve_schedule(self.schedule, **epochs)
        for module in averaged_modules(trainer):
            plain_state_dicts(module)
        self.masks.hold(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that pruning will work, and keep a resumed network's masks working."""
        self.masks.check(trainer, pl_module)
        self.masks.keep_working(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune as much as the schedule says."""
        epoch = trainer.current_epoch
        amount = self.masks.due(epoch)
        if amount is None:
            return
        if self.dense is None and not trainer.fast_dev_run:
            self.dense = keep_dense(trainer, self._directory / "dense.ckpt")
        self.masks.prune(trainer, pl_module, amount)
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/achieved_amount": self.masks.achieved}, step=trainer.global_step)
        rank_zero_info(described_pruning(self.masks.history[-1]) + ".")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune a copy of the best weights, write and log what came out, and apply it to the trainer's module."""
        schedule, self._finishing = self.masks.schedule, True
        if schedule is not None and not self.masks.complete:
            rank_zero_info(
                f"Training ended before epoch {schedule.end_epoch}, in which the schedule ends: the rest of the way "
                f"from {self.masks.achieved:.1%} to amount={self.settings.amounts[0]} is pruned now, without "
                "fine-tuning."
            )
        finish = Finish(trainer, pl_module, self.settings, self._directory, masks=self.masks, dense=self.dense)
        self.evaluations, self.files, self.dense = finish.prune()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what an interrupted fit leaves behind.

        Raises:
            ValueError: Where a process that the strategy has started refused to train; said here, in the first process.
        """
        self.masks.hooks.stop(pl_module)
        refused = refused_strategy(trainer.strategy)
        if refused and not isinstance(exception, ValueError | KeyboardInterrupt):
            raise ValueError(refused) from exception
        if isinstance(exception, KeyboardInterrupt):
            best = best_path(trainer) or self.dense_path
            kept = f"the best checkpoint so far is {from_here(Path(best))}; mlprank prune takes it" if best else ""
            rank_zero_info(f"Interrupted{self._interrupted()}: {kept or 'no checkpoint has been written yet'}.")

    def _interrupted(self) -> str:
        if self._finishing:
            return " while pruning, whose files were not written"
        if self.masks.rows:
            done = f"{self.masks.achieved:.1%} of the neurons are pruned"
            return f", {done} and fit(ckpt_path=...) goes on from any checkpoint"
        return ", nothing was pruned"

    @cached_property  # asked for around every hook, in every step
    def state_key(self) -> str:
        """Name of the state in a checkpoint, which tells callbacks of different choices apart."""
        return self._generate_state_key(**self._plain())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a checkpoint that was written with other choices.

        Raises:
            ValueError: If amount, measure or another choice differs; it is named.
        """
        for key, state in checkpoint.get("callbacks", {}).items():
            if self._fitting and str(key).startswith(f"{type(self).__qualname__}{{"):
                check_resumed(self._plain(), state["settings"])

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain types and tensors."""
        dense_path = None if self.dense_path is None else str(self.dense_path)
        dense = None if self.dense is None else self.dense.what
        return {"settings": self._plain(), "dense_path": dense_path, "dense": dense, **self.masks.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; a checkpoint that is only tested changes nothing here."""
        if not self._fitting:
            return
        self.masks.load_state_dict(state_dict, self.schedule)
        path, what = state_dict["dense_path"], state_dict.get("dense") or "the dense network when pruning began"
        self.dense = None if path is None else Dense(Path(path), what)

    def _plain(self) -> dict[str, Any]:
        schedule = None if self.schedule is None else self.schedule.plain()
        return {**self.settings.plain(), "schedule": schedule, "finetune_epochs": self.finetune_epochs}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep masks sharp where weights are averaged."""
        sharpen_masks(trainer, pl_module, self.settings.network, rows=self.masks.rows)

    on_train_end = on_validation_epoch_start

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep masks sharp where weights are averaged."""
        sharpen_masks(trainer, pl_module, self.settings.network, rows=self.masks.rows)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute masked weights that the module holds itself: a trainer uses it without calling it."""
        compute_own(pl_module)
        self.masks.hooks.start(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Know which hooks change what the network computes, after the first step."""
        self.masks.hooks.stop(pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Compute masked weights that the module holds itself."""
        compute_own(pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start


PruningCallback.__doc__ = document_fields(PruningCallback.__doc__, skipped={"amount"})


def check_resumed(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise a ValueError if a choice of a resumed run differs from that in its checkpoint; both values are named."""

    def short(value: Any) -> str:
        """A measure or method by its name, with its parameters."""
        if not (isinstance(value, Mapping) and "name" in value):
            return str(value)
        parameters = ", ".join(f"{key}={own}" for key, own in value.items() if key != "name")
        return f"{value['name']}({parameters})" if parameters else str(value["name"])

    for name, value in now.items():
        if name in before and before[name] != value:
            raise ValueError(
                f"PruningCallback({name}={short(value)}) cannot resume a checkpoint that was written with "
                f"{name}={short(before[name])}; resume with that {name}, or start a new run from the checkpoint's "
                "weights"
            )


def check_alone(callback: Callback, callbacks: Sequence[Callback]) -> None:
    """Raise a ValueError if another callback prunes the same network."""
    if any(isinstance(other, type(callback)) and other is not callback for other in callbacks):
        raise ValueError(
            "the trainer has two PruningCallbacks, and each would prune what the other has left, so that neither "
            "amount came out; use one, with a list for several networks (amount=[0.3, 0.5]) or a mapping for several "
            "layers (amount={'fc1': 0.3, 'fc2': 0.5})"
        )
    if any(is_lightning(other, "ModelPruning") for other in callbacks):
        raise ValueError(
            "the trainer has a PruningCallback and Lightning's ModelPruning, which mask the same weights; use one of "
            "them"
        )


def refused_strategy(strategy: Strategy) -> str | None:
    """Say why pruning cannot go along with a strategy, and what to do; None where it can."""
    name = type(strategy).__name__
    if is_lightning(strategy, "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"):
        return (
            f"strategy: {name} splits the weights over processes, and ranking neurons needs whole layers; train without"
            " the PruningCallback and prune the checkpoint (mlprank prune --ckpt_path ..., or mlprank.prune), or use"
            ' strategy="ddp"'
        )
    if is_lightning(strategy.launcher, "_MultiProcessingLauncher"):
        return (
            f"strategy: {name} trains in processes of its own, which end with fit and take with them what the"
            ' PruningCallback has measured and written down; in a script use strategy="ddp", in a notebook one device'
            " (devices=1), or train without the callback and call mlprank.prune(module, data) afterwards"
        )
    return None
