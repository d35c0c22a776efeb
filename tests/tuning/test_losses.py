"""Loss and accuracy of a stack are those of every trial by itself."""

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from mlprank.costs.metrics import ranks_of
from mlprank.tuning.stack import stacked_cross_entropy

SMOOTHING = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)


def scores_and_targets(shared):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (11,) if shared else (3, 11), generator=generator)
    return scores, targets


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("smoothing", [None, SMOOTHING])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_loss_is_torchs_own(shared, smoothing, mixed):
    scores, targets = scores_and_targets(shared)
    if mixed:
        one_hot = F.one_hot(targets, 7).double()
        targets = 0.7 * one_hot + 0.3 * one_hot.roll(1, -2)
    losses = stacked_cross_entropy(scores, targets, label_smoothing=smoothing)
    for k in range(3):
        own = targets if shared else targets[k]
        share = 0.0 if smoothing is None else smoothing[k].item()
        assert losses[k].item() == pytest.approx(F.cross_entropy(scores[k].T, own, label_smoothing=share).item())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("top_k", [1, 5])
def test_ranks_give_torchmetrics_accuracy(shared, top_k):
    scores, targets = scores_and_targets(shared)
    hits = (ranks_of(targets.expand(3, -1), scores) < top_k).double().mean(dim=1)
    for k in range(3):
        metric = MulticlassAccuracy(7, top_k=top_k, average="micro")
        assert hits[k].item() == pytest.approx(metric(scores[k].T, targets if shared else targets[k]).item())


def test_equal_scores_count_for_the_lower_class_and_nan_for_none():
    scores = torch.zeros(1, 3, 3)
    scores[0, 1, 2] = torch.nan
    assert ranks_of(torch.tensor([[0, 2, 1]]), scores).tolist() == [[0, 2, 3]]
