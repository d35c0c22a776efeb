"""The laws of mlprank.costs.metrics."""

from __future__ import annotations

import copy
import io
import threading
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mlprank.costs import metrics
from mlprank.utils.modules import LOCK


def small_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.again = self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.relu(self.fc(x)))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.T).T


class Noisy(nn.Module):
    """Draws noise even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.rand(3)


def test_parameters_of_a_shared_layer_count_once() -> None:
    assert metrics.count_parameters(Shared()) == 4 * 4 + 4
    assert metrics.count_nonzero(Shared()) == 4 * 4 + 4


def test_nonzero_counts_the_parameters_under_their_masks() -> None:
    model = small_mlp()
    prune.ln_structured(model[1], "weight", amount=0.5, n=1, dim=0)
    assert metrics.count_nonzero(model) == metrics.count_parameters(model) - 4 * 12
    prune.remove(model[1], "weight")
    assert metrics.count_nonzero(model) == metrics.count_parameters(model) - 4 * 12


def test_flops_are_twice_the_multiply_accumulates_of_one_sample() -> None:
    model = small_mlp()
    expected = 2 * (12 * 8 + 8 * 3)
    assert metrics.count_flops(model, torch.zeros(1, 3, 4)) == expected
    assert metrics.count_flops(model, torch.zeros(7, 3, 4)) == expected


def test_flops_of_attention_are_not_lost_in_fused_kernels() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    tokens, width, hidden = 5, 8, 16
    linear = tokens * (4 * width * width + 2 * width * hidden)
    scores = 2 * tokens * tokens * width
    assert metrics.count_flops(layer, torch.zeros(2, tokens, width)) == 2 * (linear + scores)


@pytest.mark.parametrize("removed", [False, True])
def test_nonzero_flops_leave_out_zero_weights_only(removed: bool) -> None:
    model = small_mlp()
    prune.ln_structured(model[1], "weight", amount=0.5, n=1, dim=0)
    if removed:
        prune.remove(model[1], "weight")
    example = torch.zeros(3, 12)  # zero inputs are not zero weights
    assert metrics.measure_model(model, example).flops_nonzero == 2 * (4 * 12 + 8 * 3)
    assert metrics.count_flops(model, example) == 2 * (8 * 12 + 8 * 3)


def test_nonzero_flops_count_every_position_of_a_sequence() -> None:
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight[0] = 0.0
    assert metrics.measure_model(layer, torch.ones(2, 5, 4)).flops_nonzero == 2 * 5 * 12
    assert metrics.measure_model(layer, torch.ones(5, 4, 2).permute(2, 0, 1)).flops_nonzero == 2 * 5 * 12


def test_nonzero_flops_see_a_weight_on_the_left_of_a_functional_product() -> None:
    assert metrics.measure_model(Functional(), torch.ones(6, 3)).flops_nonzero == 2 * 3


def test_flops_of_a_compiled_model_are_those_of_the_model() -> None:
    model = small_mlp()
    assert metrics.count_flops(torch.compile(model), torch.zeros(2, 12)) == metrics.count_flops(
        model, torch.zeros(2, 12)
    )
    model.compile()
    assert metrics.count_flops(model, torch.zeros(2, 12)) == 240


def test_an_example_without_a_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"example of shape \(0, 12\).*at least one sample"):
        metrics.count_flops(small_mlp(), torch.zeros(0, 12))


def test_size_is_the_length_of_the_saved_state_dict() -> None:
    model = small_mlp()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert metrics.size_bytes(model) == len(buffer.getvalue())


def test_size_of_a_slice_is_not_that_of_the_tensor_it_was_cut_from() -> None:
    narrow, view = nn.Linear(8, 4), nn.Linear(8, 4)
    view.weight = nn.Parameter(torch.zeros(1024, 8)[:4])
    assert metrics.size_bytes(view) == metrics.size_bytes(narrow)


def batches(labels: list[int], logits_width: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Images that are the logits themselves: class 0 first, then 1, then 2."""
    image = torch.arange(logits_width, 0, -1).float()
    return [(image.repeat(2, 1), torch.tensor(labels[i : i + 2])) for i in range(0, len(labels), 2)]


