"""The frozen records, and the groups of randomly drawn networks against what their descriptions say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from mlprank.graph.axes import Segment, size_of
from mlprank.graph.records import Scale
from mlprank.graph.trace import trace
from mlprank.models import SixLayerMLP
from tests.networks import Drawn, Spec
from tests.pruning.test_exactness import specs


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(specs())
def test_groups_are_those_that_the_description_ties(spec: Spec) -> None:
    network = Drawn(spec)
    graph = trace(network, network.inputs(3))
    # An input of one feature is added to neurons as a scalar would be: they are moved, not whole.
    free = {frozenset(group.layers): group.whole is None and not group.moved for group in graph.groups}
    assert free == network.expected.groups()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for group in graph.groups:
        for layer in graph.readers_of(group):
            assert layer.in_features == group.width
            assert layer.read == (Segment(graph.group_by_name[group.name], group.width),)
        if group.whole is None:
            assert not group.output
    for (name, dim), axis in graph.slots.items():
        if name in shapes:  # a bias that may be created is not there yet
            assert shapes[name][dim] == size_of(axis)


@pytest.fixture(scope="module")
def six():
    return trace(SixLayerMLP(in_features=20).eval(), torch.randn(3, 20))


def test_six_layer_mlp_has_a_group_for_every_width(six) -> None:
    assert [group.layers for group in six.groups] == [("fc1", "fc2"), ("fc3", "fc4"), ("fc5",), ("fc_last",)]
    first = six.group_of("fc2")
    assert first is six.groups[0]
    assert first.name == "fc1"
    assert first.readers == ("fc2", "fc3")
    assert {place for place, axis in six.slots.items() if axis == (Segment(0, 512),)} == {
        ("fc1.weight", 0),
        ("fc1.bias", 0),
        ("fc2.weight", 0),
        ("fc2.weight", 1),
        ("fc2.bias", 0),
        ("fc3.weight", 1),
        ("batchnorm.weight", 0),
        ("batchnorm.bias", 0),
        ("batchnorm.running_mean", 0),
        ("batchnorm.running_var", 0),
    }
    assert six.groups[-1].output
    assert [group.whole for group in six.groups] == [None, None, None, "its neurons are outputs of the network"]
    assert not six.others
    assert [layer.name for layer in six.layers] == ["fc1", "fc2", "fc3", "fc4", "fc5", "fc_last"]
    assert [layer.name for layer in six.readers_of(six.groups[2])] == ["fc_last"]


def test_layers_know_what_they_read_and_what_they_add(six) -> None:
    layer = six.by_name["fc2"]
    assert (layer.out_features, layer.in_features) == (512, 512)
    assert layer.made_groups == (0,)
    assert layer.read == (Segment(0, 512),)
    assert layer.biases == ("fc2.bias",)
    assert layer.calls[0].bias == "fc2.bias"
    assert len(layer.sources) == 1
    assert six.by_name["fc1"].read_groups == ()


def test_records_are_frozen(six) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        six.groups[0].width = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        six.layers[0].name = "other"


def test_the_factor_of_a_normalisation_is_its_gain_over_its_deviation() -> None:
    state = {"w": torch.tensor([-2.0, 3.0]), "v": torch.tensor([4.0 - 1e-3, 0.25 - 1e-3])}
    torch.testing.assert_close(Scale("w", "v", 1e-3).factor(state), torch.tensor([1.0, 6.0]))
    torch.testing.assert_close(Scale(None, "v", 1e-3).factor(state), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(Scale("w").factor(state), torch.tensor([2.0, 3.0]))
    assert Scale(None).factor(state) == 1.0
