"""From a network and an example input to its graph of neurons, by `torch.export`."""

import inspect
import io
import traceback
import warnings
from collections.abc import Callable, Collection
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from mlprank.graph.axes import Axis, Segment, size_of
from mlprank.graph.layers import Embedding, Kind, Use
from mlprank.graph.program import Inputs, Program, as_inputs, ndim_of, operation, owner_of, source_line, user_line
from mlprank.graph.records import Call, Graph, Group, Layer, Place, Scale, describe_whole
from mlprank.graph.rules import OUTPUT, Rules, is_stock
from mlprank.utils.errors import first_line
from mlprank.utils.modules import (
    LOCK,
    Hook,
    Observer,
    config_of,
    evaluating,
    replace_hook,
    shell,
    users_hooks,
    watch_hooks,
)

_CANNOT_RUN = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
_NO_NUMBERS = "take sizes as tensors give them (x.flatten(1), x.mean(0)), not as Python numbers"
_COMPARED = 64
"""On so many samples a program made of two is compared: the more, the more a number taken from the batch is off."""
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def trace(model: nn.Module, example: Tensor | Inputs, *, varying: Collection[tuple[int, int]] = ()) -> Graph:
    """Read a network into its graph of neurons.

    A copy around the same parameters is run and traced in evaluation mode. Hooks that only observe see nothing of it.

    Args:
        model: Any network.
        example: A call of it with at least one sample, on the network's device; a tensor stands for a call with that
            tensor.
        varying: Dimensions besides the first whose size differs between batches: number of the tensor, and dimension.

    Returns:
        The graph of its layers.

    Raises:
        TypeError: If the network cannot take the example, or holds parameters that are not initialised or not floating
            point.
        ValueError: If the network cannot be traced, works for one batch size only, or has nothing to prune.
    """
    inputs = as_inputs(example)
    two = short(inputs)
    with LOCK:
        check_parameters(model)
        model = shell(model)
    quiet_hooks(model, inputs)
    with evaluating(model), torch.no_grad():
        _check_call(model, two)
        exported = _exported(model, two, varying)
        reading = Rules(model, exported, _tensor_names(exported))
        reading.read_all()
        graph = build_graph(reading)
        for node in exported.graph.nodes:
            if node.name in exported.graph_signature.user_inputs and ndim_of(node):
                size = node.meta["val"].shape[0]
                if isinstance(size, int) and size == len(two) and len(inputs) != size:
                    raise ValueError(
                        f"model: the forward of {type(model).__name__} works for batches of {size} only; write it "
                        "for any batch size"
                    )
        some = inputs.first(_COMPARED)
        _compare(model, graph.program, some, lambda: _written_numbers(model, some, exported, varying))
    if not graph.layers:
        raise ValueError(f"model: {type(model).__name__} has nothing to prune: {describe_whole(graph.whole())}")
    return graph


def _exported(model: nn.Module, inputs: Inputs, varying: Collection[tuple[int, int]]) -> ExportedProgram:
    """Trace for any number of samples; an error says what stands in the way."""
    shapes = ShapesCollection()
    size = len(inputs)
    for number, tensor in enumerate(inputs.tensors):
        dims = {dim: Dim.AUTO for index, dim in varying if index == number and dim < tensor.dim()}
        if tensor.dim() and len(tensor) == size:
            dims[0] = Dim.AUTO
        if dims:
            shapes[tensor] = dims
    try:
        return export_program(model, inputs, shapes)
    except (*_CANNOT_RUN, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced by torch.export{_place(error)}: {first_line(error)}; "
            f"write its forward without control flow that depends on data{_cache_hint(error)}, or prune the part of "
            "it that can be traced"
        ) from error


def export_program(model: nn.Module, inputs: Inputs, shapes: ShapesCollection) -> ExportedProgram:
    """Run `torch.export`, quietly and under the lock; what it raises passes as it is."""
    with LOCK, warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        kwargs = dict(inputs.kwargs)
        dynamic = shapes.dynamic_shapes(model, inputs.args, kwargs)
        return torch.export.export(model, inputs.args, kwargs, dynamic_shapes=dynamic, strict=False)


