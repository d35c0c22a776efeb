"""`mlprank export`: a checkpoint as ONNX, safetensors or pt2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    from torch import Tensor, nn


def build_parser() -> ArgumentParser:
    """Describe the command's arguments."""
    parser = ArgumentParser(
        prog="mlprank export",
        description="Write the network of a checkpoint to a file that runs without mlprank. The file takes any batch size "
        "and is checked against the network before it takes its place.",
    )
    parser.add_argument("checkpoint", type=str, help="pruned.ckpt, or a dense checkpoint that mlprank fit wrote")
    parser.add_argument("--format", type=str, default="onnx", help="onnx (needs the extra export), safetensors or pt2")
    parser.add_argument("--output", type=str | None, default=None, help="the file; beside the checkpoint if not given")
    parser.add_argument(
        "--input_shape", type=list[int] | None, default=None, help="shape of one image, such as [1,28,28]"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: The arguments after `mlprank export`.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an argument or the checkpoint cannot be used; other errors of the user pass as they are.
    """
    args = build_parser().parse_args(argv)
    from mlprank.artifact.export import SUFFIXES, check_format, export_model
    from mlprank.training.networks import load_network

    check_format(args.format)
    network = load_network(args.checkpoint, input_shape=args.input_shape)
    output = Path(args.output or Path(args.checkpoint).with_suffix(SUFFIXES[args.format]))
    example = _images(network.input_shape, network.model)
    written = export_model(network.model, example, output, args.format, metadata=network.metadata)
    checked = "its tensors are the network's" if args.format == "safetensors" else _agreement(written.max_difference)
    print(f"{written.path}: {written.num_bytes:,} bytes, {checked}")
    return 0


def _agreement(difference: float) -> str:
    return f"its logits are the network's within {difference:.1e} on other batch sizes"


def _images(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    """Draw two random images in the model's precision."""
    import torch

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
