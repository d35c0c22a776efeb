"""When to prune a Lightning run: at the end of `fit`, or step by step while it trains; and what happens at its end."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_weights, sha256
from mlprank.artifact.record import remember
from mlprank.callbacks import run
from mlprank.callbacks.schedule import EPOCHS, Amount, Linear, Schedule, Steps, get_schedule, resolve_schedule
from mlprank.compensation import Regression
from mlprank.graph.program import as_inputs
from mlprank.graph.records import Graph
from mlprank.models.classifier import ImageClassifier
from mlprank.pruning.evaluation import Evaluation, evaluate, from_here, print_pruning, prune_amounts, write_outputs
from mlprank.pruning.front import BudgetError, Budgets
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.recipe import Recipe, document_fields, make_recipe, takes_recipe
from mlprank.pruning.refine import Refinement
from mlprank.pruning.shrink import DEFAULTS, shrink
from mlprank.surgery.masks import (
    COMPILED,
    apply_masks,
    bake_masks,
    compute_own,
    mask_rows,
    recompute_uncalled,
    refresh_masked,
    sharpen_masks,
    without_compiled,
    write_weights,
)
from mlprank.surgery.narrow import narrow, network_state
from mlprank.utils.errors import check_amount, check_choice, first_line
from mlprank.utils.files import whole_file
from mlprank.utils.modules import Hook, replace_hook, users_hooks, watch_hooks
from mlprank.utils.registry import imported


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
        self.amounts: tuple[Amount, ...] = tuple(amount) if isinstance(amount, list) else (amount,)
        self.recipe = make_recipe(None, fields)  # all choices but the amount
        self.network, self.apply, self.max_drop, self.dirpath = network, apply, max_drop, dirpath
        self.inputs = imported("network_inputs", network_inputs) if isinstance(network_inputs, str) else network_inputs
        self.schedule, self.finetune_epochs = get_schedule(schedule, finetune_epochs=finetune_epochs), finetune_epochs
        self._check_arguments(amount)
        self._directory = Path()
        self._fitting = False
        self._begin()

    def _check_arguments(self, amount: Any) -> None:
        """Raise for an argument that is out of range, or does not go with another one."""
        if not self.amounts:
            raise ValueError("amount=[] holds no amount; give at least one, such as 0.5")
        for each in self.amounts:
            check_amount(each)
        check_choice("apply", self.apply, ("mask", "remove", "none"))
        if self.max_drop is not None:
            Budgets(max_drop=self.max_drop)
            if self.amounts != (Recipe().amount,):
                raise ValueError(
                    f"amount={amount} and max_drop={self.max_drop} contradict each other: max_drop finds the amount; "
                    "give one of them"
                )
        if self.inputs is not None and not callable(self.inputs):
            raise TypeError(
                f"network_inputs={self.inputs!r} is not a function; give one that makes the network's inputs of a "
                'batch, such as lambda batch: batch["image"], or its dotted path'
            )
        if self.in_training and (len(self.amounts) > 1 or self.max_drop is not None):
            given = f"amount={amount}" if self.max_drop is None else f"max_drop={self.max_drop}"
            raise ValueError(
                f"{given}: pruning in training reaches one amount, which is known at its beginning; give one, or leave "
                "out schedule and finetune_epochs"
            )
        first = self.amounts[0]
        for target in first.values() if isinstance(first, Mapping) else [first]:
            if self.schedule is not None and target < self.schedule.initial:
                raise ValueError(
                    f"schedule: it goes down from initial={self.schedule.initial} to amount={target}; pruned neurons "
                    "do not come back, so lower initial or raise amount"
                )

    def _begin(self) -> None:
        """Know nothing of an earlier fit."""
        self.evaluations: list[Evaluation] = []
        self.files: list[dict[str, Path]] = []
        self.dense_path: Path | None = None  # the checkpoint of the dense network, where one is written
        self.dense_text = ""  # which network that is, in words; empty until it is known
        # Of every parameter that is masked in training, shape (n_out,), True for the rows that stay.
        self.rows: dict[str, Tensor] = {}
        # Of every pruning in training: epoch, achieved amount, widths by layer.
        self.history: list[dict[str, Any]] = []
        self._epoch = -1  # of the last one
        self._finishing = False
        self._resolved: Steps | None = None  # the schedule, once the length of training is known
        # The user's hooks that change what the network computes; the others only observe, are put aside in copies and
        # see nothing of pruning.
        self._changing: set[Hook] = set()
        self._watched: dict[Hook, Callable[..., Any]] | None = None
        self._graph: Graph | None = None

    @property
    def in_training(self) -> bool:
        """Whether anything is pruned before training ends."""
        return self.schedule is not None or bool(self.finetune_epochs)

    @property
    def achieved(self) -> float:
        """Neurons that are pruned in training as a share of the neurons of the prunable layers."""
        return float(self.history[-1]["achieved"]) if self.history else 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot go together, and let the module load masked and dense checkpoints alike."""
        self._fitting = stage == "fit"
        if self._fitting:
            if any(isinstance(other, type(self)) and other is not self for other in trainer.callbacks):
                raise ValueError(
                    "the trainer has two PruningCallbacks, and each would prune what the other has left, so that "
                    "neither amount came out; use one, with a list for several networks (amount=[0.3, 0.5]) or a "
                    "mapping for several layers (amount={'fc1': 0.3, 'fc2': 0.5})"
                )
            if any(run.is_lightning(other, "ModelPruning") for other in trainer.callbacks):
                raise ValueError(
                    "the trainer has a PruningCallback and Lightning's ModelPruning, which mask the same weights; use "
                    "one of them"
                )
            if refused := run.refused_strategy(trainer.strategy):
                raise ValueError(refused)
            self._begin()
        for module in [pl_module, *run.averaged_modules(trainer)]:
            run.plain_state_dicts(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the directory can be written to and the schedule fits; go on with the masks of a resumed run."""
        self._directory = run.run_directory(trainer, self.dirpath)
        if self._resolved is None and self.in_training:
            epochs = {"finetune_epochs": self.finetune_epochs, "max_epochs": trainer.max_epochs}
            self._resolved = Linear(0, 0) if trainer.fast_dev_run else resolve_schedule(self.schedule, **epochs)
        averaged = run.averaged_modules(trainer)
        for module in averaged:
            run.plain_state_dicts(module)
        for module in [pl_module, *averaged] if self.rows else []:  # their weights have been read already
            with without_compiled(module):
                mask_rows(self._network(module), self.rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that pruning will work; let a resumed run's masks work where weights are read without their layer."""
        if run.draws(trainer) or trainer.train_dataloader is not None:
            try:
                self._check(trainer, pl_module)
            except (TypeError, ValueError):
                self._changing = set(users_hooks(pl_module))
                if not self._changing:
                    raise
                self._check(trainer, pl_module)  # a hook may be what makes the inputs fit
        if self.rows:
            copy = run.copied(pl_module, self._changing)
            batches = run.calibration(trainer, copy, self._network(copy), self.recipe, self.inputs, limit=1)
            with run.uncompiled(pl_module):
                recompute_uncalled(self._network(pl_module), as_inputs(next(iter(batches)))[:1])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune as much as the schedule says."""
        epoch, schedule = trainer.current_epoch, self._resolved
        scheduled = -1 if schedule is None else min(epoch, schedule.end_epoch or 0)
        if schedule is None or self._epoch >= scheduled:
            return
        amount = schedule.at(scheduled, self.amounts[0])
        if amount is None or not (any(amount.values()) if isinstance(amount, Mapping) else amount):
            return
        if not self.dense_text and not trainer.fast_dev_run:
            best, monitor = run.best_path(trainer), getattr(trainer.checkpoint_callback, "monitor", None)
            self.dense_path = self._directory / "dense.ckpt"
            if best is None or monitor is None:
                trainer.save_checkpoint(self.dense_path, weights_only=True)
                self.dense_text = f"the dense network after {epoch} epochs, when pruning began"
            else:
                if trainer.is_global_zero:
                    with whole_file(self.dense_path) as temporary:
                        shutil.copyfile(best, temporary)
                trainer.strategy.barrier()
                self.dense_text = f"{run.checkpoint_text(trainer, best)} before pruning began"
        self.mask(trainer, pl_module, amount)
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/achieved_amount": self.achieved}, step=trainer.global_step)
        rank_zero_info(run.described(self.history[-1]) + ".")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune a copy of the best weights, write and log what came out, and apply it to the trainer's module."""
        schedule, self._finishing = self._resolved, True
        if schedule is not None and self._epoch < (schedule.end_epoch or 0):
            rank_zero_info(
                f"Training ended before epoch {schedule.end_epoch}, in which the schedule ends: the rest of the way "
                f"from {self.achieved:.1%} to amount={self.amounts[0]} is pruned now, without fine-tuning."
            )
        self._prune(trainer, pl_module)

    def mask(self, trainer: Trainer, module: LightningModule, amount: Amount) -> None:
        """Mask the run's module in place, up to an absolute amount; call it on all processes.

        Parameters stay the same objects, so that an optimizer goes on with the state that it has for them.
        """
        pruning = self._read(trainer, run.copied(module, self._changing))
        if isinstance(self.recipe.compensation, Regression):
            # No bias may be created: an optimizer would not know that parameter.
            there, layers = {name: name for name in pruning.state}, []
            for layer in pruning.graph.layers:
                calls = [dataclasses.replace(call, bias=there.get(call.bias or "")) for call in layer.calls]
                layers.append(dataclasses.replace(layer, calls=tuple(calls)))
            pruning.graph = dataclasses.replace(pruning.graph, layers=tuple(layers))
        result = pruning.run(amount=amount, refine=0)  # only masks are wanted
        for name, kept in result.parameter_masks.items():
            self.rows[name] = kept & self.rows[name].to(kept.device) if name in self.rows else kept
        run.check_same_masks(trainer, self.rows)
        before = dict(pruning.model.named_parameters())
        after = {name: weight.detach() for name, weight in result.masked.named_parameters()}
        changed = {name: weight for name, weight in after.items() if not torch.equal(weight, before[name])}
        if trainer.world_size > 1:  # every process gets the first one's weights
            changed = trainer.strategy.broadcast({name: weight.cpu() for name, weight in changed.items()})
        for each in [module, *run.averaged_modules(trainer)]:  # averages start anew
            with run.uncompiled(module), without_compiled(each):
                network = self._network(each)
                mask_rows(network, self.rows)
                write_weights(network, changed)
                if each is module:
                    recompute_uncalled(network, result.example)
        self._graph, self._epoch = pruning.graph, trainer.current_epoch
        widths = {name: list(sizes) for name, sizes in result.widths.items()}
        self.history.append({"epoch": self._epoch, "achieved": result.achieved, "widths": widths})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say what an interrupted fit leaves behind.

        Raises:
            ValueError: Where a process that the strategy has started refused to train; said here, in the first process.
        """
        self.on_train_batch_end(trainer, pl_module)
        refused = run.refused_strategy(trainer.strategy)
        if refused and not isinstance(exception, ValueError | KeyboardInterrupt):
            raise ValueError(refused) from exception
        if isinstance(exception, KeyboardInterrupt):
            best = run.best_path(trainer) or self.dense_path
            share = f"{self.achieved:.1%} of the neurons are pruned"
            going_on = f", {share} and fit(ckpt_path=...) goes on from any checkpoint" if self.rows else None
            done = " while pruning, whose files were not written" if self._finishing else going_on
            kept = f"the best checkpoint so far is {from_here(best)}; mlprank prune takes it" if best else None
            rank_zero_info(
                f"Interrupted{done or ', nothing was pruned'}: {kept or 'no checkpoint has been written yet'}."
            )

    @cached_property  # asked for around every hook, in every step
    def state_key(self) -> str:
        """Name of the state in a checkpoint, which tells callbacks of different choices apart."""
        return self._generate_state_key(**self._plain())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a checkpoint that was written with another amount, measure or other choice; it is named."""
        for key, state in checkpoint.get("callbacks", {}).items() if self._fitting else ():
            before = state["settings"] if str(key).startswith(f"{type(self).__qualname__}{{") else {}
            for name, value in self._plain().items():
                if name in before and before[name] != value:
                    raise ValueError(
                        f"PruningCallback({name}={value!r}) cannot resume a checkpoint that was written with "
                        f"{name}={before[name]!r}; resume with that {name}, or start a new run from the checkpoint's "
                        "weights"
                    )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain types and tensors."""
        dense_path = None if self.dense_path is None else str(self.dense_path)
        return {
            "settings": self._plain(),
            "dense_path": dense_path,
            "dense": self.dense_text or None,
            "masks": {name: kept.cpu() for name, kept in self.rows.items()},
            "epoch": self._epoch,
            "history": list(self.history),
            "schedule": None if self._resolved is None else self._resolved.plain(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; a checkpoint that is only tested changes nothing here."""
        if not self._fitting:
            return
        self.rows, self._epoch = dict(state_dict["masks"]), state_dict["epoch"]
        last: dict[str, Any] = {"epoch": self._epoch, "achieved": state_dict.get("achieved"), "widths": {}}
        # Version 0.1.0 knew the last pruning only.
        self.history = list(state_dict.get("history", [last] if self.rows else []))
        shape, reached = self.schedule or Linear(), state_dict["schedule"] or {}
        epochs: dict[str, Any] = {name: reached.get(name) for name in EPOCHS}
        self._resolved = dataclasses.replace(shape, **epochs) if reached else None
        path, what = state_dict["dense_path"], state_dict.get("dense") or "the dense network when pruning began"
        self.dense_path, self.dense_text = (None, "") if path is None else (Path(path), what)

    def _plain(self) -> dict[str, Any]:
        """Return what a resumed run must share, as plain types."""
        amounts = [dict(each) if isinstance(each, Mapping) else float(each) for each in self.amounts]
        plain = {**self.recipe.plain(), "amount": amounts[0] if len(amounts) == 1 else amounts}
        plain |= {} if self.max_drop is None else {"max_drop": self.max_drop}
        schedule = None if self.schedule is None else self.schedule.plain()
        return {**plain, "schedule": schedule, "finetune_epochs": self.finetune_epochs}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Undo what averaging did to the masks of the module and its averages, which trade places in validation.

        Masked weights leave their autograd graph on the way, so that the module can be copied between epochs.
        """
        if self.rows:
            refresh_masked(pl_module)
        averaged = run.averaged_modules(trainer) if self.rows else []
        for each in [pl_module, *averaged] if averaged else []:
            with without_compiled(each):
                sharpen_masks(self._network(each))
                mask_rows(self._network(each), self.rows)

    on_validation_epoch_start = on_train_end = on_save_checkpoint

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compute masked weights that the module holds itself, and watch its hooks in the first step."""
        compute_own(pl_module)
        if self._watched is None:
            with run.uncompiled(pl_module):
                self._watched = watch_hooks(pl_module, self._changing)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Let the hooks be as they were, after the first step: what they change is known."""
        if self._watched:
            with run.uncompiled(pl_module):
                for place, hook in self._watched.items():
                    replace_hook(pl_module, place, hook)
            self._watched = {}

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Compute masked weights that the module holds itself: a trainer uses it without calling it."""
        compute_own(pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def _network(self, module: nn.Module) -> nn.Module:
        return run.find_network(module, self.network)

    def _recipe_of_rank(self, trainer: Trainer, num_samples: int | None = None) -> Recipe:
        """Return the recipe with the samples that one process reads: all of a drawn set, its share of training data."""
        samples, shared = num_samples or self.recipe.num_samples, 1 if run.draws(trainer) else trainer.world_size
        return dataclasses.replace(self.recipe, num_samples=samples and -(-samples // shared))

    def _read(self, trainer: Trainer, copy: nn.Module, *, limit: int | None = None) -> Pruning:
        network, recipe, reduce = self._network(copy), self._recipe_of_rank(trainer), partial(run.summed, trainer)
        calibration = run.calibration(trainer, copy, network, self.recipe, self.inputs, limit=limit)
        return Pruning(network, calibration, recipe, reduce=reduce, traced=self._graph)

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Prune a copy on two real batches, and read the data that accuracy is measured on, before hours are spent.

        What would be refused at the end of training is so refused at its beginning. Call it on all processes.
        """
        refine, copy = self.recipe.refine, run.copied(module, self._changing)
        pruning, network = self._read(trainer, copy, limit=2), self._network(copy)
        once = dataclasses.replace(refine, steps=1) if isinstance(refine, Refinement) else 0
        for amount in self.amounts:
            pruning.run(amount=amount, refine=once)
        run.labelled(trainer, copy, network, self.inputs)
        if self.max_drop is not None and not run.labelled(trainer, copy, network, self.inputs, choosing=True)[0]:
            raise ValueError(
                f"max_drop={self.max_drop} chooses by validation data, and the run has none on every process; "
                "give it a val_dataloader, or prune by an amount"
            )
        self._graph = pruning.graph if self._resolved is not None else None

    def _prune(self, trainer: Trainer, module: LightningModule) -> None:
        """Prune, write, log, print and apply; on all processes."""
        if not run.draws(trainer) and trainer.train_dataloader is None:
            rank_zero_warn(
                "Nothing was pruned: the run has no training data to calibrate on (is limit_train_batches=0?)."
            )
            return
        reduce, path = partial(run.summed, trainer), self.dense_path
        # The network before its first pruning, where that was in training.
        before = self._network(self._loaded(module, path)) if path is not None and path.is_file() else None
        source = self._source(trainer, module)
        network = self._network(source)
        calibration = run.calibration(trainer, source, network, self.recipe, self.inputs)
        labelled, split = run.labelled(trainer, source, network, self.inputs)
        if self.max_drop is not None:
            validation, _ = run.labelled(trainer, source, network, self.inputs, choosing=True)
            given = {name: value for name, value in vars(self.recipe).items() if value != getattr(Recipe(), name)}
            samples = given.get("num_samples", DEFAULTS["num_samples"])
            given["num_samples"] = self._recipe_of_rank(trainer, samples).num_samples
            try:
                front = shrink(network, calibration, validation, max_drop=self.max_drop, reduce=reduce, **given)
            except BudgetError as error:
                rank_zero_warn(f"Nothing was pruned: {error}")
                return
            rank_zero_info(str(front))
            self.evaluations = [evaluate(front.best, labelled, split=split, reduce=reduce)]
        else:
            given = {"amounts": self.amounts, "recipe": self._recipe_of_rank(trainer), "dense": before}
            self.evaluations = prune_amounts(
                network, calibration, labelled=labelled, split=split, reduce=reduce, **given
            )
        for evaluation in self.evaluations:
            run.check_same_masks(trainer, evaluation.result.masks)
        if trainer.is_global_zero:
            self._write(trainer)
        self._apply(trainer, module, self.evaluations[-1])

    def _source(self, trainer: Trainer, module: LightningModule) -> nn.Module:
        """Copy the module with the weights to prune: the best, after training under masks those with all masks."""
        rows, best = self.rows, run.best_path(trainer)
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
            network = self._network(loaded)
            if rows:
                bake_masks(network)
                state = network_state(network)
                if any(bool((state[name][~kept.to(state[name].device)] != 0).any()) for name, kept in rows.items()):
                    continue
            mask_rows(network, rows)
            if not self.dense_text:
                self.dense_path, self.dense_text = path, run.checkpoint_text(trainer, path)
            return loaded
        if not self.dense_text:
            if not trainer.fast_dev_run:
                self.dense_path = self._directory / "dense.ckpt"
                trainer.save_checkpoint(self.dense_path, weights_only=True)
            self.dense_text = f"the dense network after {trainer.current_epoch} epochs, the last"
        return run.copied(module, self._changing)

    def _loaded(self, module: LightningModule, path: Path) -> nn.Module:
        """Copy the module with a checkpoint's weights, and its masks."""
        state = read_weights(path)["state_dict"]
        loaded = run.copied(module, self._changing)
        run.plain_state_dicts(loaded)
        plain = {key.replace(f"{COMPILED}.", ""): value for key, value in state.items()}
        loaded.load_state_dict(plain, strict=module.strict_loading)
        return loaded

    def _write(self, trainer: Trainer) -> None:
        """Write and log what came out, and say where from; in the first process."""
        source, schedule, recipe = self.dense_path, self._resolved, self.recipe
        if not trainer.fast_dev_run:
            data = None if trainer.datamodule is None else type(trainer.datamodule).__name__
            provenance = {
                "source": None if source is None else str(source),
                "source_sha256": None if source is None or not source.is_file() else sha256(source),
                "dense": self.dense_text,
                "calibration": {"data": data, "num_samples": recipe.num_samples, "seed": recipe.seed},
                "schedule": None if schedule is None else schedule.plain(),
                "pruned_in_training": self.history,
            }
            several = len(self.evaluations) > 1
            for evaluation in self.evaluations:
                self.files.append(write_outputs(evaluation, self._directory, several=several, provenance=provenance))
            for evaluation, files in zip(self.evaluations, self.files, strict=True):
                run.log_pruning(trainer, evaluation, files, dense_path=source)
        after = "" if schedule is None else ", trained on under masks since then"
        said = [f"Before: {self.dense_text}. After: the pruned network{after}."]
        if self.history:
            said += ["Pruned while training:", *(f"  {run.described(each)}" for each in self.history)]
        rank_zero_info("\n".join(said))
        print_pruning(self.evaluations, self.files, dense=source, config=self._directory / "config.yaml")

    def _apply(self, trainer: Trainer, module: LightningModule, evaluation: Evaluation) -> None:
        """Let the trainer's module be the pruned network, and `best` the checkpoint of that."""
        result = evaluation.result
        if self.apply == "none":
            return
        with run.uncompiled(module):
            network = self._network(module)
            if self.apply == "mask":
                apply_masks(network, result.masked, result.parameter_masks)
                recompute_uncalled(network, result.example)
            else:
                bake_masks(network)
                narrow(network, result.slices, biases=result.biases)
                write_weights(network, network_state(result.model))
                remember(network, result.record())
                if isinstance(module, ImageClassifier):
                    module.pruning = dict(vars(result.record()))
        checkpoints: Any = trainer.checkpoint_callback
        if run.is_lightning(checkpoints, "ModelCheckpoint") and checkpoints.best_model_path:
            path = self._directory / ("masked.ckpt" if self.apply == "mask" else "removed.ckpt")
            with run.averaging_done(trainer):
                trainer.save_checkpoint(path, weights_only=True)
            checkpoints.best_model_path = str(path)


PruningCallback.__doc__ = document_fields(PruningCallback.__doc__, skipped={"amount"})
