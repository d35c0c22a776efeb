"""From a network and an example input to its graph of neurons, by `torch.export`."""

import io
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import redirect_stderr
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import is_lazy

from mlprank.graph.axes import Axis, Segment, pieces, size_of
from mlprank.graph.layers import Embedding, Use
from mlprank.graph.program import Inputs, Program, as_inputs, operation, owner_of, user_line
from mlprank.graph.records import Call, Graph, Group, Layer, Scale, describe_whole
from mlprank.graph.rules import OUTPUT, WRITTEN, Reading, is_stock
from mlprank.utils.errors import first_line
from mlprank.utils.modules import (
    LOCK,
    Hook,
    Observer,
    config_of,
    evaluating,
    replace_hook,
    shell,
    tensors_of,
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

    A copy around the same parameters is run and traced in evaluation mode on a call of at least one sample. Hooks that
    only observe see nothing of it. `varying` are dimensions besides the first whose size differs between batches, by
    number of the tensor. Errors say of a network that it cannot take the example, cannot be traced, works for one batch
    size only, or has nothing to prune.
    """
    inputs = as_inputs(example)
    two = inputs[[0, -1]]
    with LOCK:
        check_parameters(model)
        model = shell(model)
    quiet_hooks(model, inputs)
    with evaluating(model), torch.no_grad():
        _check_call(model, two)
        exported = _exported(model, two, varying)
        graph = build_graph(Reading(model, exported))
        some = inputs[:_COMPARED]
        _compare(model, graph.program, some, lambda: _written_numbers(model, some, exported, varying))
    if not graph.layers:
        raise ValueError(f"model: {type(model).__name__} has nothing to prune: {describe_whole(graph.others)}")
    return graph


def _exported(model: nn.Module, inputs: Inputs, varying: Collection[tuple[int, int]]) -> ExportedProgram:
    """Trace for any number of samples; an error says what stands in the way."""
    shapes = ShapesCollection()
    for number, tensor in enumerate(inputs.tensors):
        dims = [dim for index, dim in varying if index == number and dim < tensor.dim()]
        if tensor.dim() and len(tensor) == len(inputs):
            dims.append(0)
        if dims:
            shapes[tensor] = dict.fromkeys(dims, Dim.AUTO)
    try:
        return export_program(model, inputs, shapes)
    except (*_CANNOT_RUN, torch._dynamo.exc.TorchDynamoException) as error:
        line = user_line("".join(traceback.format_tb(error.__traceback__)[1:]))
        place = f" at {line}" if line else ""
        cache = ", return no cache (use_cache=False)" if "Cache" in str(error) else ""
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced by torch.export{place}: {first_line(error)}; write its "
            f"forward without control flow that depends on data{cache}, or prune the part of it that can be traced"
        ) from error


def export_program(model: nn.Module, inputs: Inputs, shapes: ShapesCollection) -> ExportedProgram:
    """Run `torch.export`, quietly and under the lock; what it raises passes as it is."""
    with LOCK, warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        kwargs = dict(inputs.kwargs)
        dynamic = shapes.dynamic_shapes(model, inputs.args, kwargs)
        return torch.export.export(model, inputs.args, kwargs, dynamic_shapes=dynamic, strict=False)


def run_alike(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network in evaluation mode; draws that it makes there, too, are the same for every network."""
    # torch.manual_seed notes the whole stack for a CUDA that may come later, which takes longer than a small network.
    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs.tensors)
    seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
    with evaluating(model), torch.no_grad():
        seed(0)
        return inputs.outputs(model)


def _check_call(model: nn.Module, inputs: Inputs) -> None:
    """Raise a TypeError where a network cannot take a batch; it is run here for the first time."""
    try:
        run_alike(model, inputs)
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
    if not users_hooks(model):
        return
    changing, tried = set[Hook](), shell(model)
    watch_hooks(tried, changing, unnoticed=True)
    _check_call(tried, inputs[[0, -1]])
    for place, hook in users_hooks(model).items():
        if place not in changing:
            replace_hook(model, place, Observer(hook))


