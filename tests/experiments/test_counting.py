"""Counting what is sure, and telling what rounding could turn."""

import pytest
import torch

from mlprank.experiments.counting import ROUNDING, decide, differ, doubtful_batches


def test_sure_images_agree_with_topk_and_ties_are_in_doubt() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 10)
    labels = torch.randint(10, (500,))
    logits[0] = 0.0
    logits[1, :2] = torch.tensor([9.0, 9.0 + 1e-6])
    labels[1] = 0
    for k, decided in zip((1, 3, 5), decide(logits, labels, k=(1, 3, 5)), strict=True):
        expected = (logits.topk(k).indices == labels[:, None]).any(1)
        assert torch.equal(decided.correct[~decided.doubtful], expected[~decided.doubtful])
        assert decided.doubtful[0]
        assert bool(decided.doubtful[1]) == (k == 1)
    assert int(decided.doubtful.sum()) < 5


def test_k_above_the_number_of_classes_is_always_right() -> None:
    (decided,) = decide(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64), k=(5,))
    assert bool(decided.correct.all())
    assert not bool(decided.doubtful.any())


def test_batches_of_doubtful_images_come_once_in_order() -> None:
    logits = torch.eye(3).repeat(30, 1)
    labels = torch.arange(3).repeat(30)
    logits[[70, 5, 8]] = 0.0
    assert doubtful_batches(decide(logits, labels, k=(1, 2)), batch_size=10) == [0, 7]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(ValueError, match="logits that are not finite"):
        decide(logits, torch.zeros(4, dtype=torch.int64), k=(1,))


def test_logits_differ_by_more_than_rounding_or_in_shape() -> None:
    one = torch.full((4, 3), 100.0)
    assert not differ(one, one + 100 * ROUNDING / 8)
    assert differ(one, one + 100 * ROUNDING)
    assert differ(one, one[:2])
    assert differ(one, one * float("nan"))
