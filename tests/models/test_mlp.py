import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.models import MLP, SixLayerMLP, ThreeLayerMLP, TwelveLayerMLP, TwoLayerMLP


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
        ({"in_features": 0}, ValueError, r"in_features=0 must be a whole number of at least 1"),
        ({"widths": [8, -2]}, ValueError, r"widths\[1\]=-2 must be a whole number of at least 1"),
        ({"widths": [8.5]}, ValueError, r"widths\[0\]=8\.5 must be a whole number"),
        ({"num_classes": True}, ValueError, r"num_classes=True must be a whole number"),
        ({"activation": "rleu"}, ValueError, r"activation='rleu' is unknown; did you mean 'relu'\?; choose one of"),
        ({"dropout": 1.0}, ValueError, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"dropout": float("nan")}, ValueError, r"dropout=nan must lie in \[0, 1\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MLP(**{"in_features": 4, "widths": [8], "num_classes": 2, **arguments})  # type: ignore[arg-type]


SIZES: dict[type[nn.Module], list[int]] = {
    TwoLayerMLP: [784, 256, 10],
    ThreeLayerMLP: [784, 512, 512, 10],
    SixLayerMLP: [3072, 512, 512, 256, 256, 128, 10],
    TwelveLayerMLP: [3072, 2048, 2048, 1024, 1024, 1024, 1024, 512, 512, 256, 256, 256, 100],
}


@pytest.mark.parametrize("cls", SIZES)
def test_linear_layers_have_the_published_sizes(cls: type[nn.Module]) -> None:
    with torch.device("meta"):
        linears = [module for module in cls().modules() if isinstance(module, nn.Linear)]
    assert [linears[0].in_features, *(linear.out_features for linear in linears)] == SIZES[cls]


def test_parameter_names_match_published_checkpoints() -> None:
    with torch.device("meta"):
        keys = {cls: list(cls().state_dict()) for cls in SIZES}
    assert keys[TwoLayerMLP] == [f"linear_relu_stack.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert keys[ThreeLayerMLP] == [f"linear_relu_stack.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for cls, count, norms in (
        (SixLayerMLP, 5, ("batchnorm", "batchnorm2", "batchnorm3")),
        (TwelveLayerMLP, 11, ("batchnorm2048", "batchnorm1024", "batchnorm512", "batchnorm256")),
    ):
        linears = [*(f"fc{i}" for i in range(1, count + 1)), "fc_last"]
        expected = [f"{name}.{kind}" for name in linears for kind in ("weight", "bias")]
        assert keys[cls] == expected + [f"{name}.{kind}" for name in norms for kind in statistics]


def _bn(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


def _randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if "batchnorm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


def test_six_layer_arithmetic_is_norm_after_relu_with_two_residual_additions() -> None:
    model = _randomise(SixLayerMLP(in_features=12))
    assert isinstance(model, SixLayerMLP)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    first = _bn(F.relu(model.fc1(x.flatten(1))), model.batchnorm)
    second = _bn(F.relu(model.fc2(first)), model.batchnorm) + first
    third = _bn(F.relu(model.fc3(second)), model.batchnorm2)
    fourth = _bn(F.relu(model.fc4(third)), model.batchnorm2) + third
    fifth = _bn(F.relu(model.fc5(fourth)), model.batchnorm3)
    torch.testing.assert_close(model(x), model.fc_last(fifth))


def test_twelve_layer_arithmetic_shares_one_norm_per_width_without_residuals() -> None:
    model = _randomise(TwelveLayerMLP(in_features=12, num_classes=7))
    x = torch.randn(3, 12, dtype=torch.float64)
    expected = x
    for index in range(1, 12):
        linear = model.get_submodule(f"fc{index}")
        norm = model.get_submodule(f"batchnorm{linear.out_features}")
        assert isinstance(norm, nn.BatchNorm1d)
        expected = _bn(F.relu(linear(expected)), norm)
    torch.testing.assert_close(model(x), model.get_submodule("fc_last")(expected))
