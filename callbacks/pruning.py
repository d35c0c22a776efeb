"""When to prune a Lightning run: at the end of `fit`, or step by step while it trains; and what happens at its end."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from mlprank.artifact.checkpoint import read_weights, sha256
from mlprank.artifact.record import remember
from mlprank.callbacks import run, training
from mlprank.callbacks.schedule import Linear, Schedule, get_schedule, resolve_schedule
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.evaluation import (
    Evaluation,
    evaluate,
    from_here,
    print_pruning,
    prune_amounts,
    scalars,
    write_outputs,
)
from mlprank.pruning.front import BudgetError
from mlprank.pruning.recipe import Recipe, document_fields, make_recipe, takes_recipe
from mlprank.pruning.shrink import DEFAULTS, shrink
from mlprank.surgery.copies import COMPILED
from mlprank.surgery.masks import apply_masks, bake_masks, compute_own, mask_rows, recompute_uncalled
from mlprank.surgery.narrow import adopt_state, narrow, network_state
from mlprank.utils.errors import first_line
from mlprank.utils.files import whole_file


@dataclass(frozen=True)
class Dense:
    """The network before its first pruning: its checkpoint, None where nothing is written, and which it is."""

    path: Path | None
    what: str


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
        recipe, inputs = make_recipe(None, fields), run.find_inputs(network_inputs)
        self.settings = run.Settings(amounts, recipe, network, apply, inputs, max_drop)
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
        self.masks = training.TrainingMasks(self.settings)
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
            self.masks, self.dense, self._finishing = training.TrainingMasks(self.settings), None, False
        for module in [pl_module, *training.averaged_modules(trainer)]:
            training.plain_state_dicts(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the directory can be written to and the schedule fits; go on with the masks of a resumed run."""
        self._directory = run.run_directory(trainer, self.dirpath)
        if not trainer.fast_dev_run:
            run.check_writable(trainer, self._directory)
        if self.masks.schedule is None and self.in_training:
            epochs = {"finetune_epochs": self.finetune_epochs, "max_epochs": trainer.max_epochs}
            self.masks.schedule = Linear(0, 0) if trainer.fast_dev_run else resolve_schedule(self.schedule, **epochs)
        for module in training.averaged_modules(trainer):
            training.plain_state_dicts(module)
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
        rank_zero_info(training.described(self.masks.history[-1]) + ".")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune a copy of the best weights, write and log what came out, and apply it to the trainer's module."""
        schedule, self._finishing = self.masks.schedule, True
        if schedule is not None and not self.masks.complete:
            rank_zero_info(
                f"Training ended before epoch {schedule.end_epoch}, in which the schedule ends: the rest of the way "
                f"from {self.masks.achieved:.1%} to amount={self.settings.amounts[0]} is pruned now, without "
                "fine-tuning."
            )
        self.evaluations, self.files = [], []
        self._prune(trainer, pl_module)

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
            done = ", nothing was pruned"
            if self._finishing:
                done = " while pruning, whose files were not written"
            elif self.masks.rows:
                share = f"{self.masks.achieved:.1%} of the neurons are pruned"
                done = f", {share} and fit(ckpt_path=...) goes on from any checkpoint"
            rank_zero_info(f"Interrupted{done}: {kept or 'no checkpoint has been written yet'}.")

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
        if self._fitting:
            self.masks.load_state_dict(state_dict, self.schedule)
            path, what = state_dict["dense_path"], state_dict.get("dense") or "the dense network when pruning began"
            self.dense = None if path is None else Dense(Path(path), what)

    def _plain(self) -> dict[str, Any]:
        schedule = None if self.schedule is None else self.schedule.plain()
        return {**self.settings.plain(), "schedule": schedule, "finetune_epochs": self.finetune_epochs}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Keep masks sharp where weights are averaged."""
        self.masks.sharpen(trainer, pl_module)

    on_validation_epoch_start = on_train_end = on_save_checkpoint

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute masked weights that the module holds itself, and watch its hooks in the first step."""
        compute_own(pl_module)
        self.masks.hooks.start(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Know which hooks change what the network computes, after the first step."""
        self.masks.hooks.stop(pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Compute masked weights that the module holds itself: a trainer uses it without calling it."""
        compute_own(pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _prune(self, trainer: Trainer, module: LightningModule) -> None:
        """Prune, write, log, print and apply; on all processes."""
        if not run.has_calibration_data(trainer):
            rank_zero_warn(
                "Nothing was pruned: the run has no training data to calibrate on (is limit_train_batches=0?)."
            )
            return
        settings, reduce, path = self.settings, partial(run.summed, trainer), self.dense_path
        before = None  # the network before its first pruning, where that was in training
        if path is not None and path.is_file():
            before = run.find_network(self._loaded(module, path), settings.network)
        source = self._source(trainer, module)
        network = run.find_network(source, settings.network)
        labelled, split = settings.labelled(trainer, source)
        calibration = settings.calibration(trainer, source)
        if settings.max_drop is not None:
            validation, _ = settings.labelled(trainer, source, choosing=True)
            given = {name: value for name, value in vars(settings.recipe).items() if value != getattr(Recipe(), name)}
            samples = given.get("num_samples", DEFAULTS["num_samples"]) or settings.num_samples
            given["num_samples"] = run.samples_of_rank(trainer, samples)
            try:
                front = shrink(network, calibration, validation, max_drop=settings.max_drop, reduce=reduce, **given)
            except BudgetError as error:
                rank_zero_warn(f"Nothing was pruned: {error}")
                return
            rank_zero_info(str(front))
            self.evaluations = [evaluate(front.best, labelled, split=split, reduce=reduce)]
        else:
            self.evaluations = prune_amounts(
                network,
                calibration,
                amounts=settings.amounts,
                recipe=settings.recipe_of_rank(trainer),
                labelled=labelled,
                split=split,
                dense=before,
                reduce=reduce,
            )
        for evaluation in self.evaluations:
            run.check_same_masks(trainer, evaluation.result.masks)
        if trainer.is_global_zero:
            self._write(trainer)
        self._apply(trainer, module, self.evaluations[-1])

    def _source(self, trainer: Trainer, module: LightningModule) -> nn.Module:
        """Copy the module with the weights to prune: the best, after training under masks those with all masks."""
        rows, best = self.masks.rows, best_path(trainer)
        checkpoints: Any = trainer.checkpoint_callback
        paths = [] if best is None else [best]
        if rows and run.is_lightning(checkpoints, "ModelCheckpoint"):
            upwards = checkpoints.mode == "max"
            kept = sorted(checkpoints.best_k_models.items(), key=lambda item: float(item[1]), reverse=upwards)
            paths = list(dict.fromkeys([Path(path) for path, _ in kept if Path(path).is_file()] + paths))
        for path in paths:
            try:
                loaded = self._loaded(module, path)
            except (ValueError, RuntimeError) as error:  # RuntimeError: it has other keys than the module
                rank_zero_warn(f"{path}: {first_line(error)}; it is passed over")
                continue
            network = run.find_network(loaded, self.settings.network)
            if rows:
                bake_masks(network)
                state = network_state(network)
                if any(bool((state[name][~kept.to(state[name].device)] != 0).any()) for name, kept in rows.items()):
                    continue
            mask_rows(network, rows)
            self.dense = self.dense or Dense(path, checkpoint_text(trainer, path))
            return loaded
        if self.dense is None:
            written = None if trainer.fast_dev_run else self._directory / "dense.ckpt"
            if written is not None:
                trainer.save_checkpoint(written, weights_only=True)
            self.dense = Dense(written, f"the dense network after {trainer.current_epoch} epochs, the last")
        return run.copied(module, self.masks.hooks.changing)

    def _loaded(self, module: LightningModule, path: Path) -> nn.Module:
        """Copy the module with a checkpoint's weights, and its masks."""
        state = read_weights(path)["state_dict"]
        loaded = run.copied(module, self.masks.hooks.changing)
        training.plain_state_dicts(loaded)
        plain = {key.replace(f"{COMPILED}.", ""): value for key, value in state.items()}
        loaded.load_state_dict(plain, strict=module.strict_loading)
        return loaded

    def _write(self, trainer: Trainer) -> None:
        """Write and log what came out, and say where from; in the first process."""
        assert self.dense is not None
        source, schedule = self.dense_path, self.masks.schedule
        if not trainer.fast_dev_run:
            data = None if trainer.datamodule is None else type(trainer.datamodule).__name__
            recipe, num_samples = self.settings.recipe, self.settings.num_samples
            provenance = {
                "source": None if source is None else str(source),
                "source_sha256": None if source is None or not source.is_file() else sha256(source),
                "dense": self.dense.what,
                "calibration": {"data": data, "num_samples": num_samples, "seed": recipe.seed},
                "schedule": None if schedule is None else schedule.plain(),
                "pruned_in_training": self.masks.history,
            }
            several = len(self.evaluations) > 1
            for evaluation in self.evaluations:
                files = write_outputs(evaluation, self._directory, several=several, provenance=provenance)
                self.files.append(files)
            for evaluation, files in zip(self.evaluations, self.files, strict=True):
                log_pruning(trainer, evaluation, files, dense_path=source)
        after = "" if schedule is None else ", trained on under masks since then"
        said = [f"Before: {self.dense.what}. After: the pruned network{after}."]
        if self.masks.history:
            said += ["Pruned while training:", *(f"  {training.described(each)}" for each in self.masks.history)]
        rank_zero_info("\n".join(said))
        print_pruning(self.evaluations, self.files, dense=source, config=self._directory / "config.yaml")

    def _apply(self, trainer: Trainer, module: LightningModule, evaluation: Evaluation) -> None:
        """Let the trainer's module be the pruned network, and `best` the checkpoint of that."""
        apply, result = self.settings.apply, evaluation.result
        if apply == "none":
            return
        with run.uncompiled(module):
            network = run.find_network(module, self.settings.network)
            if apply == "mask":
                apply_masks(network, result)
                recompute_uncalled(network, result.example)
            else:
                bake_masks(network)
                narrow(network, result.slices, biases=result.biases)
                adopt_state(network, result.model)
                remember(network, result.record())
                if isinstance(module, ImageClassifier):
                    module.pruning = result.record().plain()
        checkpoints: Any = trainer.checkpoint_callback
        if run.is_lightning(checkpoints, "ModelCheckpoint") and checkpoints.best_model_path:
            path = self._directory / ("masked.ckpt" if apply == "mask" else "removed.ckpt")
            with training.averaging_done(trainer):
                trainer.save_checkpoint(path, weights_only=True)
            checkpoints.best_model_path = str(path)


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
    if any(run.is_lightning(other, "ModelPruning") for other in callbacks):
        raise ValueError(
            "the trainer has a PruningCallback and Lightning's ModelPruning, which mask the same weights; use one of "
            "them"
        )


def refused_strategy(strategy: Strategy) -> str | None:
    """Say why pruning cannot go along with a strategy, and what to do; None where it can."""
    name = type(strategy).__name__
    if run.is_lightning(strategy, "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"):
        return (
            f"strategy: {name} splits the weights over processes, and ranking neurons needs whole layers; train without"
            " the PruningCallback and prune the checkpoint (mlprank prune --ckpt_path ..., or mlprank.prune), or use"
            ' strategy="ddp"'
        )
    if run.is_lightning(strategy.launcher, "_MultiProcessingLauncher"):
        return (
            f"strategy: {name} trains in processes of its own, which end with fit and take with them what the"
            ' PruningCallback has measured and written down; in a script use strategy="ddp", in a notebook one device'
            " (devices=1), or train without the callback and call mlprank.prune(module, data) afterwards"
        )
    return None


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
    return Dense(path, f"{checkpoint_text(trainer, best)} before pruning began")


def checkpoint_text(trainer: Trainer, path: Path) -> str:
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


def log_pruning(
    trainer: Trainer, evaluation: Evaluation, files: Mapping[str, Path], *, dense_path: Path | None
) -> None:
    """Log the numbers of a pruning to every logger, and tables, histograms, picture and files where they fit."""
    for logger in trainer.loggers:
        logger.log_metrics(scalars(evaluation), step=trainer.global_step)
        if run.is_lightning(logger, "WandbLogger"):
            _log_wandb(logger, evaluation, files, dense_path)
        elif run.is_lightning(logger, "TensorBoardLogger"):
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
    session = logger.experiment
    session.log(content)
    metadata = {"recipe": result.recipe.plain(), "achieved": result.achieved, "source": str(dense_path)}
    if dense_path is not None and dense_path.is_file():
        dense = wandb.Artifact(f"dense-{session.id}", type="model")
        dense.add_file(str(dense_path))
        session.log_artifact(dense)
        if not session.offline:
            session.use_artifact(dense)
    pruned = wandb.Artifact(f"{files['pruned network'].stem}-{session.id}", type="pruned-model", metadata=metadata)
    pruned.add_file(str(files["pruned network"]))
    session.log_artifact(pruned)