def _compare(model: nn.Module, program: Program, inputs: Inputs, culprits: Callable[[], str]) -> None:
    """See that the program gives what the network does on more samples than it was made of, or name the culprits."""
    try:
        expected = run_alike(model, inputs)
    except _CANNOT_RUN as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs.tensors)
        raise ValueError(
            f"model: {type(model).__name__} takes two samples but cannot run a batch of shape {shapes} "
            f"({first_line(error)}); write the forward for any batch size"
        ) from error
    what = f"model: what torch.export traced of {type(model).__name__}"
    where = f"a batch of {len(inputs)} samples: "
    torch.manual_seed(0)
    try:
        got = program.outputs(tensors_of(model), inputs)
    except ValueError as error:
        raise ValueError(f"{what} cannot run {where}{culprits()}; {_NO_NUMBERS}") from error
    for one, other in zip(expected, got, strict=True):
        gap = 0.0 if one.shape == other.shape else float("inf")
        if not gap and one.numel():
            scale = max(1.0, float(one.double().abs().nan_to_num().max()))
            gap = float((one.double() - other.double()).abs().nan_to_num().max()) / scale
        if gap > _TOLERANCES.get(one.dtype, 0.0) and all(map(torch.equal, expected, run_alike(model, inputs))):
            raise ValueError(f"{what} differs from it by {gap:.2g} on {where}{culprits()}; {_NO_NUMBERS}")


def agrees(model: nn.Module, program: Program, inputs: Inputs) -> bool:
    """Whether a program is that of a network, on as many samples as one is compared on when it has been traced."""
    with evaluating(model), torch.no_grad():
        try:
            _compare(model, program, inputs[:_COMPARED], str)
        except ValueError:
            return False
    return True


def _written_numbers(
    model: nn.Module, inputs: Inputs, exported: ExportedProgram, varying: Collection[tuple[int, int]]
) -> str:
    """The line at which a program of two samples and one of three hold different numbers."""
    more = _exported(model, inputs[[0, 0, -1]], varying)
    for node, other in zip(exported.graph.nodes, more.graph.nodes, strict=False):
        if node.op == "call_function" and str(node.args) != str(other.args):
            return f"a number is taken from the batch at {user_line(node.stack_trace) or operation(node)}"
    return "its forward depends on the batch in a way that is lost"


def check_parameters(model: nn.Module) -> None:
    """Raise a TypeError or ValueError that names the first module or parameter that cannot be pruned by."""
    for name, module in model.named_modules():
        place, kind = f'layer "{name}"' if name else "model", type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{place} is a {kind}, whose forward cannot be read; prune it before it is scripted")
        if hasattr(module, "_packed_params"):
            raise TypeError(f"{place} is a quantised {kind}; prune the network before it is quantised")
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


# -- from what has been read to frozen records -----------------------------------------------------------------------

_STREAM = "they are a residual stream that a layer norm reads, which stays whole"
_ENDING = {"layer_norm", "rms_norm", "group_norm", "slice", "select", "narrow"}
"""Behind these a value is not what a layer's neurons emit."""
_BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def build_graph(reading: Reading) -> Graph:
    """Turn what has been read of a program into frozen records; they hold no reference to the model."""
    spaces, names, sides = reading.spaces, list[str](), list[tuple[Axis, Axis]]()
    for (weight, _), uses in reading.uses.items():
        (node, use), name = uses[0], weight.removesuffix(".weight")
        if name in names:  # a second way of using the weight is named after its module
            name = owner_of(node) or f"{name}, transposed"
        while name in names:
            name += ", transposed"
        names.append(name)
        made, read = use.kind.whole(reading.slots[weight])
        sides.append((made, (Segment(None, size_of(read)),) if isinstance(use.kind, Embedding) else read))
    found = [segment.space for made, _ in sides for segment in spaces.resolve(made) if segment.space is not None]
    roots: dict[int | None, int] = {space: index for index, space in enumerate(dict.fromkeys(found))}

    def named(axis: Axis) -> Axis:
        """An axis whose segments name groups."""
        return tuple(replace(segment, space=roots.get(segment.space)) for segment in spaces.resolve(axis))

    weights = [weight for weight, _ in reading.uses]
    layers = tuple(
        Layer(
            name=name,
            weight=weight,
            made=named(made),
            read=named(read),
            calls=tuple(_call(reading, *use) for use in uses),
            tied=weights.count(weight) > 1,
        )
        for name, weight, (made, read), uses in zip(names, weights, sides, reading.uses.values(), strict=True)
    )
    _keep_unused(reading)
    slots = {(bias, 0): layer.made for layer in layers for bias in layer.biases}
    for tensor, axes in reading.slots.items():
        known = {(tensor, dim): named(axis) for dim, axis in axes.items()}
        slots |= {place: axis for place, axis in known.items() if any(segment.space is not None for segment in axis)}
    biased = [(call, call.bias) for layer in layers for call in layer.calls if call.bias is not None]
    created = {call.node: (bias, call.out_dim) for call, bias in biased if bias not in reading.slots}
    return Graph(
        layers=layers,
        groups=tuple(_group(reading, index, root, layers) for root, index in roots.items()),
        slots=slots,
        flow={(node.name, dim): flow for (node, dim), flow in reading.flow.items()},
        program=Program(reading.exported, reading.tensors, created),
        others=reading.others,
        norms=tuple(replace(norm, axis=named(norm.axis)) for norm in reading.norms),
    )


