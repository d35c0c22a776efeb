"""Take pruned neurons out for real: a narrower network that computes the same function."""

import copy
import functools
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mlprank.calibration.statistics import Arriving
from mlprank.graph.axes import pieces
from mlprank.graph.layers import resize
from mlprank.graph.program import Fill
from mlprank.graph.records import Graph, Layer, Place, State
from mlprank.utils.modules import LOCK, config_of, copy_module, fresh_like, tensors_of

Slices = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True)
class Removal:
    """What to take out of a network, and what to leave in its place.

    `slices` are the kept indices, int64, ascending, by dimension of every tensor that becomes narrower.
    """

    slices: Slices
    state: State


def removable_neurons(
    graph: Graph, arriving: Mapping[Place, Arriving], *, folds: bool
) -> dict[str, Bool[Tensor, " n"]]:
    """Say which neurons of which group can be taken out without a trace.

    A neuron's constant must be finite and have a place to go: every reader's bias, and the same amount for all uses of
    that bias. A convolution that pads with zeros sees something else at the border, so that only 0 has a place there.

    Args:
        graph: The network's graph.
        arriving: What zeroed neurons send to their readers (`mlprank.calibration.statistics.measure_constants`).
        folds: Whether the constants will be folded; a regression leaves nobody listening to them.

    Returns:
        For every group that need not stay whole, by name, shape (width,), True for neurons that can go.
    """
    removable: dict[str, Tensor] = {}
    for index, group in enumerate(graph.groups):
        if group.whole is not None:
            continue
        fits = torch.ones(group.width, dtype=torch.bool)
        for layer in graph.readers_of(group):
            expected: dict[str, Tensor] = {}
            for call in layer.calls:
                seen = arriving[call.place]
                value, place = seen.value.cpu(), call.bias_place
                entries = seen.finite.cpu()
                if folds and not layer.tied:
                    silent = seen.uniform.cpu() & (value == 0)
                    entries = entries & (not group.moved)
                    if place is None or call.kind.pads or group.varying:
                        entries = entries & silent
                    else:
                        entries = entries & seen.uniform.cpu() & (value == expected.setdefault(place, value))
                for start, segment in pieces(layer.read, index):
                    part = entries[start : start + segment.size]
                    fits &= part.unflatten(0, (segment.width, segment.block)).all(1)
        removable[group.name] = fits
    return removable


def plan_removal(graph: Graph, state: State, masks: State, arriving: Mapping[Place, Arriving] | None) -> Removal:
    """Work out the narrow network of a masked one.

    The constants that pruned neurons send are added to the biases of all layers that read them, from the input to the
    output. A bias is created where there is none and the sum is not zero.

    Args:
        graph: The network's graph.
        state: The masked network's weights: rows of pruned neurons are zero.
        masks: For every pruned group that is not whole, by name, shape (width,), True for kept neurons.
        arriving: What zeroed neurons send, or None where their readers do not listen to them any more.

    Returns:
        The narrow weights, and which indices they keep.
    """
    folded = dict(state)
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    if arriving is not None:
        for layer in graph.layers:
            _fold(graph, layer, state, folded, arriving, masks)
    for norm in {norm.weight: norm for norm in graph.norms}.values():
        kept = graph.kept_entries(masks, norm.axis)
        if not bool(kept.all()):
            folded[norm.weight] = folded[norm.weight] * math.sqrt(len(kept) / int(kept.sum()))
    slices: dict[str, dict[int, Tensor]] = {}
    for (name, dim), axis in graph.slots.items():
        if name in folded:
            kept = graph.kept_entries(masks, axis, folded[name].device)
            if not bool(kept.all()):
                slices.setdefault(name, {})[dim] = kept.nonzero().flatten()
    for name, dims in slices.items():
        for dim, index in dims.items():
            folded[name] = folded[name].index_select(dim, index)
    return Removal(slices, folded)


def severed(graph: Graph, state: State, masks: State) -> dict[str, Tensor]:
    """Return the weights with nobody listening to some neurons: what readers have for them is zero."""
    changed = dict(state)
    for layer in graph.layers:
        weight = changed[layer.weight]
        kept = graph.kept_entries(masks, layer.read, weight.device)
        if not bool(kept.all()):
            flat = layer.kind.flat(weight)
            heard = kept.view(flat.shape[0], 1, flat.shape[2], 1).to(weight.dtype)
            changed[layer.weight] = layer.kind.unflat(flat * heard, weight).contiguous()
    return changed


