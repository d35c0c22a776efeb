"""The law of the engine, on randomly drawn networks: the removed network computes what the masked one does."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlprank.artifact.pruned import load_pruned
from mlprank.methods import Global, Local
from mlprank.pruning.pipeline import Pruning, prune
from mlprank.pruning.result import PruningResult
from tests.networks import (
    ACTIVATIONS,
    KINDS,
    NORMS,
    Block,
    Drawn,
    Spec,
    difference,
    outputs,
    outputs_of,
    randomise,
    settled,
    state_of,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
NAMES = ("weighted_pagerank", "modified_pagerank", "random", "norm", "activation", "wanda", "reconstruction")


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    return Block(
        kind=draw(st.sampled_from(("plain", "plain", *KINDS))),
        width=draw(st.integers(1, 9)),
        activation=draw(st.sampled_from((*ACTIVATIONS, "prelu"))),
        norm=draw(st.sampled_from(("none", *NORMS))),
        bias=draw(st.booleans()),
        functional=draw(st.booleans()),
    )


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    drawn = draw(st.lists(blocks(), min_size=0, max_size=5))
    if draw(st.booleans()):
        # One width throughout makes shared norms and residual additions tie many layers.
        drawn = [replace(block, width=drawn[0].width) for block in drawn]
    return Spec(
        blocks=tuple(drawn),
        in_features=draw(st.integers(1, 6)),
        num_tokens=draw(st.sampled_from((0, 0, 0, 3))),
        pool=draw(st.sampled_from(("mean", "first", "none"))),
        num_heads=draw(st.integers(1, 2)),
        head_bias=draw(st.booleans()),
        dtype=draw(st.sampled_from((torch.float32, torch.float64))),
        seed=draw(st.integers(0, 2**31)),
    )


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "measure": draw(st.sampled_from(NAMES)),
        "method": draw(st.sampled_from((Local(), Local(), Global(), Global(normalise="none")))),
        "compensation": draw(st.sampled_from(("constant", "zero", "mean", "least_squares"))),
        "amount": draw(st.one_of(st.sampled_from((0.0, 0.3, 0.5, 0.9)), st.floats(0, 1, exclude_max=True))),
        "round_to": draw(st.sampled_from((1, 1, 1, 2, 4))),
        "min_neurons": draw(st.sampled_from((1, 1, 2))),
        "protect_output": draw(st.sampled_from((True, True, False))),
        "per_layer": draw(st.booleans()),
        "protect_one": draw(st.sampled_from((False, False, True))),
    }


def resolved(recipe: dict[str, Any], prunable: list[tuple[str, ...]], index: int) -> dict[str, Any]:
    """Turn what was drawn into arguments of `run` that fit this network."""
    arguments = {key: value for key, value in recipe.items() if key not in {"per_layer", "protect_one"}}
    if recipe["protect_one"] and len(prunable) > 1:
        arguments["protect"] = [prunable[index % len(prunable)][0]]
    if recipe["per_layer"] and isinstance(recipe["method"], Local):
        amounts = {"*": recipe["amount"]}
        amounts.update(dict.fromkeys(prunable[-1], 0.6))
        arguments["amount"] = amounts
    return arguments


def check(network: Drawn, result: PruningResult, recipe: dict[str, Any]) -> None:
    """Everything that holds for every network and every recipe."""
    dtype = network.spec.dtype
    for num_samples, seed in ((7, 2), (1, 3)):
        x = network.inputs(num_samples, seed=seed)
        dense, masked, narrow = (outputs(model, x) for model in (network, result.masked, result.model))
        assert difference(masked, narrow) <= TOLERANCE[dtype]
        assert all(torch.isfinite(value).all() for value in masked.values())
        if all(bool(mask.all()) for mask in result.masks.values()):
            assert difference(dense, narrow) <= TOLERANCE[dtype]
    state = dict(result.masked.named_parameters())
    for name, scores in result.scores.items():
        assert scores.min() >= 0
        assert float(scores.sum()) == pytest.approx(1, abs=1e-5)
        wide, kept = result.widths[name]
        mask = result.masks.get(name, torch.ones(wide, dtype=torch.bool))
        assert int(mask.sum()) >= min(recipe["min_neurons"], wide)
        assert int(mask.sum()) <= kept
        weight = state.get(f"{name}.weight", state.get(name))
        assert weight is not None
        assert not weight[~mask].any()
        if name in result.whole:
            assert mask.all()
            assert kept == wide


def property_of_every_network(spec: Spec, graph: str, drawn: list[dict[str, Any]]) -> None:
    network = Drawn(spec)
    prunable = [tuple(sorted(layers)) for layers, free in network.expected.groups().items() if free]
    network.train(spec.seed % 2 == 0)
    before, rng = state_of(network), torch.get_rng_state()
    result: PruningResult | None = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is dead on the calibration data.*")
        pruning = Pruning(network, [network.inputs(16), network.inputs(5, seed=4)], graph=graph)
        for index, recipe in enumerate(drawn):
            arguments = resolved(recipe, prunable, index) if prunable else {"amount": 0.5}
            try:
                result = pruning.run(**arguments)
            except ValueError as error:
                if not is_expected_refusal(str(error), network, graph, arguments, prunable):
                    raise
                continue
            check(network, result, recipe)
    after = state_of(network)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(rng, torch.get_rng_state())
    if result is not None:
        with tempfile.TemporaryDirectory() as directory:
            check_survival(network, result, Path(directory, "pruned.ckpt"), exports=spec.seed % 8 == 0)


def check_survival(network: Drawn, result: PruningResult, path: Path, *, exports: bool) -> None:
    """The narrow network is a network like any other: it can be copied, saved, built again, exported and trained."""
    x = network.inputs(6, seed=5)
    narrow = result.model
    expected = outputs(narrow, x)
    assert difference(expected, outputs(copy.deepcopy(narrow), x)) == 0
    loaded = load_pruned(result.save(path), Drawn(network.spec))
    assert difference(expected, outputs(loaded, x)) == 0
    randomise(loaded, seed=9).load_state_dict(narrow.state_dict())
    assert difference(expected, outputs(loaded, x)) == 0
    if exports:
        exported = torch.export.export(loaded.eval(), (x,), strict=False).module()
        assert difference(expected, outputs_of(exported(x))) <= TOLERANCE[network.spec.dtype]
    loaded.train()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loss = sum(value.square().mean() for value in outputs_of(loaded(x)).values())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    optimizer.step()
    gradient = loaded.head.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(loaded.head.weight, narrow.head.weight - 0.1 * gradient)


def is_expected_refusal(
    message: str, network: Drawn, graph: str, arguments: dict[str, Any], prunable: list[tuple[str, ...]]
) -> bool:
    """Whether this network had to be refused with this message."""
    if message.startswith("there is nothing to prune"):
        return not prunable and bool(arguments.get("protect_output", True))
    if graph != "chain":
        return False
    if "the network is no chain of linear layers" in message:
        return (
            any(block.kind in {"bottleneck", "gated"} for block in network.spec.blocks) or network.spec.num_heads == 2
        )
    tied = any(len(layers) > 1 for layers in prunable)
    return "independently although they share their neurons" in message and tied


drawn_networks = given(
    spec=specs(), graph=st.sampled_from(("dag", "dag", "chain")), drawn=st.lists(recipes(), min_size=2, max_size=4)
)


@settings(settled, max_examples=40)
@drawn_networks
def test_removed_and_masked_networks_agree_and_the_given_one_is_untouched(
    spec: Spec, graph: str, drawn: list[dict[str, Any]]
) -> None:
    property_of_every_network(spec, graph, drawn)


@pytest.mark.slow
@settings(settled, max_examples=300)
@drawn_networks
def test_removed_and_masked_networks_agree_on_300_drawn_networks(
    spec: Spec, graph: str, drawn: list[dict[str, Any]]
) -> None:
    property_of_every_network(spec, graph, drawn)


PIECES = (
    "dense",
    "mix",
    "residual_mix",
    "aux_linear",
    "aux_norm",
    "aux_bare",
    "embed",
    "number",
    "size",
    "gate",
    "look",
)


class Pieced(nn.Module):
    """A network over tokens (B, T, 4) of pieces that go by tokens, training, the batch and hooks."""

    def __init__(self, pieces: list[str], num_tokens: int, seen: list[Tensor]) -> None:
        super().__init__()
        self.pieces, self.layers, self.enter, self.head = pieces, nn.ModuleDict(), nn.Linear(4, 6), nn.Linear(6, 3)
        for index, piece in enumerate(pieces):
            made: nn.Module = nn.Linear(6, 6)
            if piece.endswith("mix"):
                made = nn.Linear(num_tokens, num_tokens)
            elif piece in ("aux_linear", "embed"):
                made = nn.Linear(6, 2)
            elif piece == "aux_norm":
                made = nn.LayerNorm(6)
            elif piece == "aux_bare":
                made = nn.ParameterDict({"bare": nn.Parameter(torch.ones(6))})
            elif piece == "gate":  # a hook is what makes it non-linear
                made.register_forward_hook(lambda _, __, output: output * output.sigmoid())
            elif piece == "look":
                made.register_forward_hook(lambda _, __, output: seen.append(output.detach().numpy()))
            self.layers[f"{index}_{piece}"] = made

    def forward(self, x: Tensor) -> Any:
        h, aside = self.enter(x).relu(), []
        for name, layer in self.layers.items():
            piece = name.partition("_")[2]
            if piece.endswith("mix"):
                mixed = layer(h.transpose(1, 2)).transpose(1, 2)
                h = h + mixed if piece == "residual_mix" else mixed.relu()
            elif piece.startswith("aux"):
                aside += [h * layer["bare"] if piece == "aux_bare" else layer(h)] if self.training else []
            elif piece == "number":
                h = layer(h).relu() * (len(x) / 64)
            elif piece == "size":
                h = layer(h).relu() / x.shape[1]
            elif piece != "embed":
                h = layer(h).relu()
        return (self.head(h.mean(1)), aside) if self.training else self.head(h.mean(1))

    def embed(self, x: Tensor) -> list[Tensor]:
        return [layer(self.enter(x).relu()) for name, layer in self.layers.items() if name.endswith("embed")]


pieces = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5)


def property_of_pieces(pieces: list[str], num_tokens: int, compensation: str) -> None:
    seen: list[Tensor] = []
    network = randomise(Pieced(pieces, num_tokens, seen), seed=len(pieces))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    draw = torch.Generator().manual_seed(1)
    x, other = (torch.randn(size, num_tokens, 4, generator=draw) for size in (20, 7))
    refused = ""
    try:
        result = prune(network, x, compensation=compensation)
    except ValueError as error:
        refused = str(error)
    assert seen == []
    assert network.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    if "number" in pieces:
        assert "a number is taken from the batch at `h = layer(h).relu() * (len(x) / 64)`" in refused
        return
    if refused:  # somebody reads the only neurons there are
        assert re.search('nothing to prune: .*"(enter|layers)', refused)
        assert any(piece.startswith("aux") or piece == "embed" for piece in pieces)
        return
    assert difference(outputs(result.masked, other), outputs(result.model, other)) <= 1e-5
    result.model.train()(other)
    result.model.embed(other)


drawn_pieces = given(
    pieces=pieces, num_tokens=st.sampled_from((4, 6)), compensation=st.sampled_from(("constant", "least_squares"))
)


@settings(settled, max_examples=20)
@drawn_pieces
def test_networks_that_read_tokens_training_batches_and_hooks_are_exact_or_refused(
    pieces: list[str], num_tokens: int, compensation: str
) -> None:
    property_of_pieces(pieces, num_tokens, compensation)


@pytest.mark.slow
@settings(settled, max_examples=100)
@drawn_pieces
def test_100_networks_that_read_tokens_training_batches_and_hooks_are_exact_or_refused(
    pieces: list[str], num_tokens: int, compensation: str
) -> None:
    property_of_pieces(pieces, num_tokens, compensation)
