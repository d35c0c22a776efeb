"""`mlprank export`: a checkpoint as ONNX, safetensors or pt2."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.utils.errors import OptionError


def command_parser() -> CommandParser:
    """Describe the command's arguments."""
    about = (
        "Write the network of a checkpoint to a file that runs without mlprank. The file takes any batch size and is "
        "checked against the network before it takes its place."
    )
    parser = CommandParser("export", about, "mlprank export runs/quickstart/001/pruned.ckpt --format onnx")
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="pruned.ckpt, or another checkpoint")
    parser.add_word("ckpt_path", help="the same by name")
    parser.add_argument(
        "--format",
        default="onnx",
        metavar="NAME",
        help="onnx (needs mlprank[export]), safetensors or pt2; default onnx",
    )
    parser.add_word("out", help="the file; default: beside the checkpoint")
    parser.add_word("input_shape", type=listed(int))
    parser.add_argument(
        "--with_preprocessing",
        action="store_true",
        help="take pixels as image files have them, 0 to 255, and normalise them",
    )
    parser.add_argument(
        "--mean", type=listed(float), metavar="NUMBERS", help="means of the channels; default: those of the data set"
    )
    parser.add_argument("--std", type=listed(float), metavar="NUMBERS", help="standard deviations likewise")
    parser.add_argument(
        "--classes",
        type=listed(str),
        metavar="NAMES",
        help="their names, for the metadata; default: those of the data set",
    )
    parser.add_word("model")
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    model, rest = typed_model(argv)
    args = command_parser().parse_args(rest)
    from mlprank.artifact.export import SUFFIXES, check_format, export_model
    from mlprank.models.loading import load_network

    checkpoint = args.ckpt_path or args.checkpoint
    if checkpoint is None:
        raise OptionError("mlprank export needs a checkpoint: pruned.ckpt, or what `mlprank fit` wrote")
    check_format(args.format)
    network = load_network(checkpoint, input_shape=args.input_shape, model=model)
    output = Path(args.out or Path(checkpoint).with_suffix(SUFFIXES[args.format]))
    exported, example, meaning = _prepared(network, args)
    metadata = {**network.metadata, **meaning}
    written = export_model(exported, example, output, args.format, metadata=metadata)
    checked = "its tensors are the network's"
    if args.format != "safetensors":
        checked = f"its logits are the network's within {written.max_difference:.1e} on other batch sizes"
    print(f"{written.path}: {written.num_bytes:,} bytes, {checked}")
    return 0


def _prepared(network: Any, args: Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Return the network, with its preprocessing where that is asked for, an example, and what its inputs mean."""
    import torch

    from mlprank.artifact.export import Preprocessed

    generator = torch.Generator().manual_seed(0)
    mean, std, data = args.mean, args.std, _data_set(network.metadata.get("data"))
    if mean is None and std is None:
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    meaning: dict[str, Any] = {"mean": mean, "std": std, "classes": args.classes or getattr(data, "classes", None)}
    meaning = {name: list(value) for name, value in meaning.items() if value}
    if not args.with_preprocessing:
        dtype = next((p.dtype for p in network.model.parameters() if p.is_floating_point()), torch.float32)
        example = torch.randn(2, *network.input_shape, generator=generator).to(dtype)
        return network.model, example, meaning | {"range": [0, 1]}
    if len(network.input_shape) != 3:
        raise ValueError(
            f"--with_preprocessing needs images of shape (C, H, W), and the checkpoint says {network.input_shape}; "
            "give it, such as --input_shape=[1,28,28]"
        )
    pixels = torch.randint(0, 256, (2, *network.input_shape), dtype=torch.uint8, generator=generator)
    return Preprocessed(network.model, mean=mean, std=std), pixels, meaning | {"range": [0, 255]}


def _data_set(name: object) -> Any:
    """One of our data modules, which knows mean and standard deviation of its channels and its classes, or None."""
    from mlprank import datamodules

    return getattr(datamodules, name, None) if isinstance(name, str) and name.isidentifier() else None


def typed_model(argv: list[str]) -> tuple[Any, list[str]]:
    """Build the network that `--model my_package.Net --model.width 64` describes, and return the other arguments."""
    if not any(word.partition("=")[0].partition(".")[0] == "--model" for word in argv):
        return None, argv
    from mlprank.training.parser import typed_network

    return typed_network(argv)
