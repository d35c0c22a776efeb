"""What a pruning says of itself: widths, amounts, the table."""

from __future__ import annotations

import pytest
import torch

from mlprank.measures import WeightedPageRank
from mlprank.models import MLP, SixLayerMLP
from mlprank.pruning.pipeline import prune
from mlprank.pruning.result import PruningResult
from tests.networks import randomise


@pytest.fixture(scope="module")
def result() -> PruningResult:
    network = randomise(MLP(6, [10, 8], 3), seed=1).eval()
    return prune(network, torch.randn(20, 6), amount=0.3, measure=WeightedPageRank(gamma=0.5))


def test_widths_are_those_of_the_weights(result: PruningResult) -> None:
    assert result.widths == {"fc1": (10, 7), "fc2": (8, 6), "fc_last": (3, 3)}
    for name, (wide, narrow) in result.widths.items():
        assert len(result.dense.get_parameter(f"{name}.weight")) == wide
        assert len(result.masked.get_parameter(f"{name}.weight")) == wide
        assert len(result.model.get_parameter(f"{name}.weight")) == narrow
    assert result.zeroed == {"fc1": 0, "fc2": 0}


def test_achieved_and_requested_amounts_stand_side_by_side(result: PruningResult) -> None:
    assert result.achieved == pytest.approx(5 / 18)
    assert result.recipe.amount == 0.3
    assert result.max_difference < 1e-5
    assert result.metrics.before.num_parameters == 10 * 7 + 8 * 11 + 3 * 9
    assert result.metrics.after.num_parameters == 7 * 7 + 6 * 8 + 3 * 7


def test_the_table_says_what_a_person_wants_to_know(result: PruningResult) -> None:
    text = str(result)
    assert "MLP pruned by weighted_pagerank, local, least_squares, dag" in " ".join(text.split())
    for line in ("fc1 10 neurons 7 neurons -30.0%", "fc_last 3 neurons 3 neurons whole", "parameters 185 118 -36.2%"):
        assert line in " ".join(text.split())
    assert "Pruned 27.8% of the neurons of the prunable layers (30.0% requested)." in text
    assert "Masked and removed network agree: their outputs differ by at most" in text
    assert 'Whole: "fc_last": its neurons are outputs of the network.' in text
    assert "Kept though chosen" not in text
    assert "zeroed" not in text


def test_rows_of_tied_layers_that_only_one_of_them_lost_are_counted_as_zeroed() -> None:
    network = randomise(SixLayerMLP(in_features=12), seed=1).eval()
    result = prune(network, torch.randn(20, 12), amount=0.5, graph="chain", compensation="constant")
    for name, mask in result.masks.items():
        weight = result.model.get_parameter(f"{name}.weight")
        assert result.zeroed[name] == int((weight == 0).all(1).sum()) == len(weight) - int(mask.sum())
    assert result.zeroed["fc1"] > 0
    assert result.zeroed["fc5"] == 0
    assert f"{result.widths['fc1'][1]} neurons ({result.zeroed['fc1']} zeroed)" in str(result)


def test_amounts_by_layer_are_told_by_layer() -> None:
    network = randomise(MLP(6, [10, 8], 3), seed=1).eval()
    result = prune(network, torch.randn(20, 6), amount={"fc1": 0.3, "fc2": 0.5})
    assert "(fc1 30%, fc2 50% requested)" in str(result)


def test_the_recipe_is_plain(result: PruningResult) -> None:
    assert result.recipe.plain() == {
        "amount": 0.3,
        "measure": {"name": "weighted_pagerank", "gamma": 0.5, "theta": 0.5},
        "method": {"name": "local"},
        "compensation": {"name": "least_squares", "ridge": 1e-2},
        "graph": "dag",
        "protect_output": True,
        "protect": [],
        "min_neurons": 1,
        "round_to": 1,
        "refine": 0,
        "num_samples": 1024,
        "seed": 0,
    }


def test_a_notebook_shows_five_lines_or_the_table_or_the_chart(
    result: PruningResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0] == "MLP pruned by weighted_pagerank, local, least_squares, dag"
    assert lines[2:4] == ["  parameters  185 → 118 (-36.2%)", "  layers      fc1 10 → 7, fc2 8 → 6"]
    html = result._repr_html_()
    assert html.startswith("<pre")
    assert "fc1" in html
    assert "Masked and removed network agree" in html
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: pytest.fail("a second table appears"))
    assert result._repr_html_() == html
    assert result.plot().to_dict()["$schema"].startswith("https://vega.github.io/schema/vega-lite")


def test_rows_say_what_every_layer_kept(result: PruningResult) -> None:
    assert result.rows()[:2] == [
        {"layer": "fc1", "neurons": 10, "kept": 7},
        {"layer": "fc2", "neurons": 8, "kept": 6},
    ]


def test_five_lines_are_enough_for_any_number_of_layers() -> None:
    text = repr(prune(MLP(6, [4] * 30, 3), torch.randn(20, 6)))
    assert len(text.splitlines()) == 5
    assert "fc4 4 → 2 and 26 more" in text
