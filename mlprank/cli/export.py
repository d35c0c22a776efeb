"""`mlprank export`: a checkpoint as ONNX, safetensors or pt2."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.utils.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlprank.training.networks import Network


def build_parser() -> CommandParser:
    """Describe the command's arguments."""
    parser = CommandParser("export")
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--out")
    parser.add_argument("--input_shape", type=listed(int))
    parser.add_argument("--with_preprocessing", action="store_true")
    parser.add_argument("--mean", type=listed(float))
    parser.add_argument("--std", type=listed(float))
    parser.add_argument("--classes", type=listed(str))
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
    from mlprank.artifact.export import SUFFIXES, check_format, export_model
    from mlprank.training.networks import load_network

    model, rest = typed_model(argv)
    args = build_parser().parse_args(rest)
    checkpoint = args.ckpt_path or args.checkpoint
    if checkpoint is None:
        raise OptionError("mlprank export needs a checkpoint: pruned.ckpt, or what `mlprank fit` wrote")
    check_format(args.format)
    network = load_network(checkpoint, input_shape=args.input_shape, model=model)
    output = Path(args.out or Path(checkpoint).with_suffix(SUFFIXES[args.format]))
    exported, example, meaning = _prepared(network, args)
    metadata = {**network.metadata, **meaning}
    written = export_model(exported, example, output, args.format, metadata=metadata)
    checked = "its tensors are the network's" if args.format == "safetensors" else _agreement(written.max_difference)
    print(f"{written.path}: {written.num_bytes:,} bytes, {checked}")
    return 0


def _prepared(network: Network, args: Namespace) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return the network, with its preprocessing where that is asked for, an example, and what its inputs mean."""
    mean, std = args.mean, args.std
    if mean is None and std is None:
        mean, std = _statistics(network.metadata.get("data"))
    meaning: dict[str, Any] = {"mean": mean, "std": std, "classes": args.classes}
    meaning = {name: list(value) for name, value in meaning.items() if value is not None}
    if not args.with_preprocessing:
        return network.model, _images(network.input_shape, network.model), meaning | {"range": [0, 1]}
    import torch

    from mlprank.artifact.export import Preprocessed

    if len(network.input_shape) != 3:
        raise ValueError(
            f"--with_preprocessing needs images of shape (C, H, W), and the checkpoint says {network.input_shape}; give"
            " it, such as --input_shape=[1,28,28]"
        )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, *network.input_shape), dtype=torch.uint8, generator=generator)
    return Preprocessed(network.model, mean=mean, std=std), pixels, meaning | {"range": [0, 255]}


def _statistics(data: object) -> tuple[Any, Any]:
    """Mean and standard deviation of the channels of one of our data sets; None twice where its pixels stay in [0, 1]."""
    from mlprank import datamodules

    known = getattr(datamodules, data, None) if isinstance(data, str) and data.isidentifier() else None
    return getattr(known, "mean", None), getattr(known, "std", None)


def typed_model(argv: list[str]) -> tuple[nn.Module | None, list[str]]:
    """Build the network that `--model my_package.Net --model.width 64` describes, and return the other arguments."""
    if not any(word.partition("=")[0].partition(".")[0] == "--model" for word in argv):
        return None, argv
    from mlprank.training.parser import typed_network

    return typed_network(argv)


def _agreement(difference: float) -> str:
    return f"its logits are the network's within {difference:.1e} on other batch sizes"


def _images(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    """Draw two random images in the model's precision."""
    import torch

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
