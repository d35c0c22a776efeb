"""Networks as people have them: several inputs, dicts, lengths that differ, hooks, threads, training."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.artifact.pruned import load_pruned
from mlprank.pruning.pipeline import prune, score
from mlprank.pruning.shrink import shrink
from tests.networks import difference, outputs, randomise


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Masked(nn.Module):
    """Pools tokens that a mask lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.make, self.read = nn.Embedding(20, 6), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        h = F.gelu(self.make(self.table(ids)))
        h = h if mask is None else h * mask[..., None]
        out: Tensor = self.read(h.mean(1))
        return out


def tokens(length: int = 5, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, (8, length), generator=generator)
    return {"ids": ids, "mask": (torch.rand(8, length, generator=generator) > 0.4).float()}


def test_every_input_of_a_dict_counts() -> None:
    network = randomise(Masked(), seed=1).eval()
    got = prune(network, [tokens()])
    assert got.widths["make"] == (12, 6)
    assert got.widths["table"] == (6, 3)
    batch = tokens()
    with torch.no_grad():
        torch.testing.assert_close(got.masked(**batch), got.model(**batch), atol=1e-5, rtol=1e-5)
    seen, unmasked, by_hand = (
        score(network, data, measure="wanda", **how)["read"]
        for data, how in (
            ([batch], {}),
            ([batch["ids"]], {}),
            ([tuple(batch.values())], {"inputs": lambda given: (given, {})}),
        )
    )
    assert not torch.allclose(seen, unmasked)
    torch.testing.assert_close(by_hand, seen)


def test_batches_of_different_lengths_are_read() -> None:
    network = randomise(Masked(), seed=1).eval()
    result = prune(network, [tokens(length, seed=length) for length in (5, 7, 4)])
    for length in (3, 9):
        batch = tokens(length)
        with torch.no_grad():
            torch.testing.assert_close(result.masked(**batch), result.model(**batch), atol=1e-5, rtol=1e-5)


class Counting(nn.Module):
    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.a, self.b, self.o, self.factor = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        factor = len(x) / 64 if self.factor is None else self.factor
        out: Tensor = self.o(F.relu(self.b(F.relu(self.a(x)) * factor)))
        return out


def test_a_number_taken_from_the_batch_is_named_with_its_line() -> None:
    x = draw(128, 6)
    assert prune(randomise(Counting(2.0), seed=1), x).widths["a"] == (8, 4)
    with pytest.raises(
        ValueError,
        match=r"a number is taken from the batch at `factor = len\(x\)|batches of 2 only|taken from the batch at `",
    ):
        prune(randomise(Counting(None), seed=1), x)

    class Viewing(Counting):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(len(x), -1))

    with pytest.raises(ValueError, match=r"number is taken from the batch at `return super\(\)\.forward\(x\.view\("):
        prune(randomise(Viewing(2.0), seed=1), x)


class Mixer(nn.Module):
    def __init__(self, *, mixes: bool, tokens: int) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(4, 6), nn.Linear(tokens, tokens) if mixes else None
        self.read = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        if self.mix is not None:
            h = h + self.mix(h.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.read(h.mean(1))
        return out


@pytest.mark.parametrize("num_tokens", [4, 6])
def test_a_layer_across_another_axis_that_gives_nothing_changes_no_score(num_tokens: int) -> None:
    plain, mixed = (randomise(Mixer(mixes=mixes, tokens=num_tokens), seed=2).eval() for mixes in (False, True))
    with torch.no_grad():
        mixed.load_state_dict(plain.state_dict(), strict=False)
        for parameter in mixed.get_submodule("mix").parameters():
            parameter.zero_()
    x = draw(9, num_tokens, 4)
    one, other = score(plain, x), score(mixed, x)
    for name, values in one.items():
        torch.testing.assert_close(other[name], values)
    randomise(mixed.get_submodule("mix"), seed=5)
    result = prune(mixed, x)
    assert result.widths["enter"] == (6, 3)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        return (self.b(h), self.aux(h)) if self.training else self.b(h)


def test_neurons_that_only_training_reads_stay_whole() -> None:
    network = randomise(nn.Sequential(Auxiliary()), seed=1)
    with pytest.raises(
        ValueError, match=r'"0\.aux", which the forward pass in evaluation mode does not use, may read them'
    ):
        prune(network, draw(9, 6))
    deeper = randomise(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Auxiliary()), seed=1)
    result = prune(deeper, draw(9, 5))
    assert result.widths["0"] == (6, 3)
    result.model.train()(draw(4, 5))


