"""What pruned neurons leave behind, against least squares on explicit activations of the partially pruned network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlprank.calibration.statistics import Moments
from mlprank.compensation import Constant, LeastSquares, Mean, Zero, get_compensation
from mlprank.models import MLP, SixLayerMLP
from mlprank.pruning.pipeline import Pruning, prune
from tests.networks import outputs, randomise
from tests.reference_graph import compensate_by_hand, ridge_prediction

READS = {
    "MLP": [("fc2", "fc1"), ("fc3", "fc2"), ("fc_last", "fc3")],
    "SixLayerMLP": [("fc2", "fc1"), ("fc3", "fc1"), ("fc4", "fc3"), ("fc5", "fc3"), ("fc_last", "fc5")],
}


def network_of(name: str) -> nn.Module:
    built = MLP(12, [10, 9, 8], 4, activation="gelu", batch_norm=True) if name == "MLP" else SixLayerMLP(in_features=12)
    return randomise(built, seed=7).double().eval()


def inputs(num_samples: int = 80) -> Tensor:
    return torch.randn(num_samples, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("ridge", [None, 1e-2])
def test_readers_are_regressed_in_forward_order_on_the_network_pruned_before_them(
    name: str, ridge: float | None
) -> None:
    network, x = network_of(name), inputs(80 if name == "MLP" else 700)
    compensation = Mean() if ridge is None else LeastSquares(ridge=ridge)
    result = prune(network, list(x.split(33)), amount=0.4, compensation=compensation)
    expected = compensate_by_hand(copy.deepcopy(network), x, dict(result.masks), READS[name], ridge=ridge)
    for reader, _ in READS[name]:
        got, slow = result.masked.get_submodule(reader), expected.get_submodule(reader)
        rows = result.masks.get(reader, torch.ones(len(got.get_parameter("weight")), dtype=torch.bool))
        for parameter in ("weight", "bias"):
            ours, theirs = got.get_parameter(parameter)[rows], slow.get_parameter(parameter)[rows]
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
    ours, theirs = outputs(result.model, x)["logits"], outputs(expected, x)["logits"]
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_mean_compensation_leaves_the_mean_of_the_next_layer_where_it_was() -> None:
    network, x = network_of("MLP"), inputs()
    result = prune(network, x, amount={"fc3": 0.5}, compensation="mean")
    before, after = outputs(network, x)["logits"].mean(0), outputs(result.model, x)["logits"].mean(0)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("compensation", ["mean", "least_squares"])
def test_moments_of_many_batches_are_those_of_one(compensation: str) -> None:
    network, x = network_of("MLP"), inputs()
    one, many = (prune(network, data, compensation=compensation).model for data in (x, list(x.split(7))))
    torch.testing.assert_close(outputs(one, x)["logits"], outputs(many, x)["logits"], rtol=1e-8, atol=1e-9)


def test_constant_sends_act_of_bias_and_zero_sends_act_of_nothing() -> None:
    network, x = network_of("MLP"), inputs()
    for name, keeps_bias in (("constant", True), ("zero", False)):
        result = prune(network, x, amount=0.5, compensation=name)
        by_hand = copy.deepcopy(network)
        with torch.no_grad():
            for layer, mask in result.masks.items():
                linear = by_hand.get_submodule(layer)
                linear.get_parameter("weight")[~mask] = 0
                if not keeps_bias:
                    linear.get_parameter("bias")[~mask] = 0
        assert torch.equal(outputs(by_hand, x)["logits"], outputs(result.masked, x)["logits"])
        torch.testing.assert_close(
            outputs(by_hand, x)["logits"], outputs(result.model, x)["logits"], rtol=1e-12, atol=1e-12
        )


def test_zeroed_rows_of_a_layer_that_had_no_bias_stay_zero_where_one_is_created() -> None:
    network = randomise(MLP(6, [8, 7], 3, bias=False, activation="sigmoid"), seed=3)
    result = prune(network, torch.randn(40, 6), compensation="least_squares", protect_output=False)
    for name, mask in result.masks.items():
        layer = result.masked.get_submodule(name)
        assert not layer.get_parameter("weight")[~mask].any()
        if "bias" in dict(layer.named_parameters()):
            assert not layer.get_parameter("bias")[~mask].any()
    assert set(result.biases) == {"fc2.bias", "fc_last.bias"}


def moments_of(seen: np.ndarray) -> Moments:
    mean = seen.mean(0)
    gram = (seen - mean).T @ (seen - mean)
    return Moments(len(seen), torch.from_numpy(mean), torch.from_numpy(gram))


def test_least_squares_equals_lstsq_with_a_ridge() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(50, 9)) @ rng.normal(size=(9, 9)) + 3
    mask = torch.tensor([True, False, True, True, False, True, False, True, True])
    got = LeastSquares(ridge=0.05).predict(moments_of(seen), mask)
    coefficients, intercept = ridge_prediction(seen, mask.numpy(), ridge=0.05)
    np.testing.assert_allclose(got.coefficients.numpy(), coefficients, rtol=1e-9)
    np.testing.assert_allclose(got.intercept.numpy(), intercept, rtol=1e-9)


def test_a_singular_gram_matrix_is_solved() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(30, 3))
    seen = base @ rng.normal(size=(3, 8))  # rank 3 of 8
    mask = torch.tensor([True] * 6 + [False] * 2)
    got = LeastSquares(ridge=1e-6).predict(moments_of(seen), mask)
    predicted = seen[:, :6] @ got.coefficients.numpy() + got.intercept.numpy()
    np.testing.assert_allclose(predicted, seen[:, 6:], atol=1e-4)


def test_the_ridge_grows_until_the_matrix_can_be_factorised() -> None:
    # Two equal neurons, and a rounding error that makes the matrix indefinite: a ridge of 1e-18 is lost in it.
    gram = torch.full((3, 3), 4.0, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = 4.0 * (1 + 1e-12)
    moments = Moments(10, torch.zeros(3, dtype=torch.float64), gram)
    assert int(torch.linalg.cholesky_ex(gram[:2, :2] + 4e-18 * torch.eye(2, dtype=torch.float64)).info)
    got = LeastSquares(ridge=1e-18).predict(moments, torch.tensor([True, True, False]))
    assert torch.isfinite(got.coefficients).all()
    assert float(got.coefficients.sum()) == pytest.approx(1, abs=1e-3)


def test_kept_neurons_that_never_vary_predict_the_mean() -> None:
    seen = np.column_stack([np.full(20, 2.0), np.full(20, -1.0), np.arange(20.0)])
    got = LeastSquares().predict(moments_of(seen), torch.tensor([True, True, False]))
    assert not got.coefficients.any()
    assert float(got.intercept) == pytest.approx(9.5)


def test_moments_that_are_not_finite_are_an_error_and_not_an_endless_loop() -> None:
    gram = torch.full((2, 2), float("nan"), dtype=torch.float64)
    with pytest.raises(ValueError, match="moments of the kept neurons are not finite"):
        LeastSquares().predict(Moments(5, torch.zeros(2), gram), torch.tensor([True, False]))


def test_fewer_images_than_neurons_and_constant_neurons_give_finite_networks() -> None:
    network = randomise(MLP(6, [40, 40], 3), seed=3)
    with torch.no_grad():
        network.get_parameter("fc1.weight")[:10] = 0  # constants that rounding gives tiny variances
    for compensation in ("mean", "least_squares"):
        for measure in ("weighted_pagerank", "reconstruction"):
            result = prune(network, torch.randn(5, 6), compensation=compensation, measure=measure, amount=0.6)
            assert torch.isfinite(outputs(result.model, torch.randn(50, 6))["logits"]).all()


def test_a_reader_without_a_place_for_a_bias_is_regressed_without_an_intercept() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 8)
            self.head = nn.Parameter(torch.empty(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.fc(x).relu(), self.head)

    network, x = randomise(Functional(), seed=2).double().eval(), inputs()[:, :5]
    result = prune(network, x, amount=0.5, compensation=LeastSquares(ridge=1e-3))
    assert result.biases == ()
    mask = result.masks["fc"].numpy()
    fc, head = network.get_submodule("fc"), network.get_parameter("head").detach().numpy()
    seen = fc(x).relu().detach().numpy()
    # Without an intercept, the data are mirrored: their mean is zero, everything else is as it was.
    coefficients, intercept = ridge_prediction(np.concatenate([seen, -seen]), mask, ridge=1e-3)
    assert np.abs(intercept).max() < 1e-12
    expected = head[:, mask] + head[:, ~mask] @ coefficients.T
    np.testing.assert_allclose(result.model.get_parameter("head").detach().numpy(), expected, rtol=1e-8)
    held = prune(network, x, amount=0.5, compensation="constant")
    assert held.achieved < 0.5
    assert held.held_back == {"fc": 4 - int((~held.masks["fc"]).sum())}
    assert "Kept though chosen" in str(held)
    assert '"fc"' in str(held)


def test_least_squares_beats_mean_and_mean_beats_constant_on_the_data_it_saw() -> None:
    network, x = network_of("MLP"), inputs(200)
    pruning = Pruning(network, x)
    dense = outputs(network, x)["logits"]
    errors = [
        float((outputs(pruning.run(amount={"fc3": 0.5}, compensation=name).model, x)["logits"] - dense).square().mean())
        for name in ("least_squares", "mean", "constant")
    ]
    assert errors[0] < errors[1] < errors[2]


def test_compensations_are_found_by_name_and_bad_ones_are_named() -> None:
    assert get_compensation("constant") == Constant()
    assert get_compensation("zero") == Zero()
    assert get_compensation({"name": "least_squares", "ridge": 0.5}) == LeastSquares(ridge=0.5)
    assert get_compensation(LeastSquares(ridge=2.0)) == LeastSquares(ridge=2.0)
    with pytest.raises(ValueError, match=r'unknown compensation "least_square"; did you mean .least_squares.'):
        get_compensation("least_square")
    for ridge in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"least_squares: ridge=.* must be a positive number"):
            LeastSquares(ridge=ridge)
    with pytest.raises(TypeError, match="is not a name, a class or an instance of a compensation"):
        get_compensation(3)  # type: ignore[arg-type]


def test_tied_layers_of_a_chain_have_no_regression() -> None:
    with pytest.raises(
        ValueError, match=r'graph="chain" prunes fc1, fc2 independently .*"constant" and "zero" are defined'
    ):
        prune(SixLayerMLP(in_features=8), torch.randn(4, 8), graph="chain", compensation="mean")
