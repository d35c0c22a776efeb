"""Take pruned neurons out for real: a narrower network that computes the same function."""

import copy
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from mlprank.calibration.statistics import Arriving
from mlprank.graph.axes import pieces
from mlprank.graph.layers import KINDS
from mlprank.graph.program import Fill
from mlprank.graph.records import Graph, Place, State
from mlprank.graph.rules import NORMS
from mlprank.utils.modules import LOCK, config_of, copy_module, fresh_like, tensors_of

Slices = Mapping[str, Mapping[int, Tensor]]
"""The kept indices, int64, ascending, by dimension of every tensor that becomes narrower."""
Shapes = dict[str, tuple[int, ...]]


def removable_neurons(
    graph: Graph, arriving: Mapping[Place, Arriving], *, folds: bool
) -> dict[str, Bool[Tensor, " n"]]:
    """Say which neurons of every group that need not stay whole, by name, can be taken out without a trace.

    A neuron's constant, which arrives at its readers, must be finite and have a place to go: every reader's bias, and
    the same amount for all uses of that bias. A convolution that pads with zeros sees something else at the border, so
    that only 0 has a place there. Constants are not folded where a regression leaves nobody listening to them.
    """
    removable: dict[str, Tensor] = {}
    for index, group in enumerate(graph.groups):
        if group.whole is not None:
            continue
        fits = torch.ones(group.width, dtype=torch.bool)
        for layer in graph.readers_of(group):
            expected: dict[str, Tensor] = {}
            for call in layer.calls:
                seen, place = arriving[call.place], call.bias
                value, uniform, entries = seen.value.cpu(), seen.uniform.cpu(), seen.finite.cpu()
                if folds and not layer.tied:
                    nowhere = place is None or call.kind.pads or group.varying
                    sent = torch.zeros_like(value) if nowhere else expected.setdefault(str(place), value)
                    entries = entries & uniform & (value == sent) & (not group.moved)
                for start, segment in pieces(layer.read, index):
                    part = entries[start : start + segment.size]
                    fits &= part.unflatten(0, (segment.width, segment.block)).all(1)
        removable[group.name] = fits
    return removable


def plan_removal(graph: Graph, state: State, masks: State, arriving: Mapping[Place, Arriving]) -> tuple[State, Slices]:
    """Work out the narrow network of a masked one: its weights, and the indices that they keep where they are narrower.

    The constants that pruned neurons send are added to the biases of all layers that read them, from the input to the
    output; nothing is, where none arrive because readers do not listen any more. A bias is created where there is none
    and the sum is not zero. `masks` are those of pruned groups by name, shape (width,), True for kept neurons; rows of
    the others are zero in `state`.
    """
    folded = dict(state)
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    for layer in graph.layers if arriving else ():
        weight = state[layer.weight]
        gone = ~graph.kept_entries(masks, layer.read, weight.device)
        if layer.tied or not bool(gone.any()):
            continue
        flat = layer.kind.flat(weight).sum(3).double()  # (groups, outputs, inputs)
        for place, source in {call.bias: call.place for call in layer.calls}.items():
            sent = torch.where(gone, arriving[source].value.double().to(weight.device), 0.0)
            shift = torch.einsum("goi,gi->go", flat, sent.view(len(flat), -1)).flatten()
            if place is not None and bool(shift.any()):
                shift = shift if place not in folded else folded[place].double() + shift
                folded[place] = shift.to(weight.dtype)
    for norm in {norm.weight: norm for norm in graph.norms}.values():
        kept = graph.kept_entries(masks, norm.axis)
        folded[norm.weight] = folded[norm.weight] * math.sqrt(len(kept) / int(kept.sum()))
    slices: dict[str, dict[int, Tensor]] = {}
    for (name, dim), axis in graph.slots.items():
        if name in folded:
            kept = graph.kept_entries(masks, axis, folded[name].device)
            if not bool(kept.all()):
                index = slices.setdefault(name, {})[dim] = kept.nonzero().flatten()
                folded[name] = folded[name].index_select(dim, index)
    return folded, slices


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


def with_state(model: nn.Module, state: State) -> nn.Module:
    """Copy a network with other weights by name, of the same or of other sizes; biases that it has not are created.

    The copy has its modules, parameters, buffers, hooks and modes. Tied weights stay tied. What else hangs on a module
    is copied where it can be, and shared where it cannot (locks, files, generators); tensors with a graph come without
    it.
    """
    memo: dict[int, Any] = {}
    with LOCK:
        for name, tensor in tensors_of(model).items():
            new = state.get(name, tensor)
            if id(tensor) not in memo or (new is not tensor and new.data_ptr() != tensor.data_ptr()):
                memo[id(tensor)] = fresh_like(tensor, new)
        copied = copy_module(model, memo)
    create_biases(copied, state)
    _fix_widths(copied)
    return copied


