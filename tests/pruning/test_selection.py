"""What may be pruned, and how much of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlprank.graph.records import Graph
from mlprank.graph.trace import trace
from mlprank.models import MLP, SixLayerMLP
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.selection import Selection, amounts_by_name, describe_whole, select
from mlprank.utils.errors import check_amount

OUTPUT = "its neurons are outputs of the network"


@pytest.fixture(scope="module")
def mlp() -> Graph:
    return trace(MLP(6, [8, 7, 5], 3), torch.randn(3, 6))


@pytest.fixture(scope="module")
def six() -> Graph:
    return trace(SixLayerMLP(in_features=20).eval(), torch.randn(3, 20))


def chosen(network: Graph, **fields: Any) -> Selection:
    return select(network, Recipe(**fields), already={})


def test_every_group_but_the_output_is_chosen(six: Graph) -> None:
    selection = chosen(six)
    assert selection.units == {"fc1": ("fc1", "fc2"), "fc3": ("fc3", "fc4"), "fc5": ("fc5",)}
    assert selection.amounts == {"fc1": 0.5, "fc3": 0.5, "fc5": 0.5}
    assert selection.whole == {"fc_last": OUTPUT}
    chain = chosen(six, graph="chain")
    assert chain.units == {name: (name,) for name in ("fc1", "fc2", "fc3", "fc4", "fc5")}


def test_the_output_is_chosen_when_it_is_not_protected(mlp: Graph) -> None:
    assert list(chosen(mlp, protect_output=False).units) == ["fc1", "fc2", "fc3", "fc_last"]
    assert chosen(mlp, protect_output=False).whole == {}


def test_amounts_go_by_name_and_the_last_pattern_that_matches_counts(mlp: Graph) -> None:
    selection = chosen(mlp, amount={"*": 0.2, "fc[2-3]": 0.6, "fc3": 0.7})
    assert selection.amounts == {"fc1": 0.2, "fc2": 0.6, "fc3": 0.7}
    selection = chosen(mlp, amount={"fc2": 0.6})
    assert selection.amounts == {"fc2": 0.6}
    assert selection.whole == {
        "fc1": "no amount was given for it",
        "fc3": "no amount was given for it",
        "fc_last": OUTPUT,
    }
    assert amounts_by_name(0.3, ["a", "b"]) == {"a": 0.3, "b": 0.3}


def test_protected_layers_stay_whole_with_their_group(mlp: Graph, six: Graph) -> None:
    assert chosen(mlp, protect=["fc[12]"]).whole == {
        "fc1": "it is protected",
        "fc2": "it is protected",
        "fc_last": OUTPUT,
    }
    selection = chosen(six, protect=["fc2"])
    assert list(selection.units) == ["fc3", "fc5"]
    assert selection.whole["fc1"] == selection.whole["fc2"] == "its group is protected"


def test_tied_layers_take_one_amount_in_dag_and_several_in_chain(six: Graph) -> None:
    with pytest.raises(ValueError, match=r"amount=.*'fc1': 0\.3, 'fc2': 0\.4.*share their neurons.*graph=\"chain\""):
        chosen(six, amount={"fc1": 0.3, "fc2": 0.4})
    assert chosen(six, amount={"fc1": 0.3}).amounts == {"fc1": 0.3}
    assert chosen(six, amount={"fc1": 0.3, "fc2": 0.4}, graph="chain").amounts == {"fc1": 0.3, "fc2": 0.4}


@pytest.mark.parametrize("amount", [1, 1.0, 1.5, -0.1, float("nan"), float("inf"), True, False, "0.5", None, [0.3]])
def test_amounts_outside_of_0_to_1_are_refused(amount: Any) -> None:
    with pytest.raises(ValueError, match=r"amount=.* is not in \[0, 1\); give the share of neurons to remove"):
        check_amount(amount)
    with pytest.raises(ValueError, match=r'amount=.* for "fc1" is not in \[0, 1\)'):
        check_amount({"fc2": 0.5, "fc1": amount})


def test_good_amounts_are_accepted() -> None:
    for amount in (0, 0.0, 0.5, 0.999, {"fc1": 0, "fc2": 0.3}, {}):
        check_amount(amount)


def test_names_that_match_nothing_are_refused_with_the_names_that_would(mlp: Graph) -> None:
    with pytest.raises(
        ValueError, match='amount: "fc9" matches no layer; the layers are "fc1", "fc2", "fc3", "fc_last"'
    ):
        chosen(mlp, amount={"fc1": 0.3, "fc9": 0.5})
    with pytest.raises(ValueError, match='protect: "head" matches no layer; the layers are "fc1"'):
        chosen(mlp, protect=["head"])


def test_nothing_to_prune_is_an_error_that_says_why(mlp: Graph) -> None:
    with pytest.raises(
        ValueError, match=f'there is nothing to prune: "fc1", "fc2", "fc3": it is protected; "fc_last": {OUTPUT}'
    ):
        chosen(mlp, protect=["fc[0-9]"])
    with pytest.raises(ValueError, match=r"there is nothing to prune: .*no amount was given for it"):
        chosen(mlp, amount={})
    with pytest.raises(ValueError, match=rf'there is nothing to prune: "fc_last": {OUTPUT}'):
        chosen(trace(MLP(6, [], 3), torch.randn(3, 6)))


def test_reasons_are_told_once_for_all_layers_that_share_them() -> None:
    whole = {f"fc{i}": "wide" for i in range(6)} | {"head": OUTPUT}
    assert describe_whole(whole) == f'"fc0", "fc1", "fc2", "fc3", 2 more: wide; "head": {OUTPUT}'
    assert describe_whole({}) == "the network has no layer that makes neurons"
