from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, ExponentialLR, StepLR

from mlprank.models import MLP
from mlprank.models.schedule import WarmUp, build_optimizer, build_scheduler, describe_factory, parameter_groups

NAN = float("nan")


def _parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    "factory",
    [
        Adam,
        partial(SGD, lr=0.3, momentum=0.9, nesterov=True),
        partial(Adam, lr=0.02, betas=(0.8, 0.9), fused=True),
        partial(RMSprop, lr=0.02, alpha=0.9),
        {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "weight_decay": 0.2}},
        lambda parameters: AdamW(parameters, lr=0.25, weight_decay=0.5),
    ],
)
def test_an_optimizer_is_rebuilt_from_its_description(factory: Any) -> None:
    first = build_optimizer(factory, _parameters())
    description = describe_factory(factory, first)
    again = build_optimizer(description, _parameters())
    assert type(again) is type(first)
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in again.defaults.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in first.defaults.items()
    }


def _rates(given: Any, epochs: int = 6) -> list[float]:
    optimizer = SGD(_parameters(), lr=1.0)
    scheduler = build_scheduler(given, optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "factory",
    [
        partial(StepLR, step_size=2, gamma=0.5),
        lambda optimizer: StepLR(optimizer, 2, 0.5),
        partial(CosineAnnealingLR, T_max=6),
        partial(ExponentialLR, gamma=0.9),
        partial(WarmUp, after=partial(StepLR, step_size=2), epochs=3, method="constant"),
    ],
)
def test_a_schedule_is_rebuilt_from_its_description(factory: Callable[..., Any]) -> None:
    description = describe_factory(factory, build_scheduler(factory, SGD(_parameters(), lr=1.0)))
    assert description is not None
    assert _rates(description) == _rates(factory)


def test_what_cannot_be_told_has_no_description() -> None:
    opaque = lambda optimizer: WarmUp(optimizer, after=partial(StepLR, step_size=2))  # noqa: E731
    assert describe_factory(opaque, build_scheduler(opaque, SGD(_parameters(), lr=1.0))) is None


def test_warm_up_rises_to_the_full_rate_and_then_follows_the_other_schedule() -> None:
    step = partial(StepLR, step_size=2, gamma=0.1)
    assert _rates(partial(WarmUp, after=step, epochs=2, start_factor=0.5)) == pytest.approx([0.5, 0.75, 1, 1, 0.1, 0.1])
    assert _rates(partial(WarmUp, after=step, epochs=2, start_factor=0.5, method="constant")) == pytest.approx(
        [0.5, 0.5, 1, 1, 0.1, 0.1]
    )


def test_biases_and_norms_get_their_own_weight_decay() -> None:
    model = MLP(3, [4], 2, batch_norm=True)
    groups = parameter_groups(model, bias_weight_decay=0.0, norm_weight_decay=0.5)
    optimizer = build_optimizer(partial(SGD, lr=0.1, weight_decay=0.1), groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "fc1.weight": 0.1, "fc1.bias": 0.0, "batchnorm1.weight": 0.5, "batchnorm1.bias": 0.5,
        "fc_last.weight": 0.1, "fc_last.bias": 0.0,
    }  # fmt: skip
    model.fc1.weight.requires_grad_(False)
    one = parameter_groups(model, bias_weight_decay=None, norm_weight_decay=None)
    assert [len(group["params"]) for group in one] == [5]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (partial(Adam, lr=-1.0), ValueError, r"optimizer Adam: lr=-1.0 must be a finite number of at least 0, such"),
        (lambda p: Adam(p, lr=-1.0), ValueError, r"optimizer .* cannot be built: Invalid learning rate: -1"),
        (partial(SGD, momentum=-1.0), ValueError, r"optimizer SGD cannot be built: Invalid momentum value: -1"),
        (partial(Adam, lr=None), TypeError, r"optimizer Adam: lr=None must be a number"),
        (partial(SGD, lr=NAN), ValueError, r"optimizer SGD: lr=nan must be a finite number"),
        (partial(Adam, lr=float("inf")), ValueError, r"optimizer Adam: lr=inf must be a finite number"),
        (partial(Adam, lr="fast"), TypeError, r"optimizer Adam: lr='fast' must be a number"),
        ({"class_path": "torch.optim.SGD", "init_args": {"lr": "fast"}}, TypeError, r"lr='fast' must be a number"),
        ({"class_path": "torch.optim.SGD", "init_args": {"rate": 1}}, ValueError, r"argument 'rate'"),
        ({"class_path": "os.system", "init_args": {}}, ValueError, r"'os.system' is not a subclass of .*Optimizer"),
        (7, TypeError, r"optimizer=7 must be a callable"),
        (list, TypeError, r"returned a list, not a torch.optim.*Optimizer"),
    ],
)
def test_a_wrong_optimizer_is_named(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_optimizer(given, _parameters())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            partial(CyclicLR, base_lr=0.1, max_lr=1.0),
            r"lr_scheduler CyclicLR does not fit optimizer Adagrad: .*momentum",
        ),
        (partial(WarmUp, after=StepLR), r"lr_scheduler StepLR does not fit .*step_size"),
        (
            partial(WarmUp, after=partial(StepLR, step_size=1), epochs=0),
            r"epochs=0 must be a whole number of at least 1",
        ),
        (
            partial(WarmUp, after=partial(StepLR, step_size=1), start_factor=NAN),
            r"start_factor=nan must lie in",
        ),
        (partial(WarmUp, after=partial(StepLR, step_size=1), method="fast"), r"method='fast' is unknown"),
    ],
)
def test_a_schedule_that_does_not_fit_is_named(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler(given, torch.optim.Adagrad(_parameters()))


def test_a_negative_weight_decay_is_named() -> None:
    with pytest.raises(ValueError, match=r"norm_weight_decay=-1.0 must be a finite number"):
        parameter_groups(MLP(2, [2], 2), bias_weight_decay=None, norm_weight_decay=-1.0)
