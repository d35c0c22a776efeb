"""How many trials are stacked follows from what one takes and what there is."""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from mlprank.models import TwoLayerMLP
from mlprank.tuning.stack.grouping import available_bytes, optimizer_copies, trial_bytes, trials_that_fit
from mlprank.tuning.stack.network import trace


@pytest.mark.parametrize(
    ("make", "copies"),
    [
        (lambda p: SGD(p, lr=0.1), 0),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: Adam(p, fused=True), 2),
        (lambda p: AdamW(p, amsgrad=True), 3),
    ],
)
def test_the_tensors_that_an_optimizer_keeps_are_counted_without_touching_it(make, copies):
    optimizer = make(TwoLayerMLP(4).parameters())
    assert optimizer_copies(optimizer) == copies
    assert not optimizer.state


def test_a_trial_takes_its_weights_five_times_with_adam_and_its_activations():
    model = TwoLayerMLP()
    weights = 4 * sum(p.numel() for p in model.parameters())
    plan = trace(model, (1, 28, 28))
    small, large = (trial_bytes(model, Adam(model.parameters()), plan, batch_size=b) for b in (1, 65))
    assert 5 * weights < small < 5 * weights + 30_000
    assert large - small == 64 * 4 * (2 * (784 + 256 + 256 + 10) + 2 * 784)


def test_four_fifths_of_the_free_memory_are_used_and_one_trial_always_fits():
    assert trials_that_fit(100, 1000) == 8
    assert trials_that_fit(100, 10) == 1


def test_there_is_some_memory_here():
    assert 10**7 < available_bytes(torch.device("cpu")) < 10**14
