"""From a program that has been read to its frozen graph of neurons."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from mlprank.graph.axes import Axis, Segment, size_of
from mlprank.graph.layers import Embedding, Kind, Use
from mlprank.graph.operations import operation, owner_of
from mlprank.graph.program import Program
from mlprank.graph.records import Call, Graph, Group, Layer, Norm, Place, Scale
from mlprank.graph.rules import OUTPUT, Reading, is_stock
from mlprank.utils.modules import config_of

_NORMS = {"layer_norm", "rms_norm", "group_norm"}
_STREAM = "they are a residual stream that a layer norm reads, which stays whole"


def build_graph(reading: Reading, *, hooked: bool = False) -> Graph:
    """Turn what has been read of a program into frozen records; they hold no reference to the model."""
    order = {node: index for index, node in enumerate(reading.exported.graph.nodes)}
    keys = sorted(reading.uses, key=lambda key: order[reading.uses[key][0][0]])
    spaces = reading.spaces
    made = {key: spaces.resolve(_made(reading, key)) for key in keys}
    roots: dict[int, int] = {}
    for key in keys:
        for segment in made[key]:
            if segment.space is not None:
                roots.setdefault(segment.space, len(roots))

    def named(axis: Axis) -> Axis:
        """An axis whose segments name groups."""
        return tuple(
            Segment(None if segment.space is None else roots.get(segment.space), segment.width, segment.block)
            for segment in spaces.resolve(axis)
        )

    names = _names(reading, keys)
    layers = tuple(_layer(reading, key, names[key], named) for key in keys)
    _keep_unseen(reading, layers, roots)
    slots: dict[Place, Axis] = {
        (name, dim): axis
        for name, axes in reading.slots.items()
        for dim, axis in ((dim, named(axis)) for dim, axis in axes.items())
        if any(segment.space is not None for segment in axis)
    }
    for layer in layers:
        slots.update({(bias, 0): layer.made for bias in layer.biases if (bias, 0) not in slots})
    calls = sorted((node for uses in reading.uses.values() for node, _ in uses), key=order.__getitem__)
    reads = {node.name: use.source.name for uses in reading.uses.values() for node, use in uses}
    return Graph(
        layers=layers,
        groups=tuple(_group(reading, index, root, layers) for root, index in roots.items()),
        slots=slots,
        flow={(node.name, dim): flow for (node, dim), flow in reading.flow.items()},
        program=Program(
            reading.exported,
            reading.tensors,
            {node.name: reads[node.name] for node in calls},
            {
                call.node: (call.bias_place, call.out_dim)
                for layer in layers
                for call in layer.calls
                if call.bias is None and call.bias_place is not None
            },
        ),
        others=_uncalled(reading) | reading.others,
        reshapes=tuple(dict.fromkeys(reading.reshapes)),
        norms=tuple(
            Norm(norm.node.name, norm.module, norm.weight, named(norm.axis), norm.dim, norm.sets, norm.centred)
            for norm in reading.norms
        ),
        hooked=hooked,
    )


def _made(reading: Reading, key: tuple[str, int]) -> Axis:
    """The axis along the outputs of a weight: of a grouped transposed convolution the weight's axis for every group."""
    name, out = key
    kind = reading.uses[key][0][1].kind
    axis = reading.slots[name][out]
    return axis * kind.groups if getattr(kind, "transposed", False) else axis


