"""Take pruned neurons out for real: a narrower network that computes the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mlprank.graph.records import Graph, Group, State

Slices = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Removal:
    """What to take out of a network, and what to leave in its place.

    Attributes:
        slices: For every tensor that becomes narrower, the kept indices by dimension, int64, ascending.
        state: The weights of the narrow network.
    """

    slices: Slices
    state: State


def removable_neurons(graph: Graph, constants: State, *, folds: bool) -> dict[str, Bool[Tensor, " n"]]:
    """Say which neurons of which group can be taken out without a trace.

    A neuron's constant must be finite and have a place to go: every reader's bias, and the same amount for all uses of that bias.

    Args:
        graph: The network's graph.
        constants: What zeroed neurons send to their readers (`mlprank.calibration.statistics.measure_constants`).
        folds: Whether the constants will be folded; a regression leaves nobody listening to them.

    Returns:
        For every layer whose group need not stay whole, shape (n,), True for neurons that can go.
    """
    removable: dict[str, Tensor] = {}
    for group in graph.groups:
        if group.whole is not None:
            continue
        fits = torch.ones(group.width, dtype=torch.bool)
        places: dict[str | None, Tensor] = {}
        for layer in graph.readers_of(group):
            for call in layer.calls:
                arrives = constants[call.source].cpu()
                fits &= torch.isfinite(arrives)
                if folds:
                    expected = places.setdefault(call.bias_place and f"{layer.name} {call.bias_place}", arrives)
                    fits &= arrives == (torch.zeros_like(arrives) if call.bias_place is None else expected)
        removable.update(dict.fromkeys(group.layers, fits))
    return removable


def plan_removal(graph: Graph, state: State, masks: State, constants: State | None) -> Removal:
    """Work out the narrow network of a masked one.

    Of a group, the neurons go that every layer of the group has lost; the constants that they send are added to the biases of all
    layers that read them, from the input to the output. A bias is created where there is none and the sum is not zero.

    Args:
        graph: The network's graph.
        state: The masked network's weights: rows of pruned neurons are zero.
        masks: For every pruned layer, shape (n_out,), True for kept neurons.
        constants: What zeroed neurons send, or None where their readers do not listen to them any more.

    Returns:
        The narrow weights, and which indices they keep.
    """
    folded = dict(state)
    slices: dict[str, dict[int, Tensor]] = {}
    for group in graph.groups:
        if group.whole is not None or not any(name in masks for name in group.layers):
            continue
        device = state[graph.by_name[group.name].weight].device
        whole = torch.ones(group.width, dtype=torch.bool, device=device)
        kept = torch.stack([masks.get(name, whole) for name in group.layers]).any(0)
        if bool(kept.all()):
            continue
        if constants is not None:
            _fold(graph, group, state, folded, constants, ~kept)
        for name, dim in group.slots:
            slices.setdefault(name, {})[dim] = kept.nonzero().flatten()
    slices = {name: dims for name, dims in slices.items() if name in folded}
    for name, dims in slices.items():
        for dim, index in dims.items():
            folded[name] = folded[name].index_select(dim, index)
    return Removal(slices, folded)


def _fold(graph: Graph, group: Group, state: State, folded: dict[str, Tensor], constants: State, gone: Tensor) -> None:
    """Add what the neurons that go send to the biases of the layers that read them."""
    for layer in graph.readers_of(group):
        weight = state[layer.weight]
        for place, source in {call.bias_place: call.source for call in layer.calls}.items():
            shift = weight[:, gone].double() @ constants[source][gone].double()
            if place is None or not bool(shift.any()):
                continue
            bias = folded.get(place)
            folded[place] = (shift if bias is None else bias.double() + shift).to(weight.dtype)


def with_state(model: nn.Module, state: State) -> nn.Module:
    """Copy a network with other weights, of the same or of other sizes.

    Args:
        model: The network; left untouched.
        state: The new weights by name. Biases that the network does not have are created.

    Returns:
        The copy. Tied weights stay tied, and hooks, modes and everything else come along; a trainer and compiled code do not.
    """
    memo: dict[int, object] = {}
    for attribute in ("_trainer", "_fabric", "_compiled_call_impl"):
        for module in model.modules():
            if getattr(module, "__dict__", {}).get(attribute) is not None:
                memo[id(module.__dict__[attribute])] = None
    for name, tensor in _tensors(model).items():
        new = state.get(name)
        if new is not None and new is not tensor and new.data_ptr() != tensor.data_ptr():
            memo[id(tensor)] = _like(tensor, new)
    copied = copy.deepcopy(model, memo)
    _create_biases(copied, state)
    _fix_widths(copied)
    return copied


def narrow(model: nn.Module, slices: Slices, *, biases: tuple[str, ...] = ()) -> nn.Module:
    """Make a dense network as narrow as a pruned one, in place; its weights are cut, ready for the pruned ones to be loaded.

    Args:
        model: A dense network.
        slices: For every tensor that becomes narrower, the kept indices by dimension.
        biases: Names of biases that the pruned network has and the dense one has not.

    Returns:
        The same network.

    Raises:
        ValueError: If the network has no such tensor, or one of another size; tensor and sizes are named.
    """
    tensors = _tensors(model)
    cut: dict[int, Tensor] = {}
    for name, dims in slices.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(
                f'{type(model).__name__} has no tensor "{name}" that the pruned network has; give the class that was pruned'
            )
        new = tensor.detach()
        for dim, index in dims.items():
            if dim >= new.dim() or int(index.max()) >= new.shape[dim]:
                raise ValueError(
                    f'layer "{name.rpartition(".")[0]}": {name} has shape {tuple(tensor.shape)}, too small for the pruned network, which keeps'
                    f" index {int(index.max())} of dimension {dim}; give a network of the sizes that were pruned"
                )
            new = new.index_select(dim, index.to(new.device))
        cut[id(tensor)] = _like(tensor, new)
    for module in list(model.modules()):
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in holders:
            for key, tensor in own.items():
                if id(tensor) in cut:
                    own[key] = cut[id(tensor)]
    rows = {name: _linear(model, name).weight[:, 0] for name in biases}
    _create_biases(model, {name: torch.zeros_like(row) for name, row in rows.items()})
    _fix_widths(model)
    return model


def adopt_state(model: nn.Module, source: nn.Module) -> None:
    """Copy every weight and buffer of one network into another of the same class and sizes, in place; biases are created."""
    state = network_state(source)
    _create_biases(model, state)
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(state[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def network_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, detached, sharing storage with the network."""
    return {name: tensor.detach() for name, tensor in _tensors(model).items()}


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A fresh tensor of the same kind."""
    new = new.detach().clone()
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _create_biases(model: nn.Module, state: State) -> None:
    present = _tensors(model)
    for name, tensor in state.items():
        if name not in present:
            module = _linear(model, name)
            module.bias = nn.Parameter(tensor.detach().clone(), requires_grad=module.weight.requires_grad)


def _linear(model: nn.Module, bias: str) -> nn.Linear:
    """The linear layer that a bias belongs to."""
    module = model.get_submodule(bias.removesuffix(".bias"))
    assert isinstance(module, nn.Linear), bias
    return module


def _fix_widths(model: nn.Module) -> None:
    """Make the sizes that modules print agree with the tensors that they hold."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and isinstance(module.weight, Tensor):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.num_features = len(module.running_mean)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