def _cache_hint(error: BaseException) -> str:
    return ", return no cache (use_cache=False)" if "Cache" in str(error) else ""


def _tensor_names(exported: ExportedProgram) -> dict[str, str]:
    signature = exported.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def _eager(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network with a fixed random state and return every tensor that it gives."""
    torch.manual_seed(0)
    inputs = inputs.cloned()
    return [leaf for leaf in pytree.tree_leaves(inputs.feed(model)) if isinstance(leaf, Tensor)]


def _check_call(model: nn.Module, inputs: Inputs) -> None:
    """Raise a TypeError where a network cannot take a batch; it is run here for the first time."""
    try:
        _eager(model, inputs)
    except _CANNOT_RUN as error:
        raise TypeError(
            f"calibration: {type(model).__name__} cannot take a batch: the call {type(model).__name__}{inputs} fails "
            f"({first_line(error)}); give inputs as the network is trained on, or say by inputs= how a batch becomes "
            "a call, such as inputs=lambda batch: ((batch[0],), {})"
        ) from error


def quiet_hooks(model: nn.Module, inputs: Inputs) -> None:
    """Let hooks that only observe see nothing of what follows: a run of two samples tells which do.

    That run is hidden from them as well, as far as what they remember it in can be copied. The network is a `shell`.
    """
    inputs = short(inputs)
    if not users_hooks(model):
        return
    changing, tried = set[Hook](), shell(model)
    watch_hooks(tried, changing, unnoticed=True)
    with evaluating(tried), torch.no_grad():
        _check_call(tried, inputs)
    for place, hook in users_hooks(model).items():
        if place not in changing:
            replace_hook(model, place, Observer(hook))


def short(inputs: Inputs) -> Inputs:
    """Two samples of a call."""
    return inputs.first(2) if len(inputs) > 1 else inputs.repeated(2)


def _compare(model: nn.Module, program: Program, inputs: Inputs, culprits: Callable[[], str]) -> None:
    """See that the program gives what the network does on more samples than it was made of.

    Raises:
        ValueError: If it does not; the line is named at which a number is taken from the batch.
    """
    try:
        expected = _eager(model, inputs)
    except _CANNOT_RUN as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"model: {type(model).__name__} takes two samples but cannot run a batch of shape {shapes} "
            f"({first_line(error)}); write the forward for any batch size"
        ) from error
    torch.manual_seed(0)
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    try:
        got = program.outputs({name: tensor.detach() for name, tensor in state.items()}, inputs)
    except ValueError as error:
        raise ValueError(
            f"model: what torch.export traced of {type(model).__name__} cannot run a batch of {len(inputs)} samples: "
            f"{culprits()}; {_NO_NUMBERS}"
        ) from error
    for one, other in zip(expected, got, strict=True):
        if one.shape == other.shape and one.numel():
            scale = max(1.0, float(one.double().abs().nan_to_num().max()))
            gap = float((one.double() - other.double()).abs().nan_to_num().max()) / scale
        else:
            gap = 0.0 if one.shape == other.shape else float("inf")
        if gap > _TOLERANCES.get(one.dtype, 0.0) and all(map(torch.equal, expected, _eager(model, inputs))):
            raise ValueError(
                f"model: what torch.export traced of {type(model).__name__} differs from it by {gap:.2g} on a batch "
                f"of {len(inputs)} samples: {culprits()}; {_NO_NUMBERS}"
            )


def agrees(model: nn.Module, program: Program, inputs: Inputs) -> bool:
    """Whether a program is that of a network, on as many samples as one is compared on when it has been traced."""
    with evaluating(model), torch.no_grad():
        try:
            _compare(model, program, inputs.first(_COMPARED), str)
        except ValueError:
            return False
    return True


def _written_numbers(
    model: nn.Module, inputs: Inputs, exported: ExportedProgram, varying: Collection[tuple[int, int]]
) -> str:
    """The lines at which a program of two samples and one of three hold different numbers."""
    more = inputs.first(3) if len(inputs) > 2 else inputs.first(1).repeated(3)
    nodes = exported.graph.nodes
    lines = [
        user_line(node) or source_line(node)
        for node, other in zip(nodes, _exported(model, more, varying).graph.nodes, strict=False)
        if node.op == "call_function" and str(node.args) != str(other.args)
    ]
    return (
        f"a number is taken from the batch at {lines[0]}"
        if lines
        else "its forward depends on the batch in a way that is lost"
    )


def check_parameters(model: nn.Module) -> None:
    """Raise a TypeError or ValueError that names the first module or parameter that cannot be pruned by."""
    for name, module in model.named_modules():
        place = f'layer "{name}"' if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{place} is a {type(module).__name__}, whose forward cannot be read; prune it before it is scripted"
            )
        if hasattr(module, "_packed_params"):
            raise TypeError(f"{place} is a quantised {type(module).__name__}; prune the network before it is quantised")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise TypeError(f'parameter "{name}" is not initialised yet; run the network on one batch first')
        if not parameter.is_floating_point():
            raise TypeError(f'parameter "{name}" has dtype {parameter.dtype}; prune the network before it is quantised')
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f'layer "{name.rpartition(".")[0] or name}": {name} holds values that are not finite; train it again'
                " or repair it"
            )


def _place(error: BaseException) -> str:
    """The line of the network's own code at which tracing failed."""
    foreign = {Path(torch.__file__).parent, Path(inspect.__file__).parent}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if frame.line]
    own = [frame for frame in frames if not _code_root(frame.filename) & foreign]
    return f" at `{own[-1].line}` ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _code_root(filename: str) -> set[Path]:
    """The directories above a source file, up to and without the packages that are installed beside each other."""
    parents = list(Path(filename).parents)
    packages = next((index for index, parent in enumerate(parents) if parent.name == "site-packages"), len(parents))
    return set(parents[:packages])


