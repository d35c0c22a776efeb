"""Training a stack is training its trials by themselves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from mlprank.models import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP
from mlprank.tuning.stack import CannotStackError, Stack, join_optimizers

OPTIMIZERS = [
    lambda p, k: Adam(p, lr=1e-3 / (k + 1), weight_decay=1e-4 * k),
    lambda p, k: AdamW(p, lr=2e-3 / (k + 1), weight_decay=1e-2 * k, amsgrad=True),
    lambda p, k: SGD(p, lr=1e-2 / (k + 1), weight_decay=1e-4 * k),
    lambda p, k: SGD(p, lr=1e-2, momentum=0.5 + 0.1 * k, nesterov=True),
    lambda p, k: RMSprop(p, lr=1e-4 * (k + 1), momentum=0.1 * k),
]


def rate_of_the_thesis(parameters, k):
    return Adam(parameters, lr=1e-4 / (k + 1), weight_decay=1e-9)


def make_networks(make, count, dtype):
    torch.manual_seed(0)
    return [make().to(dtype) for _ in range(count)]


def train_alone(networks, optimize, batches, *, schedule=None, clip=None):
    for k, network in enumerate(networks):
        optimizer = optimize(network.parameters(), k)
        scheduler = schedule(optimizer) if schedule else None
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(x[k]), y[k]).backward()
            if clip:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            if scheduler:
                scheduler.step()


def train_stacked(networks, optimize, batches, *, schedule=None, clip=None):
    stack = Stack(networks, in_shape=tuple(batches[0][0].shape[2:]))
    networks = copy.deepcopy(networks)
    stack.bind(networks)
    optimizers = [optimize(network.parameters(), k) for k, network in enumerate(networks)]
    schedulers = [schedule(optimizer) for optimizer in optimizers] if schedule else []
    joined = join_optimizers(optimizers)
    for x, y in batches:
        stack.zero_grad()
        F.cross_entropy(stack(x), y, reduction="none").mean(1).sum().backward()
        for network in networks if clip else ():
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        joined.step()
        for scheduler in schedulers:
            scheduler.step()
    return stack


def batches(count, trials, features, dtype, samples=16):
    torch.manual_seed(1)
    x = torch.rand(count, trials, samples, features, dtype=dtype)
    return list(zip(x, torch.randint(0, 10, (count, trials, samples)), strict=True))


def difference(stack, networks):
    return max(
        (value - stack.unstack(k)[name]).abs().max().item()
        for k, network in enumerate(networks)
        for name, value in network.state_dict().items()
    )


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda: TwoLayerMLP(24), 100),
        (lambda: ThreeLayerMLP(24), 100),
        (lambda: MLP(24, [32, 16], 10), 100),
        (lambda: SixLayerMLP(24), 100),
    ],
)
def test_a_hundred_steps_in_float64_equal_separate_training(make, steps):
    data = batches(steps, 2, 24, torch.float64)
    networks = make_networks(make, 2, torch.float64)
    stack = train_stacked(networks, OPTIMIZERS[0], data)
    train_alone(networks, OPTIMIZERS[0], data)
    assert difference(stack, networks) < 1e-9


@pytest.mark.slow
def test_the_deepest_network_equals_separate_training_at_the_rates_of_the_thesis():
    data = batches(100, 2, 24, torch.float64, samples=64)
    networks = make_networks(lambda: TwelveLayerMLP(24), 2, torch.float64)
    stack = train_stacked(networks, rate_of_the_thesis, data)
    train_alone(networks, rate_of_the_thesis, data)
    assert difference(stack, networks) < 1e-9


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_every_optimizer_schedule_and_clipping_equals_separate_training(optimize):
    data = batches(100, 3, 24, torch.float64)
    networks = make_networks(lambda: MLP(24, [16], 10), 3, torch.float64)
    options = {"schedule": lambda optimizer: StepLR(optimizer, step_size=30, gamma=0.1), "clip": 0.5}
    stack = train_stacked(networks, optimize, data, **options)
    train_alone(networks, optimize, data, **options)
    assert difference(stack, networks) < 1e-9


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_a_few_steps_in_float32_equal_separate_training(optimize):
    data = batches(5, 3, 24, torch.float32)
    networks = make_networks(lambda: TwoLayerMLP(24), 3, torch.float32)
    stack = train_stacked(networks, optimize, data)
    train_alone(networks, optimize, data)
    assert difference(stack, networks) < 2e-5


@pytest.mark.parametrize(
    "optimize",
    [
        lambda p, k: Adam(p, lr=1e-3 * (k + 1), weight_decay=1e-4 * k, fused=True),
        lambda p, k: AdamW(p, lr=1e-3 * (k + 1), weight_decay=1e-2 * k, fused=True),
        lambda p, k: SGD(p, lr=1e-2, momentum=0.5 + 0.1 * k, nesterov=True, fused=True),
    ],
)
def test_on_equal_gradients_a_step_equals_torchs_own_to_the_bit(optimize):
    networks = make_networks(lambda: TwoLayerMLP(31), 3, torch.float32)
    stack = Stack(networks, in_shape=(31,))
    bound = copy.deepcopy(networks)
    stack.bind(bound)
    joined = join_optimizers([optimize(network.parameters(), k) for k, network in enumerate(bound)])
    alone = [optimize(network.parameters(), k) for k, network in enumerate(networks)]
    for _ in range(4):
        stack.zero_grad()
        stack(torch.rand(8, 31)).square().sum().backward()
        for k, network in enumerate(networks):
            for name, parameter in network.named_parameters():
                parameter.grad = stack.tensors[name].grad[k].clone()
            alone[k].step()
        joined.step()
    assert difference(stack, networks) == 0


def test_schedules_of_trials_set_their_own_rates_also_after_loading():
    def made():
        networks = make_networks(lambda: MLP(4, [3], 2), 2, torch.float32)
        optimizers = [Adam(network.parameters(), lr=0.1 / (k + 1)) for k, network in enumerate(networks)]
        schedulers = [StepLR(optimizers[0], step_size=1, gamma=0.1), CosineAnnealingLR(optimizers[1], T_max=4)]
        return join_optimizers(optimizers, schedulers), optimizers, schedulers

    def step(joined, optimizers, schedulers):
        joined.step()
        for scheduler in schedulers:
            scheduler.step()
        return [each.param_groups[0]["lr"] for each in optimizers]

    first, restored = made(), made()
    rates = step(*first)
    assert rates == [pytest.approx(0.01), pytest.approx(0.05 * (1 + 2**-0.5) / 2)]
    assert rates == [scheduler.get_last_lr()[0] for scheduler in first[2]]
    restored[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    assert step(*restored) == step(*first) == [pytest.approx(0.001), pytest.approx(0.025)]


def test_optimizers_of_two_kinds_are_refused():
    networks = make_networks(lambda: MLP(4, [3], 2), 2, torch.float32)
    with pytest.raises(CannotStackError, match="Adam and SGD; a stack needs one kind"):
        join_optimizers([Adam(networks[0].parameters()), SGD(networks[1].parameters())])


def test_lbfgs_is_refused():
    with pytest.raises(CannotStackError, match="LBFGS evaluates the loss again"):
        join_optimizers([LBFGS(MLP(4, [3], 2).parameters())])
