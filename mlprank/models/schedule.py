"""Optimizers and learning-rate schedules from factories: built, checked, described in plain types; and a warm-up before any other."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from mlprank.artifact.spec import build, class_path_of

T = TypeVar("T")
OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def as_factory(given: object, base: type[T], *, argument: str) -> Callable[[Any], T]:
    """Return a function that builds a `base` from its one positional argument.

    Args:
        given: A class, a `functools.partial`, any other callable, or `{"class_path", "init_args"}`.
        base: Optimizer or LRScheduler.
        argument: What the user calls it, for messages.

    Raises:
        TypeError: If it is neither callable nor a description.
    """
    if isinstance(given, Mapping):
        return lambda positional: build(given, base, positional)
    if not callable(given):
        raise TypeError(
            f"{argument}={given!r} must be a callable such as functools.partial(torch.optim.SGD, lr=0.1), "
            'or {"class_path": ..., "init_args": ...}'
        )
    return given


def build_optimizer(given: object, parameters: Iterable[Any]) -> Optimizer:
    """Build the optimizer of `parameters` (tensors or groups) and check its learning rates.

    Raises:
        ValueError: If its arguments are out of range; a learning rate must be finite and not negative.
        TypeError: If the factory returns something else than an optimizer, or an argument has the wrong type.
    """
    factory = as_factory(given, Optimizer, argument="optimizer")
    _check_rate(_init_args(given).get("lr", 0.0), optimizer=_name(given))
    try:
        optimizer = factory(list(parameters))
    except (ValueError, TypeError) as error:
        raise type(error)(f"optimizer {_name(given)} cannot be built: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer={given!r} returned a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    for group in optimizer.param_groups:
        _check_rate(group.get("lr", 0.0), optimizer=type(optimizer).__name__)
    return optimizer


def _check_rate(rate: Any, *, optimizer: str) -> None:
    if not isinstance(rate, (Real, Tensor)):
        raise TypeError(f"optimizer {optimizer}: lr={rate!r} must be a number such as 0.001")
    if not (math.isfinite(rate) and float(rate) >= 0):
        raise ValueError(f"optimizer {optimizer}: lr={rate} must be a finite number of at least 0, such as 0.001")


def build_scheduler(given: object, optimizer: Optimizer) -> LRScheduler:
    """Build the learning-rate scheduler of `optimizer`.

    Raises:
        ValueError: If its arguments are out of range, or it does not fit the optimizer, as a schedule of the momentum
            does not fit an optimizer that has none.
        TypeError: If the factory returns something else than a scheduler.
    """
    factory = as_factory(given, LRScheduler, argument="lr_scheduler")
    try:
        scheduler = factory(optimizer)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"lr_scheduler {_name(given)} does not fit optimizer {type(optimizer).__name__}: {error}"
        ) from error
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"lr_scheduler={given!r} returned a {type(scheduler).__name__}, not a learning-rate scheduler")
    return scheduler


def check_scheduler(scheduler: LRScheduler) -> None:
    """Take the first steps, those of every part of a sequence, so that arguments which fail then fail now.

    Args:
        scheduler: One that nothing is trained with.

    Raises:
        ValueError: If its arguments let it compute nothing, as a period of 0 epochs does.
    """
    value = (0.0,) if isinstance(scheduler, ReduceLROnPlateau) else ()
    begun = scheduler._milestones[-1] if isinstance(scheduler, SequentialLR) else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects a step of the optimizer before
        for epoch in range(begun + 1):
            try:
                scheduler.step(*value)
            except ArithmeticError as error:
                raise ValueError(
                    f"lr_scheduler {type(scheduler).__name__} fails after epoch {epoch}: {error}; check its arguments"
                ) from error


def parameter_groups(
    model: nn.Module, *, bias_weight_decay: float | None, norm_weight_decay: float | None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by the weight decay that they get.

    Args:
        model: The network.
        bias_weight_decay: Weight decay of the biases outside normalisation layers; None leaves the optimizer's.
        norm_weight_decay: Weight decay of normalisation layers' parameters; None leaves the optimizer's.

    Returns:
        Parameter groups; those with a weight decay of their own have the key "weight_decay".

    Raises:
        ValueError: If a weight decay is negative or not finite.
    """
    for name, value in (("bias_weight_decay", bias_weight_decay), ("norm_weight_decay", norm_weight_decay)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number of at least 0, or None for the optimizer's")
    in_norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(False)}
    groups: dict[float | None, list[Tensor]] = {None: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2] == "bias"
            decay = norm_weight_decay if id(parameter) in in_norms else bias_weight_decay if is_bias else None
            groups.setdefault(decay, []).append(parameter)
    return [
        {"params": parameters} if decay is None else {"params": parameters, "weight_decay": decay}
        for decay, parameters in groups.items()
        if parameters
    ]


