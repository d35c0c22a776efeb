"""Networks that can be traced are left as they were; those that cannot are told why, and where."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from mlprank.graph.trace import check_parameters, trace
from mlprank.pruning.pipeline import prune, unwrap
from tests.networks import difference, outputs, randomise, state_of


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return self.fc(x).relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.hidden(x))


def inputs(num_samples: int = 9) -> Tensor:
    return torch.randn(num_samples, 6, generator=torch.Generator().manual_seed(1))


class Branching(Base):
    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        if h.sum() > 0:
            h = h * 2
        return h


class Counting(Base):
    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        return h + len(torch.nonzero(h))


class Leaving(Base):
    def hidden(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().hidden(x).detach().numpy())


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (Branching(), r"`if h\.sum\(\) > 0:`"),
        (Counting(), r"`return h \+ len\(torch\.nonzero\(h\)\)`"),
        (Leaving(), r"`return torch\.from_numpy\(.*\)`"),
    ],
)
def test_an_operation_that_cannot_be_traced_is_named_with_its_line(
    network: nn.Module, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = rf"{type(network).__name__} cannot be traced by torch\.export at {line} \(.*test_trace\.py:\d+\)"
    with pytest.raises(ValueError, match=message):
        trace(network, inputs())
    assert capfd.readouterr().out == ""


def test_a_forward_for_one_batch_size_is_refused() -> None:
    class Fixed(Base):
        def hidden(self, x: Tensor) -> Tensor:
            return super().hidden(x).view(2, 8)

    with pytest.raises(
        ValueError, match=r"cannot run a batch of shape \(9, 6\).* write the forward for any batch size"
    ):
        prune(Fixed(), inputs())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(4, 5), r"cannot take a batch: the call Base\(float32 \(2, 5\)\) fails"),
        (torch.randn(4, 6, dtype=torch.float64), r"cannot take a batch: the call Base\(float64 \(2, 6\)\) fails"),
    ],
)
def test_calibration_data_of_another_shape_or_dtype_is_named(x: Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        prune(Base(), x)


def test_a_network_of_two_arguments_or_of_dicts_is_told_how_it_was_called() -> None:
    class Two(Base):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.hidden(x) + y)

    class Dict(Base):
        def forward(self, x: Any) -> Any:
            return self.head(self.hidden(x.image))

    for network in (Two(), Dict()):
        with pytest.raises(
            TypeError, match=r"the call \w+\(float32 \(2, 6\)\) fails .*; .* say by inputs= how a batch becomes a"
        ):
            prune(network, inputs())


def test_parameters_that_cannot_be_pruned_by_are_named() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r'parameter "0\.weight" is not initialised yet; run the network on one batch'):
        check_parameters(lazy)
    with pytest.raises(TypeError, match=r'parameter "fc\.weight" is not initialised yet'):
        check_parameters(Base().to("meta"))
    whole = Base()
    whole.fc.weight = nn.Parameter(torch.ones(8, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        TypeError, match=r'parameter "fc\.weight" has dtype torch\.int8; prune .* before it is quantised'
    ):
        check_parameters(whole)
    for value in (float("nan"), float("inf")):
        broken = Base()
        with torch.no_grad():
            broken.head.weight[1, 2] = value
        with pytest.raises(ValueError, match=r'layer "head": head\.weight holds values that are not finite'):
            prune(broken, inputs())


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Sequential has nothing to prune: the network has no layer that makes neurons"
    ):
        prune(nn.Sequential(nn.Flatten(), nn.ReLU()), inputs())
    with pytest.raises(ValueError, match=r'there is nothing to prune: "0": its neurons are outputs of the network'):
        prune(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), torch.randn(4, 2, 8))


class Remembering(Base):
    """Keeps an activation, counts its calls and averages what it sees, in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(8))

    def hidden(self, x: Tensor) -> Tensor:
        h = super().hidden(x)
        self.last = h
        self.get_buffer("calls").add_(1)
        self.average = self.get_buffer("average") * 0.9 + x.detach().mean() * 0.1
        return h


