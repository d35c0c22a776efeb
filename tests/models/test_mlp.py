import pytest
import torch
from torch import nn

from mlprank.models import MLP


def test_layers_have_the_widths_given_and_speaking_names() -> None:
    model = MLP(64, [32, 16], 10, batch_norm=True, dropout=0.1, activation="gelu")
    names = [name for name, _ in model.named_children()]
    assert names == [
        "flatten", "fc1", "batchnorm1", "act1", "dropout1", "fc2", "batchnorm2", "act2", "dropout2", "fc_last",
    ]  # fmt: skip
    assert model.fc_last.weight.shape == (10, 16)
    assert isinstance(model.act1, nn.GELU)


def test_forward_equals_the_same_layers_written_by_hand() -> None:
    model = MLP(12, [5], 3)
    x = torch.randn(4, 3, 2, 2)
    by_hand = torch.relu(x.reshape(4, 12) @ model.fc1.weight.T + model.fc1.bias) @ model.fc_last.weight.T
    torch.testing.assert_close(model(x), by_hand + model.fc_last.bias)


def test_no_widths_give_a_linear_classifier_and_bias_can_be_left_out() -> None:
    model = MLP(4, [], 2, bias=False)
    assert [name for name, _ in model.named_parameters()] == ["fc_last.weight"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_features": 0}, ValueError, r"in_features=0 must be at least 1"),
        ({"widths": [8, -2]}, ValueError, r"widths\[1\]=-2 must be at least 1"),
        ({"widths": [8.5]}, TypeError, r"widths\[0\]=8\.5 must be an integer"),
        ({"num_classes": True}, TypeError, r"num_classes=True must be an integer"),
        ({"activation": "rleu"}, ValueError, r"activation='rleu' is not one of .* did you mean 'relu'\?"),
        ({"dropout": 1.0}, ValueError, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"dropout": float("nan")}, ValueError, r"dropout=nan must lie in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MLP(**{"in_features": 4, "widths": [8], "num_classes": 2, **arguments})  # type: ignore[arg-type]