def test_top_k_accuracy_weights_every_image_the_same_over_uneven_batches() -> None:
    data = [*batches([0, 1, 2, 0]), (torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]))]
    assert metrics.top_k_accuracy(nn.Identity(), data, k=(1, 2)) == pytest.approx({1: 2 / 5, 2: 4 / 5})


def test_a_k_above_the_number_of_classes_counts_as_all_classes() -> None:
    assert metrics.top_k_accuracy(nn.Identity(), batches([0, 2]), k=(1, 5)) == {1: 0.5, 5: 1.0}
    assert metrics.top_k_accuracy(nn.Identity(), batches([0, 1], 2), k=(1, 5)) == {1: 0.5, 5: 1.0}


@pytest.mark.parametrize("data", [[], [(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))]])
def test_top_k_accuracy_of_no_image_is_an_error(data: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ValueError, match="batches holds no image"):
        metrics.top_k_accuracy(nn.Identity(), data)


def test_top_k_accuracy_names_a_label_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"label 3 names no class of a model with 3 classes"):
        metrics.top_k_accuracy(nn.Identity(), batches([0, 3]))
    with pytest.raises(ValueError, match=r"k=\(0,\) must hold integers of at least 1"):
        metrics.top_k_accuracy(nn.Identity(), batches([0, 1]), k=(0,))
    with pytest.raises(ValueError, match=r"logits of shape \(2, 1\)"):
        metrics.top_k_accuracy(nn.Identity(), batches([0, 0], 1))


def test_top_k_accuracy_refuses_a_model_that_returns_several_outputs() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match=r"returned a tuple.*one tensor of logits"):
        metrics.top_k_accuracy(Twice(), batches([0, 1]))


def test_latency_takes_turns_and_returns_median_and_spread() -> None:
    calls: list[str] = []

    def fast(x: Tensor) -> None:
        calls.append("fast")

    def slow(x: Tensor) -> None:
        calls.append("slow")
        time.sleep(0.005)

    result = metrics.measure_latency({"fast": fast, "slow": slow}, torch.zeros(1), repeats=5, warmup=1)
    assert calls == ["fast", "slow"] * 6
    assert result["slow"].median_s >= 0.005 > result["fast"].median_s >= 0.0
    assert result["slow"].iqr_s >= 0.0
    assert result["slow"].repeats == 5


def test_latency_refuses_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="models is empty"):
        metrics.measure_latency({}, torch.zeros(1))
    with pytest.raises(ValueError, match="repeats=0 must be a whole number of at least 1"):
        metrics.measure_latency({"a": nn.Identity()}, torch.zeros(1), repeats=0)
    with pytest.raises(ValueError, match="warmup=-1 must be a whole number of at least 0"):
        metrics.measure_latency({"a": nn.Identity()}, torch.zeros(1), warmup=-1)


def test_measuring_leaves_weights_statistics_mode_and_random_state_alone() -> None:
    model = nn.Sequential(Noisy(), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    data = [(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0]))]
    metrics.measure_model(model, data[0][0])
    metrics.top_k_accuracy(model, data)
    metrics.measure_latency({"model": model}, data[0][0], repeats=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


def test_modes_come_back_when_the_model_fails() -> None:
    model = small_mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        metrics.count_flops(model, torch.zeros(1, 5))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_waits_for_its_turn_before_it_changes_what_all_threads_share() -> None:
    counting = threading.Thread(target=metrics.count_flops, args=(small_mlp(), torch.zeros(1, 12)))
    with LOCK:
        counting.start()
        counting.join(timeout=0.5)
        assert counting.is_alive()
        assert torch.backends.mha.get_fastpath_enabled()
    counting.join()
    assert torch.backends.mha.get_fastpath_enabled()


def test_measure_model_joins_the_counts() -> None:
    result = metrics.measure_model(small_mlp(), torch.zeros(2, 12))
    assert result.num_parameters == result.num_nonzero == 12 * 8 + 8 + 8 * 3 + 3
    assert result.flops == result.flops_nonzero == 240
    assert result.size_bytes > 4 * result.num_parameters
    assert (result.latency_s, result.top_k) == (None, {})
