"""How many trials are stacked follows from what one takes and what there is."""

import torch

from mlprank.models import TwoLayerMLP
from mlprank.tuning.stack.engine import available_bytes, trial_bytes, trials_that_fit


def test_a_trial_takes_its_weights_six_times_and_its_activations():
    model = TwoLayerMLP()
    weights = 4 * sum(p.numel() for p in model.parameters())
    small, large = (trial_bytes(model, (1, 28, 28), batch_size) for batch_size in (1, 65))
    assert 6 * weights < small < 6 * weights + 30_000
    # the images, and the two hidden layers that the gradient needs after their activations
    assert 2 * 4 * (784 + 256 + 256) <= (large - small) / 64 <= 2 * 4 * 2 * (784 + 256 + 256 + 10)


def test_four_fifths_of_the_free_memory_are_used_and_one_trial_always_fits():
    assert trials_that_fit(100, 1000) == 8
    assert trials_that_fit(100, 10) == 1


def test_there_is_some_memory_here():
    assert 10**7 < available_bytes(torch.device("cpu")) < 10**14
