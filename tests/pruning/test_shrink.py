"""The laws of the search for the smallest network that keeps a budget."""

from __future__ import annotations

import csv
import html
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mlprank
from mlprank.models import MLP
from mlprank.pruning import pipeline
from mlprank.pruning.refine import Refinement
from mlprank.pruning.shrink import BudgetError, Front, Progress, shrink
from tests.networks import difference, outputs


@cache
def problem() -> tuple[MLP, Tensor, Tensor]:
    """A network that has learned three classes of 10 features, far wider than they need; inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 10, generator=generator)
    labels = torch.randint(3, (600,), generator=generator)
    x = centres[labels] + torch.randn(600, 10, generator=generator)
    torch.manual_seed(0)
    model = MLP(10, [48, 32], 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), x, labels


def search(*, refine: object = 0, **arguments: object) -> Front:
    model, x, labels = problem()
    given = {"validation": (x[300:], labels[300:]), "refine": refine, **arguments}
    return shrink(model, x[:300], **given)  # type: ignore[arg-type]


def accuracy(model: nn.Module) -> float:
    _, x, labels = problem()
    return float((model(x[300:]).argmax(1) == labels[300:]).float().mean())


@cache
def by_drop() -> Front:
    return search(max_drop=1.0)


def test_the_smallest_network_tried_that_loses_no_more_is_chosen():
    front = by_drop()
    model, *_ = problem()
    keeping = [point for point in front.points if point.drop <= 1.0]
    assert front.best_point.num_parameters == min(point.num_parameters for point in keeping)
    assert len({tuple(point.widths.values()) for point in front.points}) == len(front.points)
    assert front.best_point.keeps
    assert front.best_point.score == pytest.approx(accuracy(front.best.model))
    assert front.best_point.drop == pytest.approx(100 * (accuracy(model) - accuracy(front.best.model)))
    assert front.best_point.num_parameters == sum(each.numel() for each in front.best.model.parameters())
    assert front.best_point.num_parameters < 0.3 * front.dense.num_parameters
    assert front.score == "top-1"
    assert len(front.points) <= 14


def test_what_was_chosen_is_a_pruning_like_any_other(tmp_path):
    result, (_, x, _) = by_drop().best, problem()
    assert difference(outputs(result.masked, x), outputs(result.model, x)) <= 1e-5
    loaded = mlprank.load_pruned(result.save(tmp_path / "pruned.ckpt"))
    assert difference(outputs(loaded, x), outputs(result.model, x)) == 0
    again = mlprank.prune(problem()[0], x[:300], result.recipe)
    assert again.widths == result.widths


def test_the_search_closes_in_between_a_network_that_keeps_and_one_that_does_not():
    points = by_drop().points
    kept = max(point.amount for point in points if point.drop <= 1.0)
    lost = [point.amount for point in points if point.drop > 1.0 and point.amount > kept]
    assert not lost or (1 - kept) / (1 - min(lost)) <= 1.25


@pytest.mark.parametrize(
    ("budget", "limit", "size"),
    [
        ("max_params", 400, "num_parameters"),
        ("max_params", 0.4, "num_parameters"),
        ("max_flops", 0.25, "flops"),
        ("max_bytes", "5.5kB", "size_bytes"),
    ],
)
def test_the_largest_network_within_a_size_is_chosen(budget, limit, size):
    front = search(**{budget: limit})
    dense, best = getattr(front.dense, size), getattr(front.best_point, size)
    absolute = 5500 if limit == "5.5kB" else limit * dense if limit < 1 else limit
    assert 0.85 * absolute <= best <= absolute
    assert front.best_point.keeps


def test_several_sizes_are_all_kept():
    front = search(max_params=0.5, max_flops=0.2)
    assert front.best_point.num_parameters <= 0.5 * front.dense.num_parameters
    assert 0.15 * front.dense.flops <= front.best_point.flops <= 0.2 * front.dense.flops
    assert front.count == "parameters"


def test_latency_is_measured_and_kept(monkeypatch):
    from mlprank.costs.metrics import Latency
    from mlprank.pruning import shrink as module

    sizes: list[int] = []

    def by_parameters(models, example, **_):
        sizes.append(len(example))
        return {
            name: Latency(1e-6 * sum(each.numel() for each in model.parameters()), 0.0, 1)
            for name, model in models.items()
        }

    monkeypatch.setattr(pipeline, "measure_latency", by_parameters)
    monkeypatch.setattr(module, "measure_latency", by_parameters)
    front = search(max_latency="0.9ms", batch_size=16)
    assert front.dense.latency_s == pytest.approx(1e-6 * front.dense.num_parameters)
    assert 0.4e-3 < front.best_point.latency_s <= 0.9e-3
    assert set(sizes) == {16}
    assert "0.9" in str(search(max_latency=0.9))


def test_sizes_and_drop_hold_together():
    front = search(max_drop=2.0, max_params=0.5)
    assert front.best_point.drop <= 2.0
    assert front.best_point.num_parameters <= 0.5 * front.dense.num_parameters


def test_without_labels_it_is_the_agreement_with_the_dense_predictions():
    model, x, _ = problem()
    front = search(validation=x[300:], max_drop=2.0)
    assert front.score == "agreement"
    assert front.dense.score == 1.0
    agreed = float((front.best.model(x[300:]).argmax(1) == model(x[300:]).argmax(1)).float().mean())
    assert front.best_point.score == pytest.approx(agreed)
    assert agreed >= 0.98


@pytest.mark.parametrize("kind", ["loader", "list", "iterator", "datamodule"])
def test_validation_data_may_come_in_many_ways(kind):
    _, x, labels = problem()
    loader = DataLoader(TensorDataset(x[300:], labels[300:]), batch_size=70)
    given: object = {"loader": loader, "list": list(loader), "iterator": iter(list(loader))}.get(kind)
    if kind == "datamodule":

        class Data:
            def prepare_data(self) -> None: ...
            def setup(self, stage: str) -> None: ...
            def val_dataloader(self) -> DataLoader:
                return loader

        given = Data()
    front = search(validation=given, max_params=0.5)
    assert front.dense.score == pytest.approx(accuracy(problem()[0]))


def test_any_function_of_the_network_is_a_score_and_its_drop_is_in_its_unit():
    model, x, _ = problem()

    def minus_error(network: nn.Module) -> Tensor:
        assert not network.training
        assert not torch.is_grad_enabled()
        return -(network(x) - model(x)).square().mean()

    front = search(validation=None, score=minus_error, max_drop=0.5)
    assert front.score == "minus_error"
    assert front.dense.score == 0
    assert 0 < front.best_point.drop <= 0.5
    assert front.best_point.score == pytest.approx(float(minus_error_of(front.best.model)), rel=1e-4)
    assert "0.5" in str(front)
    front.plot()


def minus_error_of(network: nn.Module) -> Tensor:
    model, x, _ = problem()
    return -(network(x) - model(x)).square().mean().detach()


def test_uniform_widths_can_be_searched_too():
    front = search(max_drop=1.0, method="local")
    shares = [narrow / wide for name, (wide, narrow) in front.best.widths.items() if name != "fc_last"]
    assert max(shares) - min(shares) < 0.05


def test_the_network_is_read_and_calibrated_once(monkeypatch):
    counts = dict.fromkeys(("read_network", "measure_norms", "reconstruction_gains"), 0)

    def counted(name, function, *args, **kwargs):
        counts[name] += 1
        return function(*args, **kwargs)

    for name in counts:
        monkeypatch.setattr(pipeline, name, partial(counted, name, getattr(pipeline, name)))
    front = search(max_drop=1.0)
    assert len(front.points) > 4
    assert counts == {"read_network": 1, "measure_norms": 1, "reconstruction_gains": 2}  # one for each hidden layer


def test_the_model_its_mode_and_the_random_state_stay_as_they_were():
    model, x, labels = problem()
    model.train()
    before, state = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    try:
        shrink(model, x[:100], (x, labels), max_params=0.5, refine=5)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_refinement_follows_probabilities_where_classes_are_compared():
    refined = search(max_params=0.3, refine=0)
    assert refined.best.losses is None
    model, x, labels = problem()
    default = shrink(model, x[:300], (x[300:], labels[300:]), max_params=0.3).best
    assert default.recipe.plain()["refine"] | {"seed": 0} == {
        "steps": 1000,
        "learning_rate": 2e-3,
        "batch_size": 128,
        "loss": "kl",
        "seed": 0,
    }
    assert default.recipe.plain()["measure"]["name"] == "reconstruction"
    by_error = shrink(model, x[:300], max_params=0.3, score=lambda network: 0.0).best
    assert by_error.recipe.refine.loss == "mse"


def test_progress_ends_at_its_total():
    told: list[Progress] = []
    front = search(max_drop=1.0, refine=50, progress=told.append)
    assert all(one.done <= one.total for one in told)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert told[-1].done == len(front.points)
    assert any("best so far" in one.text for one in told)


def test_after_an_interruption_the_best_so_far_is_kept():
    def impatient(progress: Progress) -> None:
        if progress.done > 2:
            raise KeyboardInterrupt

    front = search(max_drop=1.0, refine=50, progress=impatient)
    assert front.interrupted
    assert front.best_point.drop <= 1.0
    assert len(front.points) == 3
    assert "interrupted: the best so far" in str(front)


def test_an_interruption_while_it_is_refined_keeps_the_candidate():
    def impatient(progress: Progress) -> None:
        if progress.done % 1:
            raise KeyboardInterrupt

    front = search(max_drop=1.0, refine=50, progress=impatient)
    assert front.interrupted
    assert not front.best_point.refined
    assert front.best.recipe.refine == 0


def test_few_candidates_are_refined_and_what_is_chosen_is_one_of_them():
    front = search(max_drop=1.0, refine=50)
    refined = [point for point in front.points if point.refined]
    assert 1 <= len(refined) <= 2
    assert front.best_point in refined
    assert front.best.recipe.refine == Refinement(steps=50)


def test_a_refined_candidate_is_what_pruning_with_refinement_gives():
    model, x, _ = problem()
    front = search(max_drop=1.0, refine=50)
    once = mlprank.prune(model, x[:300], front.best.recipe)
    assert once.widths == front.best.widths
    assert difference(outputs(once.model, x), outputs(front.best.model, x)) < 1e-5


def test_an_interruption_before_anything_was_found_is_one():
    def at_once(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(max_drop=1.0, progress=at_once)


def test_processes_choose_the_same_by_what_all_of_them_count():
    """Another process that sees the same doubles every sum and changes nothing."""
    front = search(max_drop=1.0, reduce=lambda tensor: 2 * tensor)
    assert front.best.widths == by_drop().best.widths


def test_the_table_the_page_the_file_and_the_picture_show_every_network(tmp_path: Path):
    front = by_drop()
    text = str(front)
    assert len(text.splitlines()) == len(front.points) + 3
    assert repr(front) == text
    assert "→" in text
    assert f"{front.best_point.num_parameters:,} of {front.dense.num_parameters:,} parameters" in text
    assert html.unescape(front._repr_html_()).count(text) == 1
    rows = list(csv.DictReader(front.write_csv(tmp_path / "frontier.csv").open()))
    assert [int(row["parameters"]) for row in rows] == [each.num_parameters for each in (front.dense, *front.points)]
    assert [row["chosen"] for row in rows].count("True") == 1
    from mlprank.utils.charts import write_chart

    assert write_chart(front.plot(), tmp_path / "frontier.png").stat().st_size > 5000


# What cannot be used.


def test_a_budget_that_the_dense_network_already_keeps():
    with pytest.raises(
        ValueError,
        match=r"the dense network already keeps max_params=100k \(2,195 parameters\); give smaller"
        r" budgets, or max_drop",
    ):
        search(max_params="100k")


def test_a_size_that_no_network_can_meet_names_the_nearest():
    with pytest.raises(
        BudgetError, match=r"no network keeps max_params=10: the smallest has .* parameters; allow that"
    ) as caught:
        search(max_params=10)
    front = caught.value.front
    assert front.best_point.num_parameters == min(point.num_parameters for point in front.points)
    assert not front.best_point.keeps


def test_a_drop_and_a_size_that_no_network_can_meet_together_offer_both_ways_out():
    message = r"no network keeps max_drop=0\.0, max_params=0\.02: .* allow max_params=.*, or max_drop="
    with pytest.raises(BudgetError, match=message) as caught:
        search(max_drop=0.0, max_params=0.02)
    assert caught.value.front.best_point.drop <= 0


def test_a_drop_that_no_network_can_meet_names_the_nearest():
    model, x, _ = problem()

    def same(network: nn.Module) -> float:
        return float(torch.equal(network(x), model(x)))

    with pytest.raises(
        BudgetError, match=r"no smaller network keeps max_drop=0\.0: the nearest, .* loses 1; allow max_drop=1"
    ):
        search(validation=None, score=same, max_drop=0.0)


@pytest.mark.parametrize("refine", [0, 5])
def test_what_no_smaller_network_keeps_is_not_answered_by_the_dense_one(refine: int):
    """Of four neurons local takes none where the amount is small."""
    model, x = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3)), problem()[1]

    def whole(network: nn.Module) -> float:
        return float(sum(each.numel() for each in network.parameters()) == 59)

    with pytest.raises(BudgetError, match=r"no smaller network keeps max_drop=0\.5: .* loses 1; allow max_drop=1"):
        shrink(model, x[:300], score=whole, max_drop=0.5, method="local", refine=refine)


def test_an_amount_and_a_budget_contradict_each_other():
    with pytest.raises(ValueError, match=r"amount=0\.5 and a budget \(max_drop=1\.0\) contradict each other"):
        search(max_drop=1.0, amount=0.5)


def test_a_validation_loader_without_labels_where_labels_are_asked_for():
    x = problem()[1]
    with pytest.raises(ValueError, match=r'its batches have no labels of classes.*use score="agreement"'):
        search(validation=DataLoader(x, batch_size=50), max_drop=1.0, score="top1")


def test_targets_that_are_not_classes_need_a_score():
    x = problem()[1]
    with pytest.raises(ValueError, match=r"its targets are not classes.*give score="):
        search(validation=(x, x), max_drop=1.0)


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (None, ValueError, "validation is missing; give data to choose by, or score="),
        ([], ValueError, "validation: the set is empty"),
        (3, TypeError, "validation: a int is not batches"),
    ],
)
def test_validation_data_that_are_none(validation, error, message):
    with pytest.raises(error, match=message):
        search(validation=validation, max_drop=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"returned a Tensor of shape \(3,\); it must return one number"),
        (None, "returned a NoneType; it must return one number"),
        ("high", "returned a str; it must"),
        (True, "returned a bool; it must"),
    ],
)
def test_a_score_function_that_returns_something_else(value, message):
    with pytest.raises(TypeError, match=message):
        search(validation=None, score=lambda network: value, max_drop=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_for_the_dense_network(value):
    with pytest.raises(ValueError, match="for the dense network, which no budget can be held against"):
        search(validation=None, score=lambda network: value, max_drop=1.0)


def test_a_score_of_an_unknown_name():
    with pytest.raises(ValueError, match='score=\'f1\' is unknown; choose "top1", "agreement", or give a function'):
        search(max_drop=1.0, score="f1")


def test_a_method_that_cannot_say_how_wide_a_network_becomes():
    with pytest.raises(ValueError, match="a search needs adaptive or local"):
        search(max_drop=1.0, method="global")


def test_agreement_of_a_network_without_classes():
    x = problem()[1]
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match="are no logits of classes; give score="):
        shrink(model, x, x, max_drop=1.0)