def narrow(model: nn.Module, slices: Slices, *, biases: tuple[str, ...] = ()) -> nn.Module:
    """Make a dense network as narrow as a pruned one, in place, ready for the pruned weights to be loaded.

    `biases` names those that the pruned network has and the dense one has not.
    """
    tensors, shapes = tensors_of(model), _shapes(model)
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
    for module in model.modules():
        for key, own in (*module._parameters.items(), *module._buffers.items()):
            if id(own) in cut:
                setattr(module, key, cut[id(own)])
    _fix_widths(model)
    create_biases(model, dict.fromkeys(biases))
    follow_config(model, shapes)
    return model


def follow_config(model: nn.Module, shapes: Shapes) -> bool:
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
        wanted = _shapes(module)
        dense = {name: shapes.get(f"{prefix}.{name}" if prefix else name, shape) for name, shape in wanted.items()}
        if wanted != dense and _built(module, config, dense) is not None:
            found &= _follow(module, config, dense, wanted)
    return found


def _follow(module: nn.Module, config: Any, dense: Shapes, wanted: Shapes) -> bool:
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
        tried = _changed(copy.deepcopy(config), changes)
        if (built := _built(module, tried, wanted)) is not None:
            _changed(config, changes)
            for own, fresh in zip(module.modules(), built.modules(), strict=True):
                own.__dict__.update({key: value for key, value in vars(fresh).items() if type(value) is int})
            return True
    return False


_WIDTH = re.compile("inner|inter|ffn|size|dim")
"""Fields that state a width, unless they are None and leave it to others."""


def _changed(config: Any, changes: Iterable[tuple[str, int]]) -> Any:
    for path, value in changes:
        *parts, key = path.split(".")
        setattr(functools.reduce(getattr, parts, config), key, value)
    return config


def _built(module: nn.Module, config: Any, shapes: Shapes) -> nn.Module | None:
    """A network of a module's class on the meta device; None where a configuration builds none of these shapes."""
    try:
        with torch.device("meta"):
            made = type(module)(config)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, ZeroDivisionError):
        return None
    return made if _shapes(made) == shapes else None


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}


def network_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, detached, sharing storage with the network."""
    return {name: tensor.detach() for name, tensor in tensors_of(model).items()}


def create_biases(model: nn.Module, biases: Mapping[str, Tensor | None]) -> None:
    """Give layers the biases that they have not, zeros where it is not said what."""
    present = tensors_of(model)
    for name, bias in biases.items():
        if name not in present:
            module: Any = model.get_submodule(name.removesuffix(".bias"))
            assert isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)), name
            size = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            bias = module.weight.new_zeros(size) if bias is None else bias.detach().clone()
            module.bias = nn.Parameter(bias, requires_grad=module.weight.requires_grad)


@dataclass(eq=False)
class FillPruned:
    """Forward pre-hook that lets a normalisation read the mean of the kept neurons (or 0) in place of pruned ones.

    So a masked network normalises over kept neurons alone, as a narrow one does.
    """

    fill: Fill | None = None

    def of(self, norm: nn.Module) -> Fill | None:
        """What a normalisation reads, or None where everything is kept."""
        mask = norm._buffers.get("weight_mask")
        if self.fill is not None or mask is None:
            return self.fill
        dim, sets = (1, norm.num_groups) if isinstance(norm, nn.GroupNorm) else (-1, 1)
        return Fill(mask >= 0.5, dim, sets, not isinstance(norm, nn.RMSNorm))

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Fill the first input."""
        fill = self.of(module)
        return inputs if fill is None else (fill(inputs[0]), *inputs[1:])


def drop_hooks(module: nn.Module, kind: type = FillPruned) -> None:
    """Take the forward pre-hooks of a kind from a module."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, kind)]:
        del module._forward_pre_hooks[key]


def _fix_widths(model: nn.Module) -> None:
    """Make the sizes that modules state agree with the tensors that they hold.

    A normalisation over k of n entries has `eps * n/k`; see `mlprank.graph.records.Norm`.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        for kind in KINDS if isinstance(weight, Tensor) else ():
            kind().resize(module)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            running = module.running_mean if module.running_mean is not None else module.weight
            module.num_features = module.num_features if running is None else len(running)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()
        elif isinstance(module, NORMS) and isinstance(weight, Tensor):
            size = weight.numel()
            before = module.num_channels if isinstance(module, nn.GroupNorm) else math.prod(module.normalized_shape)
            if size == before:
                continue
            drop_hooks(module)
            eps = module.eps if module.eps is not None else torch.finfo(weight.dtype).eps
            module.eps = eps * before / size
            if isinstance(module, nn.GroupNorm):
                module.num_channels = size
            else:
                module.normalized_shape = (size,)