class SideEffects(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.a, self.b, self.c = kind, nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 3)
        self.norm, self.flat, self.bare = nn.BatchNorm2d(6), nn.Linear(6 * 16, 2), nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        out = self.c(self.b(h).relu().mean((2, 3)))
        aside = {"norm": self.norm, "flat": lambda h: self.flat(h.flatten(1)), "bare": lambda h: h * self.bare}
        return (out, aside[self.kind](h)) if self.training else out


@pytest.mark.parametrize("kind", ["norm", "flat", "bare"])
def test_whatever_reads_neurons_in_training_alone_keeps_them_whole(kind: str) -> None:
    result = prune(randomise(SideEffects(kind), seed=1), draw(9, 2, 6, 6))
    assert result.widths["a"] == (6, 6)
    assert "cannot be trained" in result.whole["a"]
    assert result.widths["b"] == (8, 4)
    assert result.model.train()(draw(4, 2, 6, 6))[1] is not None


SEEN: list[Any] = []


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, module: nn.Module, inputs: Any, kwargs: Any, output: Tensor) -> Tensor:
        self.seen.append(output.numpy().sum())
        return output


def test_hooks_that_observe_change_nothing_and_see_nothing_until_the_narrow_network_is_used() -> None:
    network = randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), seed=1).eval()
    x, seen, recorder = draw(9, 6), list[float](), Recorder()
    options: dict[str, Any] = {"refine": 2, "method": {"name": "adaptive", "count": "flops"}}
    plain = prune(network, x, **options)
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(float(output.sum().item())))
    network[1].register_forward_pre_hook(lambda module, inputs: SEEN.append(inputs[0].numpy()))
    network[2].register_forward_hook(recorder.note, with_kwargs=True)
    watched = prune(network, x, **options)
    assert watched.metrics.after.num_parameters < watched.metrics.before.num_parameters
    assert all(torch.equal(mask, watched.masks[name]) for name, mask in plain.masks.items())
    assert (seen, SEEN, recorder.seen) == ([], [], [])
    with torch.no_grad():
        watched.model(x)
        assert (len(seen), len(SEEN), len(recorder.seen)) == (1, 1, 0)  # a method's object was copied with the network
        network(x)
    assert (len(seen), len(SEEN), len(recorder.seen)) == (2, 2, 1)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_hook_that_changes_outputs_counts_and_others_beside_it_see_nothing(in_place: bool) -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square()

    network = randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 3)), seed=1).eval()
    twin = nn.Sequential(network[0], nn.ReLU(), Square(), network[3]).eval()
    x, seen = draw(9, 6), list[float]()
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(output.sum().item()))
    network[1].register_forward_hook(lambda _, __, output: output.square_() if in_place else output.square())
    result, expected = prune(network, x, amount=0.5), prune(twin, x, amount=0.5)
    assert seen == []
    assert torch.equal(result.masks["0"], expected.masks["0"])
    assert difference(outputs(expected.model, x), outputs(result.model, x)) < 1e-6
    assert len(seen) == 1  # the run of this test


def test_threads_prune_at_once_and_leave_everything_as_it_was(tmp_path: Path) -> None:
    network, x = randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), seed=1).train(), draw(9, 6)
    stdout, stderr, random = sys.stdout, sys.stderr, torch.get_rng_state()
    expected = prune(network, x)
    expected.save(file := tmp_path / "pruned.ckpt")
    options: dict[str, Any] = {"max_params": 0.8, "refine": 5}
    scores, shrunk = score(network, x), shrink(network, x, x, **options)

    def work(number: int) -> Any:
        if number % 4 == 1:
            return score(network, x)["0"], scores["0"]
        if number % 4 == 2:
            return outputs(load_pruned(file, network), x), outputs(expected.model, x)
        if number % 4 == 3:
            return outputs(shrink(network, x, x, **options).best.model, x), outputs(shrunk.best.model, x)
        result = prune(network, x, refine=1)
        assert result.model.training
        return result.masks["0"], expected.masks["0"]

    with ThreadPoolExecutor(8) as pool:
        for got, wanted in pool.map(work, range(24)):
            torch.testing.assert_close(got, wanted)
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)