def _names(reading: Reading, keys: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """The name of every layer: the weight's, or of a second way of using it the module's."""
    names: dict[tuple[str, int], str] = {}
    for key in keys:
        name = key[0].removesuffix(".weight")
        if name in names.values():
            name = owner_of(reading.uses[key][0][0]) or f"{name}, transposed"
        while name in names.values():
            name += ", transposed"
        names[key] = name
    return names


def _layer(reading: Reading, key: tuple[str, int], name: str, named: Callable[[Axis], Axis]) -> Layer:
    weight = key[0]
    uses = reading.uses[key]
    kind = uses[0][1].kind
    axis = reading.slots[weight][kind.weight_in]
    inputs = axis if getattr(kind, "transposed", False) else axis * kind.groups
    if isinstance(kind, Embedding):
        inputs = (Segment(None, size_of(axis)),)
    return Layer(
        name=name,
        weight=weight,
        made=named(_made(reading, key)),
        read=named(inputs),
        calls=tuple(_call(reading, node, use) for node, use in uses),
        tied=sum(other == weight for other, _ in reading.uses) > 1,
    )


def _call(reading: Reading, node: fx.Node, use: Use) -> Call:
    scales, emitted, dim = _emission(reading, node, use.out_dim)
    name = None if use.bias is None else reading.tensors.get(use.bias.name)
    shared = use.bias is not None and (name is None or _weights_with(reading, use.bias) > 1)
    return Call(
        node=node.name,
        source=use.source.name,
        dim=use.dim,
        out_dim=use.out_dim,
        emitted=emitted,
        emitted_dim=dim,
        scales=scales,
        bias=None if shared else name,
        owner=None if shared else _bias_owner(reading, node, use.kind),
        kind=use.kind,
    )


def _weights_with(reading: Reading, bias: fx.Node) -> int:
    """How many layers add a bias."""
    return len({key for key, uses in reading.uses.items() for _, use in uses if use.bias is bias})


def _bias_owner(reading: Reading, node: fx.Node, kind: Kind) -> str | None:
    """The module that a use of a weight belongs to, if a bias that it is given will be added and can be built again."""
    owner = owner_of(node)
    try:
        module = reading.model.get_submodule(owner) if owner else None
    except AttributeError:
        return None
    around = [
        reading.model.get_submodule(owner[:end]) for end in range(len(owner)) if owner[end : end + 1] == "." or not end
    ]
    if getattr(module, "bias", None) is None and any(config_of(each) for each in around):
        return None  # the class would build the network without it
    stock = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return owner if is_stock(module, *stock) else None


def _emission(reading: Reading, node: fx.Node, dim: int) -> tuple[tuple[Scale, ...], str, int]:
    """Walk from a layer's operation to its activation; return the factors on the way and the value sent on."""
    scales: list[Scale] = []
    while len(node.users) == 1:
        (user,) = node.users
        ways = [
            (place, flow)
            for place in reading.axes.get(user, {})
            if (flow := reading.flow.get((user, place))) is not None
            and flow.parts == (reading.part(node, dim),)
            and user.meta.get("val") is not None
        ]
        if len(ways) != 1 or operation(user) in _NORMS | {"slice", "select", "narrow"}:
            break
        [(dim, flow)] = ways
        if flow.scale is not None:
            scales.append(flow.scale)
        node = user
        if user in reading.activations:
            break
    return tuple(scales), node.name, dim


def _group(reading: Reading, index: int, root: int, layers: tuple[Layer, ...]) -> Group:
    makers = tuple(layer for layer in layers if index in layer.made_groups)
    first, name = makers[0], makers[0].name
    if len(first.made_groups) > 1:
        start = next(
            sum(segment.size for segment in first.made[:number])
            for number, segment in enumerate(first.made)
            if segment.space == index
        )
        name = f"{name}[{start}:{start + reading.spaces.widths[root]}]"
    reasons = list(dict.fromkeys(reading.spaces.reasons[root]))
    if {"added", "normed"} <= reading.spaces.marks[root]:
        reasons.append(_STREAM)
    firm = [reason for reason in reasons if reason != OUTPUT]
    return Group(
        name=name,
        layers=tuple(layer.name for layer in makers),
        width=reading.spaces.widths[root],
        readers=tuple(layer.name for layer in layers if index in layer.read_groups),
        whole=firm[0] if firm else (OUTPUT if reasons else None),
        output=OUTPUT in reasons,
        varying="varying" in reading.spaces.marks[root],
        written=next((mark[8:] for mark in sorted(reading.spaces.marks[root]) if mark.startswith("written:")), None),
    )


def _keep_unseen(reading: Reading, layers: tuple[Layer, ...], roots: dict[int, int]) -> None:
    """Keep whole what a layer may read that this program does not use: only training, or another method, does.

    Which neurons it reads nobody can know; it reads as many as it has inputs, so every axis of that size is meant.
    """
    unseen = _unseen_inputs(reading)
    if not unseen:
        return
    for node, axes in reading.axes.items():
        if node.name in reading.tensors:
            continue
        for axis in axes.values():
            names = unseen.get(size_of(axis))
            if names:
                words = f'"{names[0]}", which the forward pass in evaluation mode does not use, may read them'
                reading.spaces.keep_whole(axis, words)


def _used(reading: Reading) -> set[int]:
    """The identities of the parameters that the program uses."""
    used = {
        reading.tensors[node.name]
        for node in reading.exported.graph.nodes
        if node.name in reading.tensors and node.users
    }
    state = reading.model.state_dict(keep_vars=True)
    return {id(state[name]) for name in used if name in state}


def _unseen_inputs(reading: Reading) -> dict[int, list[str]]:
    """Number of inputs of every layer that the program does not use, with the layers' names."""
    ids = _used(reading)
    found: dict[int, list[str]] = {}
    made: dict[str, list[int]] = {}
    for name, module in reading.model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in ids:
            continue
        if isinstance(module, nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        elif isinstance(module, nn.modules.conv._ConvNd):
            inputs, outputs = module.in_channels, module.out_channels
        else:
            continue
        # Of several layers in one part that is not used, those behind others read the others.
        part = name.split(".")[0]
        if not any(inputs % before == 0 for before in made.setdefault(part, [])) or name == part:
            found.setdefault(inputs, []).append(name)
        made[part].append(outputs)
    return found


def _uncalled(reading: Reading) -> dict[str, str]:
    """Name the layers that the forward pass does not use."""
    ids = _used(reading)
    return {
        name: "the forward pass does not use it"
        for name, module in reading.model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        and (weight := module._parameters.get("weight")) is not None
        and id(weight) not in ids
    }