@pytest.mark.parametrize("training", [True, False])
def test_the_given_network_its_mode_and_the_random_state_stay_as_they_were(training: bool) -> None:
    network = Remembering()
    network.train(training)
    network.head.train(not training)
    before, attributes, rng = state_of(network), set(vars(network)), torch.get_rng_state()
    buffer = network.get_buffer("average")
    gradient = network.fc.weight.grad = torch.ones(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = prune(network, inputs(), compensation="least_squares")
    after = state_of(network)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert set(vars(network)) == attributes
    assert network.get_buffer("average") is buffer
    assert network.fc.weight.grad is gradient
    assert torch.equal(rng, torch.get_rng_state())
    assert network.training is training
    assert network.head.training is not training
    assert result.model.training is training


def test_inputs_that_the_network_overwrites_stay_as_they_were() -> None:
    class Overwriting(Base):
        def hidden(self, x: Tensor) -> Tensor:
            return super().hidden(x.mul_(2).add_(1))

    x = inputs()
    prune(Overwriting(), x)
    assert torch.equal(x, inputs())


def test_wrapped_and_compiled_networks_are_pruned_inside() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    network = randomise(Base(), seed=1).eval()
    plain = outputs(prune(network, inputs()).model, inputs())
    compiled = torch.compile(network)
    assert unwrap(nn.DataParallel(compiled)) is network  # type: ignore[arg-type]
    for wrapped in (compiled, nn.DataParallel(network)):
        result = prune(wrapped, inputs())
        assert type(result.model) is Base
        assert difference(outputs(result.model, inputs()), plain) == 0
    result = prune(Wrapper(network), inputs())
    assert list(result.masks) == ["module.fc"]
    assert difference(outputs(result.model, inputs()), plain) == 0


def test_a_network_compiled_in_place_stays_compiled() -> None:
    network = randomise(Base(), seed=1).eval()
    plain = outputs(prune(network, inputs()).model, inputs())
    network.compile()
    implementation = network._compiled_call_impl
    assert implementation is not None
    result = prune(network, inputs())
    assert network._compiled_call_impl is implementation
    assert result.model._compiled_call_impl is None
    assert difference(outputs(result.model, inputs()), plain) == 0


def test_hooks_come_along_and_what_they_change_counts() -> None:
    network = randomise(Base(), seed=1).eval()
    seen: list[int] = []
    network.fc.register_forward_hook(lambda module, args, output: output * 3)
    network.head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-1]))
    result = prune(network, inputs(), compensation="constant")
    seen.clear()
    assert difference(outputs(result.masked, inputs()), outputs(result.model, inputs())) < 1e-5
    assert seen == [8, 4]


def test_masks_of_torch_are_computed_and_left_on_the_given_network() -> None:
    network = randomise(Base(), seed=1).eval()
    torch_prune.l1_unstructured(network.fc, "weight", 0.3)
    before = outputs(network, inputs())
    result = prune(network, inputs(), amount=0.5)
    assert torch_prune.is_pruned(network)
    assert difference(before, outputs(network, inputs())) == 0
    assert not torch_prune.is_pruned(result.model)
    assert result.widths["fc"] == (8, 4)


def test_a_width_written_into_the_forward_pass_is_named_with_its_line() -> None:
    class Written(Base):
        def forward(self, x: Tensor) -> Any:
            return self.head(self.hidden(x).view(-1, 8))

    with pytest.raises(
        ValueError,
        match=r"a width is written into the forward pass: `return self\.head\(self\.hidden\(x\)\.view\(-1, 8\)\)` "
        r"\(.*test_trace\.py:\d+\)",
    ):
        prune(Written(), inputs())
    result = prune(
        nn.Sequential(Written(), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), inputs(), protect=["0.fc"]
    )
    assert result.widths["2"] == (4, 2)
    assert result.whole["0.fc"] == "it is protected"
