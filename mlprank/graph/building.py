"""From the notes of a program that has been read to its frozen graph of neurons."""

from __future__ import annotations

from torch import fx, nn

from mlprank.graph.neurons import OUTPUT, Notes
from mlprank.graph.operations import as_node, ndim_of, operation, owner_of
from mlprank.graph.program import Program
from mlprank.graph.records import Call, Graph, Group, Layer, Scale


def build_graph(notes: Notes) -> Graph:
    """Turn the notes of a program that has been read to its end into frozen records.

    Args:
        notes: The notes; they are finished here.

    Returns:
        The graph; it holds no reference to the model.
    """
    _check_claims(notes)
    order = {node: index for index, node in enumerate(notes.exported.graph.nodes)}
    names = sorted(notes.linears, key=lambda name: order[notes.linears[name][0]])
    roots = list(dict.fromkeys(notes.root(notes.slots[name, 0]) for name in names))
    layers = tuple(_layer(notes, name, roots) for name in names)
    calls = sorted((node for nodes in notes.linears.values() for node in nodes), key=order.__getitem__)
    reads = {node.name: as_node(node.args[0]).name for node in calls}
    return Graph(
        layers=layers,
        groups=tuple(_group(notes, index, root, layers) for index, root in enumerate(roots)),
        flow={node.name: flow for node, flow in notes.flow.items()},
        program=Program(notes.exported, notes.tensors, reads),
        others=notes.others | _uncalled(notes),
        reshapes=tuple(dict.fromkeys(notes.reshapes)),
    )


def _check_claims(notes: Notes) -> None:
    """Keep whole the neurons along a tensor that something else reads, too."""
    for node in notes.exported.graph.nodes:
        if not notes.is_tensor(node):
            continue
        name = notes.tensors[node.name]
        strangers = [user for user in node.users if user not in notes.claimed[name]]
        for slot, space in notes.slots.items():
            if slot[0] != name:
                continue
            reasons = notes.spaces[notes.root(space)].reasons
            if strangers:
                reasons.append(f'`{operation(strangers[0])}` reads "{name}", too')
            elif slot in notes.untracked:
                reasons.append(f'"{name}" also reads values that are no neurons')


def _uncalled(notes: Notes) -> dict[str, str]:
    """Name the linear layers that the forward pass does not use."""
    used = {id(notes.model.state_dict(keep_vars=True).get(name)) for name in notes.linears}
    owners = {owner_of(node) for node in notes.exported.graph.nodes if node.op == "call_function"}
    return {
        name: "the forward pass does not use it"
        for name, module in notes.model.named_modules()
        if isinstance(module, nn.Linear) and name not in owners and id(module._parameters.get("weight")) not in used
    }


def _layer(notes: Notes, weight: str, roots: list[int]) -> Layer:
    nodes = notes.linears[weight]
    shape = as_node(nodes[0].args[1]).meta["val"].shape
    source = notes.slots.get((weight, 1))
    return Layer(
        name=weight.removesuffix(".weight"),
        weight=weight,
        out_features=int(shape[0]),
        in_features=int(shape[1]),
        calls=tuple(_call(notes, node) for node in nodes),
        group=roots.index(notes.root(notes.slots[weight, 0])),
        source_group=None if source is None else roots.index(notes.root(source)),
    )


def _call(notes: Notes, node: fx.Node) -> Call:
    bias = bias_of(node)
    scales, emitted = _emission(notes, node)
    name = None if bias is None else notes.tensors[bias.name]
    shared = name is not None and len({user.args[1] for user in notes.claimed[name] if operation(user) == "linear"}) > 1
    return Call(
        node=node.name,
        source=as_node(node.args[0]).name,
        emitted=emitted,
        scales=scales,
        bias=None if shared else name,
        owner=None if shared else _bias_owner(notes, node),
    )


def bias_of(linear: fx.Node) -> fx.Node | None:
    """The bias that a linear operation adds, or None."""
    bias = linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")
    return None if bias is None else as_node(bias)


def _bias_owner(notes: Notes, node: fx.Node) -> str | None:
    """The linear module that a use of a weight belongs to, if a bias that it is given will be added."""
    owner = owner_of(node)
    module = notes.model.get_submodule(owner) if owner else None
    return owner if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward else None


def _emission(notes: Notes, node: fx.Node) -> tuple[tuple[Scale, ...], str]:
    """Walk from a linear operation to the activation; return the factors on the way and the value sent on."""
    scales: list[Scale] = []
    while len(node.users) == 1:
        (user,) = node.users
        flow = notes.flow.get(user)
        if flow is None or len(flow.inputs) != 1 or operation(user) == "layer_norm":
            break
        if notes.values[user].dim != ndim_of(user) - 1:
            break
        if flow.scale is not None:
            scales.append(flow.scale)
        node = user
        if user in notes.activations:
            break
    return tuple(scales), node.name


def _group(notes: Notes, index: int, root: int, layers: tuple[Layer, ...]) -> Group:
    readers = tuple(layer for layer in layers if layer.source_group == index)
    slots = [slot for slot, space in notes.slots.items() if notes.root(space) == root]
    slots += [(bias, 0) for layer in layers if layer.group == index for bias in layer.biases]
    reasons = list(dict.fromkeys(notes.spaces[root].reasons))
    firm = [reason for reason in reasons if reason != OUTPUT]
    return Group(
        layers=tuple(layer.name for layer in layers if layer.group == index),
        width=notes.spaces[root].width,
        slots=tuple(dict.fromkeys(slots)),
        readers=tuple(layer.name for layer in readers),
        whole=firm[0] if firm else (OUTPUT if reasons else None),
        output=OUTPUT in reasons,
    )