def describe_factory(given: object, built: Optimizer | LRScheduler) -> dict[str, Any] | None:
    """Describe an optimizer's or a scheduler's factory in plain types, so that a checkpoint can hold it.

    Args:
        given: The factory.
        built: What it built; a lambda or another opaque callable is described by the values read from it.

    Returns:
        `{"class_path": str, "init_args": dict}`, or None where the arguments cannot be told.
    """
    described = _plain(given)
    if isinstance(described, dict):
        return described
    known = built.defaults if isinstance(built, Optimizer) else vars(built)
    parameters = list(inspect.signature(type(built)).parameters.values())[1:]
    init_args = {p.name: _plain(known[p.name]) for p in parameters if p.name in known and p.name != "last_epoch"}
    required = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    if not required <= init_args.keys() or any(value is _OPAQUE for value in init_args.values()):
        return None
    return {"class_path": class_path_of(type(built)), "init_args": init_args}


_OPAQUE = object()


def _plain(value: object) -> Any:
    """Return `value` in plain types; classes and partials of classes as descriptions; else `_OPAQUE`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, type):
        return {"class_path": class_path_of(value), "init_args": {}}
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        init_args = {name: _plain(item) for name, item in value.keywords.items()}
        opaque = any(item is _OPAQUE for item in init_args.values())
        return _OPAQUE if opaque else {"class_path": class_path_of(value.func), "init_args": init_args}
    if type(value) in (list, tuple):
        items = [_plain(item) for item in value]  # type: ignore[attr-defined]
        return _OPAQUE if any(item is _OPAQUE for item in items) else items
    if isinstance(value, Mapping):
        entries = {str(name): _plain(item) for name, item in value.items()}
        return _OPAQUE if any(item is _OPAQUE for item in entries.values()) else entries
    return _OPAQUE


def _init_args(given: object) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given.get("init_args") or {}
    return given.keywords if isinstance(given, partial) else {}


def _name(given: object) -> str:
    if isinstance(given, Mapping):
        return str(given.get("class_path"))
    parts = [given.func, *given.args] if isinstance(given, partial) else [given]  # the CLI's partials hold the class
    cls = next((part for part in parts if isinstance(part, type)), parts[0])
    return getattr(cls, "__name__", repr(cls))


class WarmUp(SequentialLR):
    """Starts with a small learning rate for some epochs, then hands over to another schedule, which starts there.

    Args:
        optimizer: The optimizer.
        after: The schedule after the warm-up, e.g. `partial(StepLR, step_size=30)`.
        epochs: How many epochs the warm-up takes, at least 1.
        method: "linear" rises from `start_factor` to 1; "constant" stays at `start_factor`.
        start_factor: The first learning rate as a share of the full one, in (0, 1].

    Raises:
        ValueError: If an argument is out of range or `after` does not fit the optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        after: Callable[[Optimizer], LRScheduler],
        epochs: int = 5,
        method: Literal["linear", "constant"] = "linear",
        start_factor: float = 0.01,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be at least 1: it is the length of the warm-up")
        if not 0.0 < start_factor <= 1.0:
            raise ValueError(f"start_factor={start_factor} must lie in (0, 1]: it scales the learning rate")
        if method not in ("linear", "constant"):
            raise ValueError(f"method={method!r} must be 'linear' or 'constant'")
        warm_up = (
            LinearLR(optimizer, start_factor=start_factor, total_iters=epochs)
            if method == "linear"
            else ConstantLR(optimizer, factor=start_factor, total_iters=epochs)
        )
        super().__init__(optimizer, [warm_up, build_scheduler(after, optimizer)], milestones=[epochs])
