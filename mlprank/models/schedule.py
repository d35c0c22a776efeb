"""Optimizers and learning-rate schedules from factories: built, checked, described; and a warm-up."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from numbers import Real
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from mlprank.artifact.spec import build, class_path_of
from mlprank.utils.errors import check_choice, check_whole

T = TypeVar("T", Optimizer, LRScheduler)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _built(given: object, base: type[T], positional: Any, *, argument: str) -> T:
    """Call a factory: a class, a `functools.partial`, any other callable, or `{"class_path", "init_args"}`."""
    if isinstance(given, Mapping):
        return build(given, base, positional)
    if not callable(given):
        raise TypeError(
            f"{argument}={given!r} must be a callable such as functools.partial(torch.optim.SGD, lr=0.1), "
            'or {"class_path": ..., "init_args": ...}'
        )
    built = given(positional)
    if not isinstance(built, base):
        kind = f"{base.__module__}.{base.__name__}"
        raise TypeError(f"{argument}={given!r} returned a {type(built).__name__}, not a {kind}")
    return built


def build_optimizer(given: object, parameters: Iterable[Any]) -> Optimizer:
    """Build the optimizer of `parameters` (tensors or groups) and check its learning rates."""

    def check(rate: Any, name: str) -> None:
        if not isinstance(rate, (Real, Tensor)):
            raise TypeError(f"optimizer {name}: lr={rate!r} must be a number such as 0.001")
        if not (math.isfinite(rate) and float(rate) >= 0):
            raise ValueError(f"optimizer {name}: lr={rate} must be a finite number of at least 0, such as 0.001")

    named = given.get("init_args") if isinstance(given, Mapping) else getattr(given, "keywords", None)
    check((named or {}).get("lr", 0.0), _name(given))
    try:
        optimizer = _built(given, Optimizer, list(parameters), argument="optimizer")
    except (ValueError, TypeError) as error:
        raise type(error)(f"optimizer {_name(given)} cannot be built: {error}") from error
    for group in optimizer.param_groups:
        check(group.get("lr", 0.0), type(optimizer).__name__)
    return optimizer


def build_scheduler(given: object, optimizer: Optimizer) -> LRScheduler:
    """Build the learning-rate scheduler of `optimizer`."""
    try:
        return _built(given, LRScheduler, optimizer, argument="lr_scheduler")
    except (ValueError, TypeError, KeyError) as error:
        fits = f"lr_scheduler {_name(given)} does not fit optimizer {type(optimizer).__name__}"
        raise ValueError(f"{fits}: {error}") from error


def check_scheduler(scheduler: LRScheduler) -> None:
    """Take the first steps, those of every part of a sequence, so that arguments which fail then fail now."""
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
    """Group the trainable parameters by the weight decay that they get; None leaves the optimizer's."""
    for name, value in (("bias_weight_decay", bias_weight_decay), ("norm_weight_decay", norm_weight_decay)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number of at least 0, or None for the optimizer's")
    in_norms = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(False)}
    groups: dict[float | None, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2] == "bias"
            decay = norm_weight_decay if id(parameter) in in_norms else bias_weight_decay if is_bias else None
            groups.setdefault(decay, []).append(parameter)
    return [{"params": own, **({} if decay is None else {"weight_decay": decay})} for decay, own in groups.items()]


def describe_factory(given: object, built: Optimizer | LRScheduler) -> dict[str, Any] | None:
    """Describe an optimizer's or a scheduler's factory in plain types, so that a checkpoint can hold it.

    It is `{"class_path": str, "init_args": dict}`, or None where the arguments cannot be told; a lambda or another
    opaque callable is described by the values read from what it `built`.
    """
    with suppress(TypeError):
        described = _plain(given)
        if isinstance(described, dict):
            return described
    known = built.defaults if isinstance(built, Optimizer) else vars(built)
    parameters = list(inspect.signature(type(built)).parameters.values())[1:]
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    with suppress(TypeError):
        arguments = {p.name: _plain(known[p.name]) for p in parameters if p.name in known and p.name != "last_epoch"}
        return {"class_path": class_path_of(type(built)), "init_args": arguments} if needed <= set(known) else None
    return None


def _plain(value: object) -> Any:
    """Return `value` in plain types; classes and partials of classes as descriptions; a TypeError for anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, type):
        return {"class_path": class_path_of(value), "init_args": {}}
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        return {"class_path": class_path_of(value.func), "init_args": _plain(value.keywords)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(f"{value!r} has no description in plain types")


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
        check_whole(epochs=epochs)
        if not 0.0 < start_factor <= 1.0:
            raise ValueError(f"start_factor={start_factor} must lie in (0, 1]: it scales the learning rate")
        check_choice("method", method, ("linear", "constant"))
        kind: Callable[..., LRScheduler] = LinearLR if method == "linear" else ConstantLR
        warm_up = kind(optimizer, start_factor, total_iters=epochs)
        super().__init__(optimizer, [warm_up, build_scheduler(after, optimizer)], milestones=[epochs])
