"""Which trials can be one stack: those that differ in nothing but numbers of the optimizer, the seeds and smoothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlprank.tuning.local import takes_several_devices
from mlprank.tuning.tracing import CannotStackError
from mlprank.tuning.trial import Trial, without_places

_OWN_IN_MODEL = ("lr_scheduler", "label_smoothing", "bias_weight_decay", "norm_weight_decay")
_HARMLESS_CALLBACKS = ("LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "RichModelSummary", "Timer")
_PLAIN: dict[str, tuple[Any, ...]] = {
    "strategy": ("auto",),
    "val_check_interval": (None, 1.0),
    "check_val_every_n_epoch": (1,),
    "detect_anomaly": (False,),
    "fast_dev_run": (False, 0),
    "barebones": (False,),
    "profiler": (None,),
    "plugins": (None, []),
    "max_time": (None,),
}
"""Options of the Trainer that a stack takes with these values only."""


def group_trials(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Put trials together that can be one stack.

    Args:
        trials: In order.

    Returns:
        Groups, in the order of their first trial.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_frame(trial.config), []).append(trial)
    return list(groups.values())


def check_stackable(config: Mapping[str, Any]) -> None:
    """Refuse what a stack cannot do as training by itself does.

    Args:
        config: A trial's config.

    Raises:
        CannotStackError: If an option stands in the way; the text names it.
    """
    trainer = config["trainer"]
    if takes_several_devices(config):
        raise CannotStackError(f"trainer.devices={trainer.get('devices')}: a stack trains on one device")
    if str(trainer.get("precision")).startswith(("16", "transformer-engine")):
        raise CannotStackError(
            f"trainer.precision={trainer['precision']}: one loss scale for all trials would let one disturb the others"
        )
    if trainer.get("limit_val_batches") == 0:
        raise CannotStackError("trainer.limit_val_batches=0: a stack keeps every trial's best epoch by its validation")
    for name, allowed in _PLAIN.items():
        if name in trainer and trainer[name] not in allowed:
            raise CannotStackError(f"trainer.{name}={trainer[name]}: a stack takes {allowed[0]} only")
    for callback in trainer.get("callbacks") or []:
        name = str(callback["class_path"]).rpartition(".")[2]
        if name not in _HARMLESS_CALLBACKS:
            raise CannotStackError(f"trainer.callbacks: {name} may act on one trial's training, a stack trains many")


def data_seed(config: Mapping[str, Any]) -> Any:
    """Return the seed of a trial's data.

    Args:
        config: A trial's config.
    """
    return (config["data"].get("init_args") or {}).get("seed")


def _frame(config: Mapping[str, Any]) -> str:
    """Return as text what must be equal in a stack."""
    plain = without_places(json.loads(json.dumps(config)))
    plain.pop("seed_everything", None)
    model = plain["model"]
    for name in _OWN_IN_MODEL:
        model.pop(name, None)
    model["optimizer"] = (model.get("optimizer") or {}).get("class_path")
    (plain["data"].get("init_args") or {}).pop("seed", None)
    return json.dumps(plain, sort_keys=True)