def _call(reading: Reading, node: fx.Node, use: Use) -> Call:
    """A use of a weight: walk from its operation to its activation for the factors on the way and the value sent on."""
    scales: list[Scale] = []
    last, dim = node, use.out_dim
    while len(last.users) == 1 and last not in reading.activations:
        (user,) = last.users
        part = reading.part(last, dim)
        flows = {place: reading.flow.get((user, place)) for place in reading.axes[user]}
        ways = [(place, flow) for place, flow in flows.items() if flow is not None and flow.parts == (part,)]
        if len(ways) != 1 or user.meta.get("val") is None or operation(user) in _ENDING:
            break
        [(dim, flow)] = ways
        scales += [flow.scale] if flow.scale is not None else []
        last = user
    owner, bias = owner_of(node), reading.name_of(use.bias)
    layers = {key for key, uses in reading.uses.items() for _, other in uses if other.bias is use.bias}
    if use.bias is None and is_stock(reading.modules.get(owner), *_BIASED):
        every = reading.model.named_modules(remove_duplicate=False)
        around = [each for path, each in every if owner.startswith(f"{path}.".lstrip("."))]
        # A class that builds from a configuration would build it without one.
        bias = None if any(map(config_of, around)) else f"{owner}.bias"
    elif len(layers) > 1:
        bias = None
    return Call(
        node=node.name,
        place=(use.source.name, use.dim),
        out_dim=use.out_dim,
        emitted=(last.name, dim),
        scales=tuple(scales),
        bias=bias,
        kind=use.kind,
    )


def _group(reading: Reading, index: int, root: int | None, layers: tuple[Layer, ...]) -> Group:
    makers = [layer for layer in layers if index in layer.made_groups]
    start, piece = next(iter(pieces(makers[0].made, index)))
    notes = reading.spaces.notes[root]
    reasons = [note for note, whole in notes.items() if whole]
    reasons += [_STREAM] if notes.keys() >= {"added", "normed"} else []
    parts = f"[{start}:{start + piece.width}]" if len(makers[0].made_groups) > 1 else ""
    return Group(
        name=makers[0].name + parts,
        layers=tuple(layer.name for layer in makers),
        width=piece.width,
        readers=tuple(layer.name for layer in layers if index in layer.read_groups),
        whole=min(reasons, key=lambda reason: reason == OUTPUT, default=None),
        output=OUTPUT in reasons,
        varying="varying" in notes,
        moved="moved" in notes,
        written=next((note.removeprefix(WRITTEN) for note in notes if note.startswith(WRITTEN)), None),
    )


def _keep_unused(reading: Reading) -> None:
    """Note the layers that the program does not use: only training, or another method, does; keep whole what they read.

    Which neurons that is nobody can know; a layer reads as many as it has inputs, so every axis of that size is meant.
    """
    used = {reading.tensors.get(node.name) for node in reading.exported.graph.nodes if node.users}
    ids = {id(tensor) for name, tensor in tensors_of(reading.model).items() if name in used}
    readers: dict[int, str] = {}
    made: defaultdict[str, list[int]] = defaultdict(list)
    for name, module in reading.model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or id(weight) in ids or not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        sizes = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
        inputs, outputs = (getattr(module, size) for size in sizes)
        # Of several layers in one part that is not used, those behind others read the others.
        part = name.split(".")[0]
        if not any(inputs % before == 0 for before in made[part]) or name == part:
            readers.setdefault(inputs, name)
        made[part].append(outputs)
        reading.others.setdefault(name, "the forward pass does not use it")
    for node, axes in reading.axes.items():
        for axis in axes.values() if node.name not in reading.tensors else ():
            if (reader := readers.get(size_of(axis))) is not None:
                words = f'"{reader}", which the forward pass in evaluation mode does not use, may read them'
                reading.spaces.keep_whole(axis, words)
