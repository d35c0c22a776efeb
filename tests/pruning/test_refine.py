"""The laws of refinement without labels."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from torch import Tensor, nn

import mlprank
from mlprank.artifact.pruned import read_artifact
from mlprank.calibration.data import Calibration
from mlprank.models import MLP, ThreeLayerMLP
from mlprank.pruning.refine import Refinement, get_refinement, refine
from tests.networks import difference, outputs, randomise

CPU = torch.device("cpu")


def inputs(num_samples: int = 300) -> Tensor:
    return torch.randn(num_samples, 12, generator=torch.Generator().manual_seed(1))


def network(**options: object) -> MLP:
    return randomise(MLP(12, [40, 30], 5, **options), seed=0, zeros=0.0).eval()  # type: ignore[arg-type]


def error(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    return float((model(x) - other(x)).square().mean().detach())


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True, "dropout": 0.5}, {"activation": "gelu", "bias": False}], ids=str
)
def test_the_narrow_network_comes_nearer_to_the_dense_one_also_on_new_data(options):
    model, fresh = network(**options), torch.randn(500, 12, generator=torch.Generator().manual_seed(2))
    plain = mlprank.prune(model, inputs(), amount=0.6)
    refined = mlprank.prune(model, inputs(), amount=0.6, refine=300)
    assert error(refined.model, model, inputs()) < 0.5 * error(plain.model, model, inputs())
    assert error(refined.model, model, fresh) < error(plain.model, model, fresh)
    assert refined.widths == plain.widths
    before, after = refined.losses
    assert after < before
    assert refined.max_difference == plain.max_difference


@pytest.mark.parametrize("compensation", ["least_squares", "constant", "zero", "mean"])
@pytest.mark.parametrize("bias", [True, False])
def test_masked_and_removed_network_agree_after_refinement_too(compensation, bias):
    model = network(bias=bias, activation="sigmoid")
    result = mlprank.prune(model, inputs(), amount=0.5, compensation=compensation, refine=40)
    assert difference(outputs(result.masked, inputs()), outputs(result.model, inputs())) <= 2e-5


def test_every_run_gives_the_same_weights_and_leaves_the_random_state_alone():
    model = network()
    state = torch.get_rng_state()
    one, other = (mlprank.prune(model, inputs(), refine=50).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())
    another = mlprank.prune(model, inputs(), refine={"steps": 50, "seed": 1}).model.state_dict()
    assert not all(torch.equal(one[name], another[name]) for name in one)


def test_the_given_networks_their_modes_and_frozen_weights_stay_as_they_were():
    model = network(dropout=0.3, batch_norm=True).train()
    model.get_submodule("fc1").weight.requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    result = mlprank.prune(model, inputs(), refine=20)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(module.training for module in result.model.modules())
    assert not result.model.get_submodule("fc1").weight.requires_grad
    assert result.model.get_submodule("fc2").weight.requires_grad
    assert all(each.grad is None for each in (*model.parameters(), *result.model.parameters()))
    assert torch.equal(
        result.model.get_submodule("batchnorm1").running_mean,
        result.masked.get_submodule("batchnorm1").running_mean[result.masks["fc1"]],
    )


def test_weights_that_are_no_better_are_not_taken():
    model = network()
    plain = mlprank.prune(model, inputs(), amount=0.5)
    rough = mlprank.prune(model, inputs(), amount=0.5, refine={"steps": 3, "learning_rate": 5.0})
    assert rough.losses[0] == rough.losses[1]
    assert difference(outputs(plain.model, inputs()), outputs(rough.model, inputs())) == 0


def test_gradients_are_taken_where_the_caller_has_switched_them_off():
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result = mlprank.prune(network(), inputs(), refine=30)
        assert result.losses[1] < result.losses[0]


def test_divergence_of_probabilities_counts_probable_classes():
    model = network()
    result = mlprank.prune(model, inputs(), amount=0.7, refine={"steps": 200, "loss": "kl"})
    plain = mlprank.prune(model, inputs(), amount=0.7)
    wanted = model(inputs()).log_softmax(1)

    def divergence(other: nn.Module) -> float:
        found = other(inputs()).log_softmax(1)
        return float((wanted.exp() * (wanted - found)).sum(1).mean().detach())

    assert result.losses[0] == pytest.approx(divergence(plain.model), rel=1e-4)
    assert result.losses[1] == pytest.approx(divergence(result.model), rel=1e-4)
    assert result.losses[1] < 0.5 * result.losses[0]


class TwoOutputs(nn.Module):
    """Outputs of very different size, in a dict, with a count beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.small, self.large = nn.Linear(12, 30), nn.Linear(30, 2), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x).relu()
        return {"small": 1e-3 * self.small(h), "large": 1e3 * self.large(h), "count": (x > 0).sum(1)}


