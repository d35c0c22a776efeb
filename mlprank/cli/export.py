"""`mlprank export`: a checkpoint as ONNX, safetensors or pt2."""

from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.utils.errors import OptionError

PARSER = CommandParser(
    "export",
    "Write the network of a checkpoint to a file that runs without mlprank. The file takes any batch size and is "
    "checked against the network before it takes its place.",
    "mlprank export runs/quickstart/001/pruned.ckpt --format onnx",
)
PARSER.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="pruned.ckpt, or another checkpoint")
PARSER.add("ckpt_path", text="the same by name")
PARSER.add("format", "NAME", "onnx (needs mlprank[export]), safetensors or pt2; default onnx", default="onnx")
PARSER.add("out", text="the file; default: beside the checkpoint")
PARSER.add("input_shape", type=listed(int))
PARSER.add(
    "with_preprocessing",
    text="take pixels as image files have them, 0 to 255, and normalise them",
    action="store_true",
)
PARSER.add("mean", "NUMBERS", "means of the channels; default: those of the data set", type=listed(float))
PARSER.add("std", "NUMBERS", "standard deviations likewise", type=listed(float))
PARSER.add("classes", "NAMES", "their names, for the metadata; default: those of the data set", type=listed(str))
PARSER.add("model")


def main(argv: list[str]) -> int:
    """Run the command."""
    model, rest = typed_model(argv)
    args = PARSER.parse_args(rest)
    import torch

    from mlprank import datamodules
    from mlprank.artifact.export import Preprocessed, check_format, export_model
    from mlprank.models.loading import load_network

    checkpoint = args.ckpt_path or args.checkpoint
    if checkpoint is None:
        raise OptionError("mlprank export needs a checkpoint: pruned.ckpt, or what `mlprank fit` wrote")
    check_format(args.format)
    network = load_network(checkpoint, input_shape=args.input_shape, model=model)
    exported, shape, generator = network.model, network.input_shape, torch.Generator().manual_seed(0)
    # One of our data modules knows mean and standard deviation of its channels and its classes.
    data, mean, std = getattr(datamodules, str(network.metadata.get("data")), None), args.mean, args.std
    if mean is None and std is None:
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    known = {"mean": mean, "std": std, "classes": args.classes or getattr(data, "classes", None)}
    meaning: dict[str, Any] = {name: list(value) for name, value in known.items() if value}
    if not args.with_preprocessing:
        dtype = next((p.dtype for p in exported.parameters() if p.is_floating_point()), torch.float32)
        example = torch.randn(2, *shape, generator=generator).to(dtype)
    elif len(shape) == 3:
        exported = Preprocessed(exported, mean=mean, std=std)
        example = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator)
    else:
        raise ValueError(
            f"--with_preprocessing needs images of shape (C, H, W), and the checkpoint says {shape}; give it, such as "
            "--input_shape=[1,28,28]"
        )
    metadata = {**network.metadata, **meaning, "range": [0, 255] if args.with_preprocessing else [0, 1]}
    output = Path(args.out or Path(checkpoint).with_suffix(f".{args.format}"))
    written = export_model(exported, example, output, args.format, metadata=metadata)
    checked = "its tensors are the network's"
    if args.format != "safetensors":
        checked = f"its logits are the network's within {written.max_difference:.1e} on other batch sizes"
    print(f"{written.path}: {written.num_bytes:,} bytes, {checked}")
    return 0


def typed_model(argv: list[str]) -> tuple[Any, list[str]]:
    """Build the network that `--model my_package.Net --model.width 64` describes, and return the other arguments."""
    if not any(word.partition("=")[0].partition(".")[0] == "--model" for word in argv):
        return None, argv
    from mlprank.training.parser import typed_network

    return typed_network(argv)