def _fold(
    graph: Graph,
    layer: Layer,
    state: State,
    folded: dict[str, Tensor],
    arriving: Mapping[Place, Arriving],
    masks: State,
) -> None:
    """Add what the neurons that go send to the biases of a layer that reads them."""
    weight = state[layer.weight]
    gone = ~graph.kept_entries(masks, layer.read, weight.device)
    if layer.tied or not bool(gone.any()):
        return
    flat = layer.kind.flat(weight).sum(3).double()  # (groups, outputs, inputs)
    for place, source in {call.bias_place: call.place for call in layer.calls}.items():
        sent = torch.where(gone, arriving[source].value.double().to(weight.device), 0.0)
        shift = torch.einsum("goi,gi->go", flat, sent.view(len(flat), -1)).flatten()
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
        The copy: modules, parameters, buffers, hooks and modes. Tied weights stay tied. What else hangs on a module is
        copied where it can be, and shared where it cannot (locks, files, generators); tensors with a graph come without
        it.
    """
    memo: dict[int, Any] = {}
    with LOCK:
        for name, tensor in tensors_of(model).items():
            new = state.get(name)
            if new is not None and new is not tensor and new.data_ptr() != tensor.data_ptr():
                memo[id(tensor)] = fresh_like(tensor, new)
            elif id(tensor) not in memo:
                memo[id(tensor)] = fresh_like(tensor, tensor)
        sizes = _gain_sizes(model)
        copied = copy_module(model, memo)
    _create_biases(copied, state)
    _fix_widths(copied, sizes)
    return copied


def narrow(model: nn.Module, slices: Slices, *, biases: tuple[str, ...] = ()) -> nn.Module:
    """Make a dense network as narrow as a pruned one, in place, ready for the pruned weights to be loaded.

    `biases` names those that the pruned network has and the dense one has not.
    """
    tensors = tensors_of(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = _gain_sizes(model)
    cut: dict[int, Tensor] = {}
    for name, dims in slices.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(
                f'{type(model).__name__} has no tensor "{name}" that the pruned network has; give the class that was'
                " pruned"
            )
        new = tensor.detach()
        for dim, index in dims.items():
            if dim >= new.dim() or int(index.max()) >= new.shape[dim]:
                raise ValueError(
                    f'layer "{name.rpartition(".")[0]}": {name} has shape {tuple(tensor.shape)}, too small for the'
                    f" pruned network, which keeps index {int(index.max())} of dimension {dim}; give a network of the "
                    "sizes that were pruned"
                )
            new = new.index_select(dim, index.to(new.device))
        cut[id(tensor)] = fresh_like(tensor, new)
    for module in list(model.modules()):
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in holders:
            for key, tensor in own.items():
                if id(tensor) in cut:
                    own[key] = cut[id(tensor)]
    _fix_widths(model, sizes)
    _create_biases(model, {name: _zero_bias(_layer_of(model, name)) for name in biases})
    follow_config(model, shapes)
    return model


def adopt_state(model: nn.Module, source: nn.Module) -> None:
    """Copy every weight and buffer of one network into another of its class and sizes; biases are created."""
    state = network_state(source)
    _create_biases(model, state)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(state[name])


def follow_config(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Let configurations that networks are built from, as Hugging Face's are, state the widths of a narrow network.

    Which of their fields state them, building tells: a field follows where the class makes a network of these very
    shapes from it. `shapes` are the dense network's. False where a configuration cannot state the widths, which are not
    the same in every layer, for example.
    """
    found = True
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        config = config_of(module)
        if config is None or id(config) in seen:
            continue
        seen.add(id(config))
        wanted = {name: tuple(tensor.shape) for name, tensor in tensors_of(module).items()}
        dense = {name: shapes.get(f"{prefix}.{name}" if prefix else name, shape) for name, shape in wanted.items()}
        if wanted != dense and _shapes(_built(module, config)) == dense:
            found &= _follow(module, config, dense, wanted)
    return found