def test_whatever_hangs_on_a_module_is_no_obstacle() -> None:
    network = randomise(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), seed=1)
    network.loss = network(draw(4, 6)).sum()  # type: ignore[assignment]
    network.lock, network.generator = threading.Lock(), torch.Generator()  # type: ignore[assignment]
    network.numbers = {"a": [1, 2]}  # type: ignore[assignment]
    result = prune(network, draw(9, 6))
    assert result.widths["0"] == (8, 4)
    assert result.model.numbers == {"a": [1, 2]}
    assert result.model.numbers is not network.numbers
    assert result.model.lock is network.lock


class Experts(nn.Module):
    """A gate weighs experts; the second one is never taken."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.ins, self.outs = nn.Linear(4, 2), nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.ins.append(nn.Linear(4, 8))
            self.outs.append(nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        total = torch.zeros_like(x)
        for index in range(2):
            total = total + weights[:, index : index + 1] * self.outs[index](F.silu(self.ins[index](x)))
        return total


@pytest.mark.parametrize("compensation", ["constant", "least_squares"])
def test_mixtures_of_experts_lose_hidden_neurons(compensation: str) -> None:
    network = randomise(Experts(), seed=1).eval()
    x = draw(20, 4)
    result = prune(network, x, compensation=compensation)
    assert result.widths["ins.0"] == result.widths["ins.1"] == (8, 4)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights_are_baked_in_the_copy_and_said_so(wrap: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(wrap(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = draw(20, 6)
    before = network(x)
    result = prune(network, x)
    assert result.widths["0"] == (8, 4)
    assert '"0.weight"' in result.notes[0]
    assert torch.equal(network(x), before)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


def test_fused_and_separate_gates_are_one_group() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(6, 16), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.up(x).chunk(2, -1)
            out: Tensor = self.down(self.norm(F.silu(gate) * up))
            return out

    network, x = randomise(Fused(), seed=1).eval(), draw(30, 6)
    for compensation in ("constant", "mean", "least_squares"):
        result = prune(network, x, compensation=compensation)
        assert result.widths["up"] == (16, 8)
        assert torch.equal(result.masks["up"][:8], result.masks["up"][8:])
        norm = result.model.get_submodule("norm")
        assert norm.normalized_shape == (4,)
        assert norm.eps == pytest.approx(2e-5)
        assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


def test_networks_that_cannot_be_read_are_refused_before_anything_is_run() -> None:
    network, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(9, 6)
    for scripted in (torch.jit.script(network), torch.jit.trace(network, x)):
        with pytest.raises(TypeError, match=r"model is a \w+Module, whose forward cannot be read; prune it before"):
            prune(scripted, x)
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(TypeError, match=r'layer "0" is a quantised Linear; prune the network before it is quantised'):
        prune(quantised, x)


def test_experts_that_see_other_rows_in_the_pruned_network_are_fitted_to_what_they_see() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.gate, self.head = nn.Linear(6, 12), nn.Linear(12, 3), nn.Linear(12, 2)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x).relu()
            weights, chosen = self.gate(h).softmax(-1).topk(1, -1)
            out = torch.zeros_like(h)
            for number, expert in enumerate(self.experts):
                rows, slots = torch.where(chosen == number)
                out = out.index_add(0, rows, expert(h[rows]) * weights[rows, slots, None])
            made: Tensor = self.head(h + out)
            return made

    network, x = randomise(Routed(), seed=3).eval(), torch.randn(60, 6)
    result = prune(network, x, amount=0.5)
    assert result.widths["enter"] == (12, 6)
    assert result.widths["experts.1.0"] == (16, 8)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5


@pytest.mark.parametrize("table", [torch.zeros_like, lambda x: x.new_zeros(x.shape), lambda x: torch.zeros(x.shape)])
def test_experts_whose_rows_are_added_to_a_table_as_wide_as_the_input_keep_that_width(table: Any) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.head = nn.Linear(6, 3), nn.Linear(6, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
            out = table(x)
            for number, expert in enumerate(self.experts):
                rows, slots = torch.where(chosen == number)
                out = out.index_add(0, rows, expert(x[rows]) * weights[rows, slots, None])
            made: Tensor = self.head(out)
            return made

    network, x = randomise(Routed(), seed=3).eval(), draw(60, 6)
    with torch.no_grad():
        network.gate.bias[2] = -90.0  # nobody comes to this expert
    result = prune(network, x)
    assert result.widths["experts.1.0"] == (16, 8)
    assert result.widths["experts.1.2"] == (6, 6)
    assert difference(outputs(result.masked, x), outputs(result.model, x)) < 1e-5
