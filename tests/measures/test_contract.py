"""Laws that every registered measure keeps."""

from dataclasses import replace

import pytest
import torch

from mlprank.measures import MEASURES, LayerRecord, Reader, get_measure
from tests.measures.records import make_record

every_measure = pytest.mark.parametrize("name", list(MEASURES))
SHAPES = [(7, 5), (1, 1), (1, 6), (6, 1), (40, 30)]


def assert_scores(scores: torch.Tensor, layer: LayerRecord) -> None:
    assert scores.shape == (layer.weight.shape[0],)
    assert scores.dtype == (torch.float64 if layer.weight.dtype == torch.float64 else torch.float32)
    assert not scores.requires_grad
    assert bool(scores.isfinite().all())
    assert bool((scores >= 0).all())
    assert float(scores.double().sum()) == pytest.approx(1.0, abs=1e-6)


@every_measure
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_finite_non_negative_and_sum_to_1(name, shape, dtype):
    layer = make_record(*shape, dtype=dtype, amount=0.4)
    assert_scores(get_measure(name)(layer), layer)


@every_measure
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_measure_changes_none_of_its_input(name, requires_grad):
    layer = make_record(6, 5)
    weight = layer.weight.clone().requires_grad_(requires_grad)
    readers = layer.readers()
    layer = replace(layer, weight=weight, readers=lambda: readers)
    fields = [weight, layer.previous, layer.input_norms, layer.output_norms, readers[0].weight, readers[0].gram]
    before = [values.detach().clone() for values in fields]
    state = torch.get_rng_state()
    assert_scores(get_measure(name)(layer), layer)
    assert all(torch.equal(old, new) for old, new in zip(before, fields, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@every_measure
def test_the_same_record_gives_the_same_scores(name):
    layer = make_record(30, 20)
    assert torch.equal(get_measure(name)(layer), get_measure(name)(layer))


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "random"])
def test_permuting_the_neurons_permutes_the_scores(name):
    layer = make_record(9, 6, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    (reader,) = layer.readers()
    permuted = replace(
        layer,
        weight=layer.weight[order],
        output_norms=layer.output_norms[order],
        readers=lambda: (Reader(reader.weight[:, order], reader.gram[order][:, order]),),
    )
    measure = get_measure(name)
    torch.testing.assert_close(measure(permuted), measure(layer)[order], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "random"])
def test_permuting_the_inputs_changes_nothing(name):
    layer = make_record(9, 6, dtype=torch.float64)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    permuted = replace(
        layer,
        weight=layer.weight[:, order],
        previous=layer.previous[order],
        input_norms=layer.input_norms[order],
    )
    measure = get_measure(name)
    torch.testing.assert_close(measure(permuted), measure(layer), rtol=1e-9, atol=1e-15)


@every_measure
def test_a_layer_that_is_dead_on_the_calibration_data_gives_no_nan(name):
    layer = make_record(6, 5)
    dead = replace(
        layer,
        output_norms=torch.zeros(6),
        input_norms=torch.zeros(5),
        readers=lambda: (Reader(torch.ones(2, 6), torch.zeros(6, 6, dtype=torch.float64)),),
    )
    assert_scores(get_measure(name)(dead), dead)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "random"])
def test_a_layer_without_any_signal_is_uniform(name):
    zeros = torch.zeros(4, dtype=torch.float64)
    layer = LayerRecord(
        "dead",
        torch.zeros(4, 3),
        torch.full((3,), 1 / 3),
        torch.zeros(3),
        zeros,
        readers=lambda: (Reader(torch.zeros(2, 4), zeros.diag()),),
    )
    torch.testing.assert_close(get_measure(name)(layer), torch.full((4,), 0.25))


@every_measure
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_of_extreme_size_give_no_nan(name, scale):
    layer = make_record(6, 5, amount=0.4)
    scaled = replace(layer, weight=layer.weight * scale)
    assert_scores(get_measure(name)(scaled), scaled)


@every_measure
def test_a_weight_that_is_not_contiguous_scores_the_same(name):
    layer = make_record(6, 5)
    strided = replace(layer, weight=layer.weight.t().contiguous().t())
    measure = get_measure(name)
    torch.testing.assert_close(measure(strided), measure(layer))


@pytest.mark.parametrize("name", ["weighted_pagerank", "modified_pagerank", "norm", "wanda"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_an_error(name, value):
    layer = make_record(6, 5)
    layer.weight[2, 3] = value
    with pytest.raises(ValueError, match=r"weight.*(NaN or infinite|must be finite)"):
        get_measure(name)(layer)


def test_only_reconstruction_asks_for_the_pruned_network_below():
    asking = [name for name, cls in MEASURES.items() if getattr(cls, "reads_pruned", False)]
    assert asking == ["reconstruction"]


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "reconstruction"])
def test_no_published_measure_asks_for_gram_matrices(name):
    def refuse():
        raise AssertionError("readers were asked for")

    layer = replace(make_record(6, 5), readers=refuse)
    assert_scores(get_measure(name)(layer), layer)