def _follow(module: nn.Module, config: Any, dense: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Find the fields of a configuration that state what became narrower, and change them."""
    sizes: dict[int, set[int]] = {}
    for name, shape in wanted.items():
        for old, new in zip(dense[name], shape, strict=True):
            sizes.setdefault(old, set()).update({new} - {old})
    inner = {f"{key}.": part for key, part in vars(config).items() if hasattr(part, "to_dict")}
    fields = [
        (f"{path}{key}", new)
        for path, part in {"": config, **inner}.items()
        for key, value in vars(part).items()
        if type(value) is int or (value is None and _WIDTH.search(key))
        for new in sorted(set().union(*sizes.values()) if value is None else sizes.get(value, ()))
    ]
    for changes in itertools.chain.from_iterable(itertools.combinations(fields[:8], count) for count in (1, 2, 3)):
        tried = copy.deepcopy(config)
        for path, new in changes:
            _set(tried, path, new)
        built = _built(module, tried)
        if _shapes(built) == wanted:
            for path, new in changes:
                _set(config, path, new)
            for own, fresh in zip(module.modules(), built.modules(), strict=True) if built is not None else ():
                own.__dict__.update({key: value for key, value in vars(fresh).items() if type(value) is int})
            return True
    return False


_WIDTH = re.compile("inner|inter|ffn|size|dim")
"""Fields that state a width, unless they are None and leave it to others."""


def _set(config: Any, path: str, value: int) -> None:
    *parts, key = path.split(".")
    setattr(functools.reduce(getattr, parts, config), key, value)


def _built(module: nn.Module, config: Any) -> nn.Module | None:
    """A network of a module's class on the meta device, or None where a configuration alone does not build it."""
    try:
        with torch.device("meta"):
            return type(module)(config)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, ZeroDivisionError):
        return None


def _shapes(model: nn.Module | None) -> dict[str, tuple[int, ...]] | None:
    return None if model is None else {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def network_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, detached, sharing storage with the network."""
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def _create_biases(model: nn.Module, state: State) -> None:
    present = tensors_of(model)
    for name, tensor in state.items():
        if name not in present:
            module = _layer_of(model, name)
            module.bias = nn.Parameter(tensor.detach().clone(), requires_grad=module.weight.requires_grad)


def _layer_of(model: nn.Module, bias: str) -> Any:
    """The layer that a bias belongs to."""
    module = model.get_submodule(bias.removesuffix(".bias"))
    assert isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)), bias
    return module


def _zero_bias(module: Any) -> Tensor:
    """A bias of zeros for a layer that has none."""
    size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    bias: Tensor = module.weight.new_zeros(size)
    return bias


NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class FillPruned:
    """Forward pre-hook that lets a normalisation read the mean of the kept neurons (or 0) in place of pruned ones.

    So a masked network normalises over kept neurons alone, as a narrow one does.
    """

    def __init__(self, fill: Fill | None = None) -> None:
        self.fill = fill

    def of(self, norm: nn.Module) -> Fill | None:
        """What a normalisation reads, or None where everything is kept."""
        mask = norm._buffers.get("weight_mask")
        if self.fill is not None or mask is None:
            return self.fill
        grouped = isinstance(norm, nn.GroupNorm)
        sets = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        return Fill(mask >= 0.5, 1 if grouped else -1, sets, not isinstance(norm, nn.RMSNorm))

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Fill the first input."""
        fill = self.of(module)
        return inputs if fill is None else (fill(inputs[0]), *inputs[1:])


def drop_fills(norm: nn.Module) -> None:
    """Let a normalisation read what it gets."""
    for key in [key for key, hook in norm._forward_pre_hooks.items() if isinstance(hook, FillPruned)]:
        del norm._forward_pre_hooks[key]


def _gain_sizes(model: nn.Module) -> dict[str, int]:
    """The number of entries that every normalisation normalises."""
    return {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and isinstance(module.weight, Tensor)
    }


def _fix_widths(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Make the sizes that modules state agree with the tensors that they hold.

    A normalisation over k of n entries has `eps * n/k`; see `mlprank.graph.records.Norm`. The dense network's sizes say
    what n was.
    """
    for name, module in model.named_modules():
        resize(module)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            running = module.running_mean if module.running_mean is not None else module.weight
            module.num_features = module.num_features if running is None else len(running)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif name in sizes and isinstance(module, NORMS) and module.weight.numel() != sizes[name]:
            size = module.weight.numel()
            drop_fills(module)
            eps = module.eps if module.eps is not None else torch.finfo(module.weight.dtype).eps
            module.eps = eps * sizes[name] / size
            if isinstance(module, nn.GroupNorm):
                module.num_channels = size
            else:
                module.normalized_shape = (size,)
