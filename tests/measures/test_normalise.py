import pytest
import torch

from mlprank.measures.normalise import normalise_scores, score_dtype


@pytest.mark.parametrize("values", [[1.0, 3.0], [1e38, 3e38], [1e-44, 0.0], [0.0, 0.0], [5.0]])
def test_scores_sum_to_1_whatever_their_size(values):
    found = normalise_scores(torch.tensor(values))
    total = sum(values)
    expected = [value / total if total else 1 / len(values) for value in values]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("values", [[1.0, -1e-9], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_negative_or_non_finite_scores_are_an_error(values):
    with pytest.raises(ValueError, match=r"scores\[\d\]=.*finite and at least 0"):
        normalise_scores(torch.tensor(values))


def test_no_scores_are_an_error():
    with pytest.raises(ValueError, match="scores is empty"):
        normalise_scores(torch.ones(0))


@pytest.mark.parametrize(
    ("weight", "scores"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_are_kept_in_single_precision_at_least(weight, scores):
    assert score_dtype(torch.ones(1, dtype=weight)) == scores
