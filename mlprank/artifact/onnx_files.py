"""ONNX files: write one from an exported program, and run one with onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram


def require_onnx(*packages: str) -> None:
    """Raise an ImportError that names the extra where a package that ONNX needs is missing (all three by default)."""
    names = packages or ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(f'{" and ".join(missing)} {verb} not installed; install with: pip install "mlprank[export]"')


def write_onnx(program: ExportedProgram, path: str | Path) -> None:
    """Write a program of one input and one output, whose first axes are a free batch axis.

    Args:
        program: What `torch.export.export` gave; its input is called "images" in the file, its output "logits".
        path: The file.
    """
    import onnx

    written = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    assert written is not None
    proto = written.model_proto
    _name_batch_axis(proto)
    onnx.save(proto, str(path))


def _name_batch_axis(proto: Any) -> None:
    """Call the free axis "batch" instead of the tracer's symbol."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_param = "batch"


def onnx_function(path: str | Path, *, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """Load an ONNX file of one input and one output as a function of CPU tensors.

    Args:
        path: The file.
        threads: Threads of one operation; torch's number when None.
    """
    require_onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: batch.numpy()})[0])

    return run
