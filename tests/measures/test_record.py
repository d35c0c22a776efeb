from dataclasses import replace

import pytest
import torch

from mlprank.measures import LayerRecord
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
