"""Take a model out of Python: as ONNX, safetensors, or torch.export's archive, checked before it takes its place."""

import errno
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from mlprank.artifact.record import describe_inputs
from mlprank.graph.program import Inputs
from mlprank.graph.trace import export_program
from mlprank.surgery.masks import bake_masks
from mlprank.surgery.narrow import with_state
from mlprank.utils.errors import check_choice, first_line, require
from mlprank.utils.files import whole_file
from mlprank.utils.modules import evaluating

TOLERANCE = 1e-4
ONNX = ("onnx", "onnxscript", "onnxruntime")
"""The packages that ONNX needs."""


class Exported(NamedTuple):
    """A file that was written and checked."""

    path: Path
    num_bytes: int
    max_difference: float  # absolute, from the model's outputs, on batches of other sizes; safetensors are bit by bit


def inputs_of(example: Any) -> Inputs:
    """Return a tensor, a tuple of arguments, or a dict of keyword arguments as a call."""
    args = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    call = Inputs((), dict(example)) if isinstance(example, Mapping) else Inputs(args, {})
    inputs = example if isinstance(example, Inputs) else call
    if len(inputs) == 0:
        raise ValueError(f"export: example {inputs} holds no sample; give tensors of shape (N, ...)")
    return inputs


class Preprocessed(nn.Module):
    """A model that takes pixels as they are in image files, uint8 in 0 to 255.

    `model` takes images whose pixels are in [0, 1], or normalised by every channel's `mean` and standard deviation.

    Examples:
        >>> import torch
        >>> model = Preprocessed(torch.nn.Identity(), mean=[0.5], std=[0.25])
        >>> model(torch.tensor([[[[255, 0]]]], dtype=torch.uint8))
        tensor([[[[ 2., -2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        mean, std = ((0.0,), (1.0,)) if mean is None and std is None else (mean, std)
        if mean is None or std is None or len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean={mean} and std={std} must be of one length, with standard deviations above 0")
        self.model = model
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        for name, values in {"mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(list(values), dtype=dtype).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Any:
        """Scale pixels (N, C, H, W), normalise them, and call the model."""
        return self.model((pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)


def export_model(
    model: nn.Module,
    example: Any,
    path: str | Path,
    format: str,  # noqa: A002
    *,
    metadata: Mapping[str, object] | None = None,
) -> Exported:
    """Write a model, which is left as it was, to one file that needs none of this package to run.

    ONNX and pt2 files take any batch size, run in evaluation mode on the CPU, and are checked on two other batch sizes
    than that of the example, a call as `inputs_of` takes it: tensors that share the first one's number of samples get a
    free batch axis. Masks of `torch.nn.utils.prune` are made permanent in the file. `metadata`, plain types, and shape,
    dtype and range of the inputs stand as JSON in ONNX and safetensors files.

    Raises:
        ValueError: If `example` does not fit the model, the model fixes its batch size or cannot be traced, or the file
            computes something else than the model.
        TypeError: If the model returns no tensor.
        ImportError: If a package that ONNX needs is missing.
        OSError: If the file cannot be written, as on a full disk; it is named.
    """
    check_format(format)
    given = inputs_of(example)
    network = with_state(getattr(model, "_orig_mod", model), {}).cpu()
    bake_masks(network)
    inputs = given.mapped(lambda tensor: tensor.detach().cpu())
    if len(inputs) == 1:  # torch.export would take a batch of one for a constant
        inputs = inputs[[0, 0]]
    notes = {"inputs": describe_inputs(given.args, given.kwargs), **(metadata or {})}
    with evaluating(network), torch.no_grad(), whole_file(path) as temporary:
        try:
            outputs = inputs.outputs(network)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ValueError(
                f"export: {type(model).__name__} cannot take inputs {inputs} ({first_line(error)}); give an example as "
                "the model was trained on: a tensor, a tuple of arguments, or a dict of keyword arguments"
            ) from error
        if not outputs:
            raise TypeError(f"export: {type(model).__name__} returned no tensor; wrap it in a module that returns some")
        try:
            difference = _WRITERS[format](network, inputs, temporary, notes)
        except OSError as error:
            raise OSError(error.errno, f"{path} cannot be written: {error.strerror}; is there room for it?") from error
        return Exported(Path(path), temporary.stat().st_size, difference)


def check_format(format: str) -> None:  # noqa: A002
    """Raise a ValueError for an unknown format, and an ImportError where a package that it needs is missing."""
    check_choice("export: format", format, list(_WRITERS))
    if format == "onnx":
        require("export", *ONNX)


def _trace(network: nn.Module, inputs: Inputs) -> ExportedProgram:
    shapes, batch = ShapesCollection(), Dim("batch", min=1)
    for tensor in inputs.tensors:
        if tensor.dim() and len(tensor) == len(inputs):
            shapes[tensor] = {0: batch}
    try:
        return export_program(network, inputs, shapes)
    except torch._dynamo.exc.UserError as error:
        raise ValueError(
            f"export: {type(network).__name__} does not take batches of any size ({first_line(error)}); write its "
            "forward without the batch size, as in x.flatten(1) rather than x.view(64, -1)"
        ) from error
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
        raise ValueError(
            f"export: the forward of {type(network).__name__} branches on the values of its input "
            f"({first_line(error)}); write it without Python conditions on tensors"
        ) from error


def _write_onnx(network: nn.Module, inputs: Inputs, path: Path, metadata: Mapping[str, object]) -> float:
    half = [tensor.dtype for tensor in inputs.tensors if tensor.dtype in (torch.bfloat16, torch.float16)]
    if half:
        raise ValueError(f"export: an ONNX file of {half[0]} inputs cannot be checked; export model.float()")
    import onnx

    written = torch.onnx.export(
        _trace(network, inputs),
        dynamo=True,
        verbose=False,
        # the free axis is called so, not by the tracer's symbol
        dynamic_shapes=[{0: "batch"} if tensor.dim() else {} for tensor in inputs.tensors],
        input_names=["images"] if len(inputs.tensors) == 1 and not inputs.kwargs else None,
        output_names=["logits"] if len(inputs.outputs(network)) == 1 else None,
    )
    assert written is not None
    proto = written.model_proto
    onnx.helper.set_model_props(proto, {f"mlprank.{name}": json.dumps(note) for name, note in metadata.items()})
    onnx.save(proto, str(path))
    return _compare(network, onnx_function(path), inputs, "onnx")


def onnx_function(path: str | Path) -> Callable[..., Any]:
    """Load an ONNX file as a function of CPU tensors, by position or by name; several outputs come as a tuple."""
    require("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = session.run(None, {name: leaf.numpy() for name, leaf in zip(names, leaves, strict=True)})
        outputs = tuple(torch.from_numpy(array) for array in found)
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def _write_pt2(network: nn.Module, inputs: Inputs, path: Path, metadata: Mapping[str, object]) -> float:
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(_trace(network, inputs), buffer)
    path.write_bytes(buffer.getvalue())
    return _compare(network, torch.export.load(io.BytesIO(path.read_bytes())).module(), inputs, "pt2")


def _write_safetensors(network: nn.Module, inputs: Inputs, path: Path, metadata: Mapping[str, object]) -> float:
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_model

    state = network.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise TypeError(f"export: {strange[0]} of the state dict is not a tensor, and safetensors hold tensors only")
    notes = {
        "class": f"{type(network).__module__}.{type(network).__qualname__}",
        "modules": {name: repr(module) for name, module in network.named_modules() if not list(module.children())},
        "input_shape": list(inputs.tensors[0].shape[1:]),
        **metadata,
    }
    try:  # of tied weights one is written, and the metadata name the others
        save_model(network, str(path), {"format": "pt", **{name: json.dumps(note) for name, note in notes.items()}})
    except SafetensorError as error:
        raise OSError(errno.EIO, first_line(error)) from error
    if changed := [name for name, tensor in load_file(path).items() if not torch.equal(tensor, state[name])]:
        raise ValueError(f"export: {changed} came back changed from the safetensors file; is the disk full or failing?")
    return 0.0


def _compare(network: nn.Module, exported: Callable[..., object], inputs: Inputs, format: str) -> float:  # noqa: A002
    """Return the largest difference on a batch of one and on one larger than the example's."""
    worst, last = 0.0, len(inputs) - 1
    for index in ([0], [*range(len(inputs)), last]):
        batch = inputs[index]
        pairs = zip(batch.outputs(network), batch.outputs(exported), strict=True)
        for expected, found in [(one.double(), other.double()) for one, other in pairs if one.numel()]:
            difference = float((found - expected).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise ValueError(
                    f"export: the {format} file differs from the model by {difference:.3g} on a batch of "
                    f"{len(index)}, more than {TOLERANCE:g}; nothing was written. Try another format, and report the "
                    "model's operations"
                )
            worst = max(worst, difference)
    return worst


_WRITERS: Mapping[str, Callable[[nn.Module, Inputs, Path, Mapping[str, object]], float]] = {
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
}
