from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprank.measures import Reader, Reconstruction
from mlprank.measures.reconstruction import reconstruction_gains
from mlprank.measures.record import normalise_scores
from tests import reference
from tests.measures.records import array, assert_close, gram, make_record


def activations(num_samples: int, num_neurons: int, *, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_samples, rank or num_neurons, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank or num_neurons, num_neurons, generator=generator, dtype=torch.float64)
    mixed = hidden @ mixing
    return mixed if rank else mixed.relu()


def weights(num_targets: int, num_neurons: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 10_000)
    return torch.randn(num_targets, num_neurons, generator=generator, dtype=torch.float64)


def reconstruction(readers: list[Reader]) -> torch.Tensor:
    return normalise_scores(reconstruction_gains(readers))


def slow(*readers: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    return reference.reconstruction([(array(data), array(weight)) for data, weight in readers])


@settings(max_examples=80, deadline=None)
@given(
    num_neurons=st.integers(1, 12),
    num_targets=st.integers(1, 15),
    num_samples=st.integers(20, 40),
    seed=st.integers(0, 2**20),
)
def test_scores_equal_the_greedy_selection_on_the_data(num_neurons, num_targets, num_samples, seed):
    data, weight = activations(num_samples, num_neurons, seed=seed), weights(num_targets, num_neurons, seed=seed)
    assert_close(reconstruction([Reader(weight, gram(data))]), slow((data, weight)))


@pytest.mark.parametrize("num_targets", [3, 150, 300])
@pytest.mark.parametrize("num_samples", [250, 600])
def test_deferred_deflation_equals_the_selection_step_by_step(num_targets, num_samples):
    data, weight = activations(num_samples, 180, seed=1), weights(num_targets, 180, seed=1)
    assert_close(reconstruction([Reader(weight, gram(data))]), slow((data, weight)))


@pytest.mark.parametrize("size", [6, 150])
def test_readers_of_different_tensors_add_their_gains(size):
    first, second = activations(400, size, seed=2), activations(300, size, seed=3)
    above, beside = weights(4, size, seed=2), weights(5, size, seed=3)
    found = reconstruction([Reader(above, gram(first)), Reader(beside, gram(second))])
    assert_close(found, slow((first, above), (second, beside)))


def test_readers_of_one_tensor_count_as_one_with_stacked_weights():
    data, first, second = activations(60, 8, seed=4), weights(3, 8, seed=4), weights(4, 8, seed=5)
    shared = gram(data)
    found = reconstruction([Reader(first, shared), Reader(second, shared)])
    assert_close(found, array(reconstruction([Reader(torch.cat([first, second]), shared)])), rtol=1e-12)
    assert_close(found, slow((data, torch.cat([first, second]))))


def test_a_neuron_that_repeats_another_gains_nothing():
    data, weight = activations(60, 6, seed=5), weights(3, 6, seed=5)
    data[:, 4] = -2.0 * data[:, 1] + 7.0
    scores = reconstruction([Reader(weight, gram(data))])
    assert (float(scores[1]) == 0.0) != (float(scores[4]) == 0.0)


def test_with_fewer_samples_than_neurons_only_so_many_gain():
    data, weight = activations(11, 150, seed=6), weights(150, 150, seed=6)
    assert int((reconstruction([Reader(weight, gram(data))]) > 0).sum()) == 10


def test_of_a_low_rank_layer_only_the_rank_gains():
    data, weight = activations(500, 100, seed=7, rank=8), weights(5, 100, seed=7)
    assert int((reconstruction([Reader(weight, gram(data))]) > 0).sum()) <= 8


def test_the_first_neuron_alone_explains_most_and_the_gains_add_up_to_all():
    data, weight = activations(200, 10, seed=8), weights(4, 10, seed=8)
    centred = data - data.mean(0)
    target = centred @ weight.t()
    alone = ((centred.t() @ target) ** 2).sum(1) / (centred**2).sum(0)
    scores = reconstruction([Reader(weight, gram(data))])
    assert float(scores[alone.argmax()]) == pytest.approx(float(alone.max() / (target**2).sum()), rel=1e-9)


def test_neurons_that_nothing_uses_and_that_vary_on_their_own_come_last():
    data = torch.eye(6, dtype=torch.float64)
    weight = torch.ones(2, 6, dtype=torch.float64)
    data = torch.cat([data, -data])
    weight[:, 2] = 0.0
    scores = reconstruction([Reader(weight, gram(data))])
    assert float(scores[2]) == 0.0
    assert int((scores > 0).sum()) == 5


def test_a_layer_without_readers_is_ranked_by_its_output_norms():
    layer = replace(make_record(7, 3), readers=tuple)
    assert_close(Reconstruction()(layer), reference.normalise(array(layer.output_norms)))


def test_the_readers_are_left_as_they_were():
    shared, weight = gram(activations(300, 150, seed=9)), weights(3, 150, seed=9)
    before = shared.clone()
    reconstruction([Reader(weight, shared)])
    assert torch.equal(shared, before)


@pytest.mark.parametrize("shape", [(5, 5), (6, 5)])
def test_a_gram_matrix_that_does_not_fit_names_layer_and_reader(shape):
    readers = (Reader(torch.ones(2, 6), torch.eye(6)), Reader(torch.ones(2, 6), torch.ones(shape)))
    layer = replace(make_record(6, 3, name="fc4"), readers=lambda: readers)
    with pytest.raises(ValueError, match=r'layer "fc4": readers\[1\]: weight of shape \(2, 6\) and gram of shape'):
        Reconstruction()(layer)


@pytest.mark.parametrize("argument", ["weight", "gram"])
def test_a_reader_with_nan_names_layer_and_argument(argument):
    values = {"weight": torch.ones(2, 6), "gram": torch.eye(6, dtype=torch.float64)}
    values[argument][1, 1] = float("nan")
    layer = replace(make_record(6, 3, name="fc4"), readers=lambda: (Reader(**values),))
    with pytest.raises(ValueError, match=rf'layer "fc4": readers\[0\]: {argument} has a NaN or infinite entry'):
        Reconstruction()(layer)


def test_readers_of_another_number_of_neurons_than_the_layer_are_an_error():
    layer = replace(make_record(6, 3, name="fc4"), readers=lambda: (Reader(torch.ones(2, 5), torch.eye(5)),))
    with pytest.raises(ValueError, match=r'layer "fc4": its readers have 5 neurons, its weight 6'):
        Reconstruction()(layer)


def test_no_reader_is_an_error_of_the_function():
    with pytest.raises(ValueError, match="readers is empty"):
        reconstruction([])


def test_neurons_that_are_all_spanned_at_the_end_of_a_block_gain_nothing():
    basis = activations(300, 200, seed=0, rank=64)  # 200 neurons that 64 of them span: one block of steps
    scores = reconstruction(
        [Reader(torch.ones(1, 200, dtype=torch.float64) + torch.eye(200, dtype=torch.float64), basis.T @ basis)]
    )
    assert int((scores > 0).sum()) == 64
    assert float(scores.sum()) == pytest.approx(1.0)
