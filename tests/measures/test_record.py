"""What a measure is given, and scores that sum to 1."""

from dataclasses import replace

import pytest
import torch

from mlprank.measures import LayerRecord
from mlprank.measures.record import normalise_scores, score_dtype
from tests.measures.records import make_record


@pytest.mark.parametrize("field", ["previous", "input_norms", "output_norms"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_negative_or_non_finite_entries_name_layer_argument_and_place(field, value):
    record = make_record(4, 4, name="fc3")
    broken = getattr(record, field).clone()
    broken[2] = value
    with pytest.raises(ValueError, match=rf'layer "fc3": {field}\[2\]={value}, but it must be finite and at least 0'):
        replace(record, **{field: broken})


@pytest.mark.parametrize(("field", "size"), [("previous", 3), ("input_norms", 3), ("output_norms", 2)])
def test_a_vector_of_the_wrong_length_names_the_length_that_fits(field, size):
    record = make_record(2, 3, name="fc3")
    with pytest.raises(ValueError, match=rf'layer "fc3": {field} has shape \(7,\); .* needs \({size},\)'):
        replace(record, **{field: torch.ones(7)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_that_are_not_real_floats_are_an_error(dtype):
    record = make_record(2, 3, name="fc3")
    with pytest.raises(TypeError, match=r'layer "fc3": weight has dtype torch\.\w+; .* model.float\(\)'):
        replace(record, weight=record.weight.to(dtype))


def test_a_weight_that_is_not_a_matrix_is_an_error():
    record = make_record(2, 3, name="fc3")
    with pytest.raises(ValueError, match=r'layer "fc3": weight has shape \(6,\); it must be \(n_out, n_in\)'):
        replace(record, weight=record.weight.flatten())


@pytest.mark.parametrize("amount", [-0.1, 1.0, float("nan")])
def test_an_amount_outside_0_to_1_is_an_error(amount):
    with pytest.raises(ValueError, match=rf'layer "fc1": amount={amount} is not in \[0, 1\)'):
        make_record(2, 3, amount=amount)


def test_a_layer_without_inputs_is_an_error():
    with pytest.raises(ValueError, match='layer "empty": previous is empty'):
        LayerRecord("empty", torch.ones(2, 0), torch.ones(0), torch.ones(0), torch.ones(2))


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
