"""Take a model out of Python: ONNX, safetensors, or torch.export's own archive.

Every file is checked before it takes its place: what it computes (ONNX, pt2) or holds (safetensors) is compared with
the model.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import prune

from mlprank.artifact.onnx_files import onnx_function, require_onnx, write_onnx
from mlprank.utils.files import whole_file
from mlprank.utils.modules import check_fit, evaluating, first_words, sole_tensor

FORMATS = ("onnx", "safetensors", "pt2")
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "safetensors": ".safetensors", "pt2": ".pt2"}
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: Where it is.
        format: One of `FORMATS`.
        num_bytes: Its length.
        max_difference: Largest absolute difference between its logits and the model's, on batches of other sizes than
            the example's; 0 for safetensors, whose tensors are compared bit by bit.
    """

    path: Path
    format: str
    num_bytes: int
    max_difference: float


def export_model(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    format: str,  # noqa: A002
    *,
    metadata: Mapping[str, object] | None = None,
) -> Exported:
    """Write a model to one file that needs none of this package to run.

    ONNX and pt2 files take any batch size, run in evaluation mode on the CPU, and are checked on two other batch sizes
    than the example's. Masks of `torch.nn.utils.prune` are made permanent in the file.

    Args:
        model: Maps one tensor to one tensor of logits (N, num_classes); left as it was.
        example: One input batch, shape (N, ...), N at least 1, float32 or float64 as the model's weights.
        path: The file; missing directories are made. An existing file is replaced, and only by a whole one.
        format: "onnx" (needs the extra `export`), "safetensors" or "pt2" (read by `torch.export.load`).
        metadata: How the model is built, plain types; safetensors files hold it as strings of JSON beside the class and
            the modules of the model. Other formats do not hold it.

    Returns:
        What was written.

    Raises:
        ValueError: If the format is unknown, `example` holds no sample or does not fit the model, the model fixes its
            batch size or cannot be traced, or the file computes something else than the model.
        TypeError: If the model's forward needs more than one input or returns more than one tensor.
        ImportError: If a package that ONNX needs is missing.
        OSError: If the file cannot be written.
    """
    check_format(format)
    network, batch = _standalone(model), _traceable(example)
    check_single_input(network)
    with evaluating(network), torch.no_grad(), whole_file(path) as temporary:
        check_fit(network, batch, who="export")
        difference = _WRITERS[format](network, batch, temporary, metadata or {})
        num_bytes = temporary.stat().st_size
    return Exported(Path(path), format, num_bytes, difference)


def check_format(format: str) -> None:  # noqa: A002
    """Raise a ValueError for an unknown format, and an ImportError where a package that it needs is missing."""
    if format not in FORMATS:
        raise ValueError(f"export: format={format!r} is unknown; choose one of {', '.join(FORMATS)}")
    if format == "onnx":
        require_onnx()


def check_single_input(model: nn.Module) -> None:
    """Raise a TypeError that names the inputs where the model's forward needs more than one, or takes none."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    open_ended = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is kinds.empty and p.kind not in open_ended]
    if len(needed) <= 1 and positional and (not needed or needed[0] == positional[0].name):
        return
    raise TypeError(
        f"export: forward of {type(model).__name__} needs {len(needed)} inputs "
        f"({', '.join(needed) or 'none by position'}), but exactly one tensor can be exported; "
        "wrap the model in a module whose forward takes one"
    )


def _standalone(model: nn.Module) -> nn.Module:
    """Copy the model to the CPU, uncompiled, with its pruning masks made permanent."""
    source = getattr(model, "_orig_mod", model)
    # The masked weight that pruning leaves on a module is no leaf: deepcopy refuses it unless a copy is at hand.
    plain = [v for module in source.modules() for v in vars(module).values() if isinstance(v, Tensor)]
    network: nn.Module = copy.deepcopy(source, {id(tensor): tensor.detach().clone() for tensor in plain}).cpu()
    for module in network.modules():
        module._compiled_call_impl = None
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    return network


def _traceable(example: Tensor) -> Tensor:
    """Return a CPU batch of at least two samples: torch.export would take a batch of one for a constant."""
    if example.dim() == 0 or len(example) == 0:
        raise ValueError(f"export: example of shape {tuple(example.shape)} must hold a sample, shape (N, ...)")
    batch = example.detach().cpu()
    return batch if len(batch) > 1 else torch.cat([batch, batch])


def _trace(network: nn.Module, batch: Tensor) -> ExportedProgram:
    shapes = ({0: Dim("batch", min=1)},)
    try:
        return torch.export.export(network, (batch,), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        raise ValueError(
            f"export: {type(network).__name__} does not take batches of any size ({first_words(error)}); "
            "write its forward without the batch size, as in x.flatten(1) rather than x.view(64, -1)"
        ) from error
    except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
        raise ValueError(
            f"export: the forward of {type(network).__name__} branches on the values of its input "
            f"({first_words(error)}); write it without Python conditions on tensors"
        ) from error


def _write_onnx(network: nn.Module, batch: Tensor, path: Path, metadata: Mapping[str, object]) -> float:
    if batch.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"export: an ONNX file of {batch.dtype} inputs cannot be checked; export model.float()")
    write_onnx(_trace(network, batch), path)
    return _compare(network, onnx_function(path), batch, "onnx")


def _write_pt2(network: nn.Module, batch: Tensor, path: Path, metadata: Mapping[str, object]) -> float:
    torch.export.save(_trace(network, batch), path)
    return _compare(network, torch.export.load(path).module(), batch, "pt2")


def _write_safetensors(network: nn.Module, batch: Tensor, path: Path, metadata: Mapping[str, object]) -> float:
    from safetensors.torch import load_file, save_file

    tensors, shared = _distinct_tensors(network)
    notes = {
        "class": f"{type(network).__module__}.{type(network).__qualname__}",
        "modules": {name: repr(module) for name, module in network.named_modules() if not list(module.children())},
        "input_shape": list(batch.shape[1:]),
        "shared": shared,
        **metadata,
    }
    save_file(tensors, path, {"format": "pt", **{name: json.dumps(note) for name, note in notes.items()}})
    loaded = load_file(path)
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, loaded[name])]
    if changed:
        raise ValueError(f"export: {changed} came back changed from the safetensors file; is the disk full or failing?")
    return 0.0


def _distinct_tensors(network: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state with every tensor once, and for each other name of a tensor the name that holds it."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"export: {name} of the state dict is a {type(tensor).__name__}, and safetensors hold tensors only"
            )
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if names.setdefault(key, name) == name:
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            shared[name] = names[key]
    return tensors, shared


def _compare(network: nn.Module, exported: Callable[[Tensor], object], batch: Tensor, format: str) -> float:  # noqa: A002
    """Return the largest difference on a batch of one and on one larger than the example's."""
    worst = 0.0
    for inputs in (batch[:1], torch.cat([batch, batch.flip(0)[:1]])):
        expected = sole_tensor(network(inputs), who="export")
        found = sole_tensor(exported(inputs), who="export")
        difference = float((found - expected).abs().max())
        scale = max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE * scale:
            raise ValueError(
                f"export: the {format} file differs from the model by {difference:.3g} on a batch of {len(inputs)}, "
                f"more than {TOLERANCE:g}; nothing was written. Try another format, and report the model's operations"
            )
        worst = max(worst, difference)
    return worst


_WRITERS: Mapping[str, Callable[[nn.Module, Tensor, Path, Mapping[str, object]], float]] = {
    "onnx": _write_onnx,
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
}