def test_several_outputs_count_alike_whatever_their_size():
    torch.manual_seed(0)
    model = TwoOutputs().eval()
    plain = mlprank.prune(model, inputs(), amount=0.8, measure="norm")
    refined = mlprank.prune(model, inputs(), amount=0.8, measure="norm", refine=300)
    for name in ("small", "large"):
        wanted = model(inputs())[name]
        errors = [float((each.model(inputs())[name] - wanted).square().mean().detach()) for each in (plain, refined)]
        assert errors[1] < 0.9 * errors[0], name
    with pytest.raises(ValueError, match='loss="kl" needs one output of logits'):
        mlprank.prune(model, inputs(), refine={"loss": "kl"})


def test_batches_that_differ_in_shape_are_drawn_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(8, length, 6, generator=generator) for length in (3, 5, 4)]
    narrow = mlprank.prune(model, torch.cat([each.flatten(0, 1) for each in batches]), amount=0.6).model
    calibration = Calibration(batches[:1], device=CPU)
    calibration.batches = batches
    calibration._check = lambda inputs: None  # type: ignore[method-assign]
    _, (before, after) = refine(narrow, model, calibration, by=Refinement(steps=150))
    assert after < 0.7 * before


def test_processes_average_their_gradients_and_end_with_the_same_weights():
    """Two processes of one gradient each, played one after the other, equal one process with both."""
    model = network()
    narrow = mlprank.prune(model, inputs(), amount=0.6).model
    x = inputs(64)
    whole, (loss, _) = refine(narrow, model, Calibration(x, device=CPU), by=Refinement(steps=1, batch_size=64))
    doubled = Calibration(x, device=CPU, reduce=lambda tensor: 2 * tensor)  # the other process sees the same
    both, (loss_of_both, _) = refine(narrow, model, doubled, by=Refinement(steps=1, batch_size=128))
    for one, other in zip(whole.parameters(), both.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert loss_of_both == pytest.approx(loss)


def test_progress_is_told_step_by_step():
    told: list[tuple[int, int]] = []
    pruning = mlprank.Pruning(network(), inputs(), refine=7)
    pruning.run(on_step=lambda done, total: told.append((done, total)))
    assert told == [(step, 7) for step in range(1, 8)]


def test_the_file_and_the_table_say_that_the_self_check_came_before(tmp_path):
    result = mlprank.prune(network(), inputs(), refine=20)
    artifact = read_artifact(result.save(tmp_path / "pruned.ckpt"))
    assert artifact.recipe["refine"]["steps"] == 20
    assert artifact.max_difference == result.max_difference
    assert artifact.provenance["refined"]["loss_after"] == result.losses[1]
    assert "before refinement" in artifact.provenance["refined"]["max_difference"]
    assert "Refined without labels in 20 steps" in str(result)
    assert "that of the networks before" in str(result)
    assert "Refined" not in str(mlprank.prune(network(), inputs()))
    loaded = mlprank.load_pruned(tmp_path / "pruned.ckpt")
    assert difference(outputs(loaded, inputs()), outputs(result.model.eval(), inputs())) == 0


def test_what_refine_may_be():
    assert get_refinement(0) is None
    assert get_refinement(5) == get_refinement({"steps": 5}) == Refinement(steps=5)
    for wrong, message in (
        (-1, "refine=-1 must be a whole number of at least 0"),
        ({"step": 3}, 'refine: there is no parameter "step"; the parameters are steps, learning_rate'),
        ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a positive number"),
        ({"loss": "l1"}, "loss='l1' is unknown; .*choose one of mse, kl"),
    ):
        with pytest.raises(ValueError, match=message):
            mlprank.prune(network(), inputs(), refine=wrong)
    for wrong in (True, 2.5, "many"):
        with pytest.raises(TypeError, match="is not a number of steps"):
            mlprank.prune(network(), inputs(), refine=wrong)


def test_a_recipe_with_a_refinement_survives_plain_types():
    recipe = mlprank.Recipe(refine={"steps": 20, "loss": "kl"})
    assert mlprank.Recipe(**recipe.plain()) == recipe
    assert mlprank.Recipe().plain()["refine"] == 0


def test_a_loss_that_stops_being_a_number_is_an_error_that_names_a_remedy():
    with pytest.raises(ValueError, match=r"the loss became .* give a smaller one, such as refine="):
        mlprank.prune(network(), 1e3 * inputs(), refine={"steps": 30, "learning_rate": 1e30})


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).detach()


def test_a_network_without_gradients_is_refused():
    with pytest.raises(ValueError, match="do not depend on its weights in a way that gives a gradient"):
        mlprank.prune(Detached(), inputs(), refine=5)


@pytest.mark.speed
def test_a_thousand_steps_of_a_three_layer_network_take_at_most_three_seconds_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, x = ThreeLayerMLP().eval(), torch.rand(4096, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        pruning = mlprank.Pruning(model, x, amount=0.9, num_samples=None, measure="norm")
        narrow = pruning.run().model
        seconds = []
        for _ in itertools.repeat(None, 3):
            start = time.process_time()  # what other programs take away does not count
            refine(narrow, model, pruning.calibration, by=Refinement(steps=1000))
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) <= 3