# -- from what has been read to frozen records
# ---------------------------------------------------------------------------

_NORMS = {"layer_norm", "rms_norm", "group_norm"}
_STREAM = "they are a residual stream that a layer norm reads, which stays whole"


def build_graph(reading: Rules) -> Graph:
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
        norms=tuple(replace(norm, axis=named(norm.axis)) for norm in reading.norms),
    )


def _made(reading: Rules, key: tuple[str, int]) -> Axis:
    """The axis along the outputs of a weight: of a grouped transposed convolution the weight's axis for every group."""
    name, out = key
    kind = reading.uses[key][0][1].kind
    axis = reading.slots[name][out]
    return axis * kind.groups if getattr(kind, "transposed", False) else axis


def _names(reading: Rules, keys: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
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


def _layer(reading: Rules, key: tuple[str, int], name: str, named: Callable[[Axis], Axis]) -> Layer:
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


def _call(reading: Rules, node: fx.Node, use: Use) -> Call:
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


def _weights_with(reading: Rules, bias: fx.Node) -> int:
    """How many layers add a bias."""
    return len({key for key, uses in reading.uses.items() for _, use in uses if use.bias is bias})


def _bias_owner(reading: Rules, node: fx.Node, kind: Kind) -> str | None:
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


def _emission(reading: Rules, node: fx.Node, dim: int) -> tuple[tuple[Scale, ...], str, int]:
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


def _group(reading: Rules, index: int, root: int, layers: tuple[Layer, ...]) -> Group:
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
        moved="moved" in reading.spaces.marks[root],
        written=next((mark[8:] for mark in sorted(reading.spaces.marks[root]) if mark.startswith("written:")), None),
    )


def _keep_unseen(reading: Rules, layers: tuple[Layer, ...], roots: dict[int, int]) -> None:
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


def _used(reading: Rules) -> set[int]:
    """The identities of the parameters that the program uses."""
    used = {
        reading.tensors[node.name]
        for node in reading.exported.graph.nodes
        if node.name in reading.tensors and node.users
    }
    state = reading.model.state_dict(keep_vars=True)
    return {id(state[name]) for name in used if name in state}


def _unseen_inputs(reading: Rules) -> dict[int, list[str]]:
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


def _uncalled(reading: Rules) -> dict[str, str]:
    """Name the layers that the forward pass does not use."""
    ids = _used(reading)
    return {
        name: "the forward pass does not use it"
        for name, module in reading.model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        and (weight := module._parameters.get("weight")) is not None
        and id(weight) not in ids
    }
