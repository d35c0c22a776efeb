"""The laws of spending a budget where it costs least."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mlprank.methods import Local, get_method
from mlprank.methods.adaptive import COUNTED, Adaptive, Costs, Term, error_curve, spend


def neurons(*units: str) -> Costs:
    return Costs([Term(1.0, ((0.0, {unit: 1.0}),)) for unit in units])


def parameters(widths: tuple[int, ...]) -> Costs:
    """A plain perceptron's weights and biases; units are h1, h2, …, between a fixed input and a fixed output."""
    sides = [(float(widths[0]), {})]
    sides += [(0.0, {f"h{index}": 1.0}) for index in range(1, len(widths) - 1)]
    sides += [(float(widths[-1]), {})]
    terms = [Term(1.0, (below, above)) for below, above in itertools.pairwise(sides)]
    return Costs([*terms, *(Term(1.0, (above,)) for above in sides[1:])])


def curves(seed: int, *widths: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for index, width in enumerate(widths, start=1):
        gains = torch.rand(width, generator=generator, dtype=torch.float64).pow(4) * 10 ** (2 * index % 3)
        found[f"h{index}"] = error_curve(gains, float(gains.sum()))
    return found


def error(curves: dict[str, Tensor], widths: dict[str, int]) -> float:
    return sum(float(curve[widths[unit]]) for unit, curve in curves.items())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [3, 7, 12, 17])
def test_of_all_widths_with_so_many_neurons_those_of_least_error_are_chosen(seed, budget):
    given = curves(seed, 8, 6, 5)
    best = min(
        error(given, dict(zip(given, widths, strict=True)))
        for widths in itertools.product(range(1, 9), range(1, 7), range(1, 6))
        if sum(widths) == budget
    )
    chosen = spend(given, neurons(*given), budget)
    assert sum(chosen.values()) == budget
    assert error(given, chosen) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.7, 0.4, 0.15])
def test_a_budget_of_parameters_is_kept_and_spent_nearly_as_well_as_the_best_of_all_widths(seed, share):
    given, costs = curves(seed, 12, 10), parameters((9, 12, 10, 4))
    budget = share * costs.total({"h1": 12, "h2": 10})
    chosen = spend(given, costs, budget)
    assert costs.total(chosen) <= budget
    best = min(
        error(given, {"h1": one, "h2": two})
        for one, two in itertools.product(range(1, 13), range(1, 11))
        if costs.total({"h1": one, "h2": two}) <= budget
    )
    whole = error(given, {"h1": 0, "h2": 0})
    assert error(given, chosen) <= best + 0.05 * whole


def test_costs_of_widths_are_those_that_a_network_has():
    costs = parameters((784, 512, 256, 10))
    for one, two in ((512, 256), (100, 30), (1, 1)):
        network = torch.nn.Sequential(torch.nn.Linear(784, one), torch.nn.Linear(one, two), torch.nn.Linear(two, 10))
        assert costs.total({"h1": one, "h2": two}) == sum(each.numel() for each in network.parameters())
    before, after = {"h1": 40, "h2": 20}, {"h1": 33, "h2": 20}
    assert costs.saving(before, "h1", 7) == costs.total(before) - costs.total(after)
    assert costs.beside("h1") == {"h1", "h2"}


def test_error_curves_fall_are_convex_and_end_at_what_no_neuron_explains():
    curve = error_curve(torch.tensor([2.0, 0.0, 5.0, 1.0]), 9.0)
    assert curve[1:].tolist() == pytest.approx([math.log(9 / explained) for explained in (5, 7, 8, 8)])
    steps = curve.diff()
    assert (steps <= 0).all()
    assert (steps.diff() >= 0).all()
    assert error_curve(torch.tensor([1.0, 1.0]), 1.5)[2] == 0  # rounding never makes it negative
    assert error_curve(torch.zeros(2), 0.0).tolist() == [0.0, 0.0, 0.0]


def test_where_little_is_unexplained_the_curve_is_what_is_unexplained():
    assert float(error_curve(torch.tensor([1.0, 0.001]), 1.001)[1]) == pytest.approx(0.001, rel=1e-3)


def test_no_layer_is_emptied_because_its_neurons_are_dear():
    """The dear layer explains half as much: the sum of what is unexplained would empty it."""
    explained = {"cheap": torch.ones(640), "dear": torch.full((64,), 5.0)}
    costs = Costs([Term(1.0, ((0.0, {"cheap": 1.0}),)), Term(10.0, ((0.0, {"dear": 1.0}),))])
    unexplained = {unit: torch.arange(len(gains), -1, -1) * float(gains[0]) for unit, gains in explained.items()}
    assert spend(unexplained, costs, 384)["dear"] == 1
    given = {unit: error_curve(gains, float(gains.sum())) * float(gains.sum()) for unit, gains in explained.items()}
    assert 10 <= spend(given, costs, 384)["dear"] <= 16


@pytest.mark.parametrize(("round_to", "min_neurons"), [(1, 1), (8, 1), (8, 20), (1, 30), (64, 1)])
def test_guards_hold_on_the_whole_way_down(round_to, min_neurons):
    given = curves(1, 100, 64)
    least = {unit: min(len(curve) - 1, -(-min_neurons // round_to) * round_to) for unit, curve in given.items()}
    full = last = {unit: len(curve) - 1 for unit, curve in given.items()}
    for budget in range(sum(full.values()), sum(least.values()) - 1, -1):
        widths = spend(given, neurons(*given), budget, min_neurons=min_neurons, round_to=round_to)
        assert sum(widths.values()) <= budget
        for unit, width in widths.items():
            assert least[unit] <= width <= last[unit]
            assert width % round_to == 0 or width in (least[unit], full[unit])
        last = widths
    assert last == least


def test_neurons_that_are_gone_already_are_not_spent_again():
    given = curves(2, 30, 30)
    assert spend(given, neurons(*given), 25, widths={"h1": 10})["h1"] <= 10
    assert spend(given, neurons(*given), 40, widths={"h1": 10}) == {"h1": 10, "h2": 30}


def test_neurons_that_cost_nothing_of_the_output_go_first():
    given = {"needed": torch.arange(21.0).flip(0), "idle": torch.zeros(21)}
    assert spend(given, neurons(*given), 25) == {"needed": 20, "idle": 5}


def test_a_budget_that_no_widths_keep_names_the_least_that_can_be_reached():
    given, costs = curves(3, 12, 10), parameters((9, 12, 10, 4))
    least = costs.total({"h1": 1, "h2": 1})
    with pytest.raises(
        ValueError, match=rf"no widths keep a budget of 5: the least that pruning reaches is {least:.0f} of"
    ):
        spend(given, costs, 5)


def test_within_a_layer_scores_decide_as_with_local():
    scores, amounts = {"fc1": torch.rand(20), "fc2": torch.rand(10)}, {"fc1": 0.5, "fc2": 0.2}
    for name, mask in Adaptive()(scores, amounts).items():
        assert torch.equal(mask, Local()(scores, amounts)[name])


def test_the_method_has_a_name_and_parameters():
    assert get_method("adaptive") == Adaptive(count="neurons")
    assert get_method({"name": "adaptive", "count": "bytes"}).count == "bytes"
    with pytest.raises(
        ValueError, match="count='weights' is unknown; choose one of neurons, parameters, flops, bytes, latency"
    ):
        Adaptive(count="weights")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number of at least 1"):
        Adaptive(batch_size=0)
    assert set(COUNTED) == {"neurons", "parameters", "flops", "bytes", "latency"}
