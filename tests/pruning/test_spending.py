"""What the adaptive method goes by, and what comes of it in the pipeline."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mlprank
from mlprank.methods import Adaptive
from mlprank.models import MLP, FourLayerCNN
from mlprank.pruning import pipeline
from tests.networks import difference, outputs, randomise

COUNTS = ("neurons", "parameters", "flops", "bytes")


def inputs(num_samples: int = 200) -> Tensor:
    return torch.randn(num_samples, 12, generator=torch.Generator().manual_seed(1))


def network(**options: object) -> MLP:
    return randomise(MLP(12, [40, 30, 20], 5, **options), seed=0, zeros=0.0).eval()  # type: ignore[arg-type]


@cache
def pruning() -> mlprank.Pruning:
    return mlprank.Pruning(network(), inputs(), measure="reconstruction", method="adaptive")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.enter(x))
        return self.leave(h + F.relu(self.inner(h)))


def curves_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    counting = mlprank.Pruning(model, x)
    return counting.curves(tuple(counting.selection(counting.recipe).units))


@pytest.mark.parametrize("unit", ["fc1", "fc2", "fc3"])
def test_curves_say_how_much_the_outputs_change_when_the_other_neurons_are_predicted(unit):
    model, x = network(), inputs(100)
    curve = curves_of(model, x)[unit]
    shape = curve / curve[0] * math.log(1e12)
    few = int((shape >= 0.05).sum()) - 1
    result = mlprank.prune(model, x, measure="reconstruction", amount={unit: 1 - few / (len(curve) - 1)})
    assert result.widths[unit] == (len(curve) - 1, few)
    with torch.no_grad():
        expected = float((result.masked(x) - model(x)).square().sum())
    assert float(curve[few]) == pytest.approx(expected, rel=0.05)
    assert float(curve[-1]) < 0.01 * float(curve[few])


def test_a_layer_whose_outputs_hardly_count_costs_little():
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loud, self.faint = MLP(12, [24], 3), MLP(12, [24], 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.loud(x) + 1e-2 * self.faint(x)

    curves = curves_of(randomise(Apart(), seed=0, zeros=0.0).eval(), inputs())
    assert float(curves["faint.fc1"][12]) < 1e-2 * float(curves["loud.fc1"][12])


def test_readers_with_tied_weights_count_what_dropping_neurons_costs():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(12, 24)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t())

    curve = curves_of(randomise(Tied(), seed=0, zeros=0.0).eval(), inputs())["encoder"]
    assert float(curve[12]) > 0


def test_outputs_that_are_no_floating_point_numbers_are_refused():
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = MLP(12, [24], 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).argmax(1)

    with pytest.raises(ValueError, match=r'the network returns no floating-point numbers; use method="local"'):
        mlprank.prune(Chosen().eval(), inputs(), method="adaptive", amount=0.5)


@pytest.mark.parametrize(
    "make", [network, lambda: network(batch_norm=True), Residual], ids=["plain", "norm", "residual"]
)
@pytest.mark.parametrize("count", ["parameters", "flops", "bytes"])
def test_costs_are_what_is_counted_of_the_narrow_network(make, count):
    model, x = make().eval(), inputs()
    counting = mlprank.Pruning(model, x)
    for amount in (0.0, 0.4, 0.8):
        result = counting.run(amount=amount)
        units = tuple(counting.selection(result.recipe).units)
        costs = counting.costs(Adaptive(count=count), units)
        after = result.metrics.after
        expected = {"parameters": after.num_parameters, "flops": after.flops, "bytes": after.size_bytes}[count]
        widths = {unit: int(result.masks[unit].sum()) for unit in units}
        slack = 0.02 if count == "bytes" else 1e-9  # a file's own overhead depends a little on the widths
        assert costs.total(widths) == pytest.approx(expected, rel=slack)


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_neurons_come_out_exactly(amount):
    result = pruning().run(amount=amount)
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == round(amount * 90)
    assert difference(outputs(result.masked, inputs()), outputs(result.model, inputs())) <= 1e-5


@pytest.mark.parametrize("count", ["parameters", "flops", "bytes"])
def test_a_share_of_what_is_counted_is_removed_and_hardly_more(count):
    result = pruning().run(amount=0.6, method=Adaptive(count=count))
    metrics = result.metrics
    before, after = (
        {"parameters": each.num_parameters, "flops": each.flops, "bytes": each.size_bytes}[count]
        for each in (metrics.before, metrics.after)
    )
    assert 0.9 * 0.4 * before <= after <= 1.02 * 0.4 * before


def test_latency_is_counted_where_a_clock_says_so(monkeypatch):
    from mlprank.costs.metrics import Latency

    def by_parameters(models, example, **_):
        assert len(example) == 48  # as many samples as the method says, from a calibration batch of 20
        return {
            name: Latency(1e-6 * sum(each.numel() for each in model.parameters()), 0.0, 1)
            for name, model in models.items()
        }

    monkeypatch.setattr(pipeline, "measure_latency", by_parameters)
    few = mlprank.Pruning(network(), inputs(20), measure="reconstruction")
    result = few.run(amount=0.5, method=Adaptive(count="latency", batch_size=48))
    assert 0.3 < result.metrics.after.num_parameters / result.metrics.before.num_parameters < 0.7


def test_adaptive_leaves_a_smaller_error_than_uniform_widths_of_the_same_number_of_neurons():
    x = inputs(600)
    torch.manual_seed(0)
    model = MLP(12, [48, 48], 4)
    with torch.no_grad():  # the second layer carries little: most of its neurons say the same
        model.get_submodule("fc2").weight[4:] = model.get_submodule("fc2").weight[:4].repeat(11, 1)
        model.get_submodule("fc2").bias[4:] = model.get_submodule("fc2").bias[:4].repeat(11)
    both = mlprank.Pruning(model.eval(), x, measure="reconstruction", amount=0.75)
    errors = {}
    for method in ("local", "adaptive"):
        result = both.run(method=method)
        assert sum(int(mask.sum()) for mask in result.masks.values()) == 24
        errors[method] = float((result.model(x) - model(x)).square().mean().detach())
    assert errors["adaptive"] < 0.6 * errors["local"]


def test_guards_and_protected_layers_are_kept():
    result = pruning().run(amount=0.8, protect=["fc2"], min_neurons=6, round_to=2)
    widths = result.widths
    assert widths["fc2"] == (30, 30)
    assert all(narrow >= 6 and narrow % 2 == 0 for name, (_, narrow) in widths.items() if name in ("fc1", "fc3"))


def test_more_neurons_than_the_guards_let_go_are_not_removed():
    assert pruning().run(amount=0.99, min_neurons=5).widths["fc1"] == (40, 5)


def test_a_group_is_spent_on_as_one():
    result = mlprank.prune(Residual().eval(), inputs(), amount=0.5, method="adaptive")
    assert torch.equal(result.masks["enter"], result.masks["inner"])
    assert int(result.masks["enter"].sum()) == 12


def test_channels_behind_batch_norms_are_spent_on():
    model = randomise(FourLayerCNN(widths=(8, 8, 8, 8)), seed=0, zeros=0.0).eval()
    images = torch.randn(32, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    pruning = mlprank.Pruning(model, images, measure="reconstruction")
    adaptive, local = (pruning.run(amount=0.5, method=method) for method in ("adaptive", "local"))
    assert sum(int(mask.sum()) for mask in adaptive.masks.values()) == 16
    assert adaptive.widths != local.widths
    torch.testing.assert_close(adaptive.model(images), adaptive.masked(images), rtol=1e-5, atol=1e-5)


def test_what_was_pruned_before_stays_pruned_and_counts():
    from torch.nn.utils import prune as torch_prune

    model = network()
    rows = torch.ones(40, 12)
    rows[:25] = 0
    torch_prune.custom_from_mask(model.get_submodule("fc1"), "weight", rows)
    torch_prune.custom_from_mask(model.get_submodule("fc1"), "bias", rows[:, 0])
    result = mlprank.prune(model, inputs(), amount=0.5, method="adaptive", measure="reconstruction")
    assert not result.masks["fc1"][:25].any()
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == 45


def test_two_runs_choose_the_same():
    one, other = (mlprank.prune(network(), inputs(), amount=0.7, method="adaptive") for _ in range(2))
    assert one.widths == other.widths


def test_several_amounts_are_refused():
    with pytest.raises(
        ValueError, match=r'method="adaptive" takes one amount for all layers, but was given "fc1": 0\.5, "fc2": 0\.2'
    ):
        pruning().run(amount={"fc1": 0.5, "fc2": 0.2})


def test_the_published_reading_is_refused():
    with pytest.raises(ValueError, match='goes by the true graph of neurons; use graph="dag"'):
        mlprank.prune(network(), inputs(), method="adaptive", graph="chain", compensation="constant")


def test_a_share_that_cannot_be_reached_is_refused_with_the_least():
    with pytest.raises(ValueError, match=r"amount=0\.999 of the parameters: no widths keep .* lower the amount"):
        pruning().run(amount=0.999, method=Adaptive(count="parameters"))


@pytest.mark.parametrize("count", COUNTS)
def test_the_global_random_state_and_the_network_stay_as_they_were(count):
    model = network()
    before, state = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    mlprank.prune(model, inputs(), amount=0.5, method=Adaptive(count=count))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
