"""`mlprank export` and `mlprank bench`: what is made of the networks of checkpoints."""

import itertools
import json
from pathlib import Path
from typing import Any

from mlprank.cli.vocabulary import CommandParser, listed
from mlprank.utils.errors import OptionError

EXPORT = CommandParser(
    "export",
    "Write the network of a checkpoint to a file that runs without mlprank. The file takes any batch size and is "
    "checked against the network before it takes its place.",
    "mlprank export runs/quickstart/001/pruned.ckpt --format onnx",
)
EXPORT.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="pruned.ckpt, or another checkpoint")
EXPORT.add("ckpt_path", text="the same by name")
EXPORT.add("format", "NAME", "onnx (needs mlprank[export]), safetensors or pt2; default onnx", default="onnx")
EXPORT.add("out", text="the file; default: beside the checkpoint")
EXPORT.add("input_shape", type=listed(int))
_PIXELS = "take pixels as image files have them, 0 to 255, and normalise them"
EXPORT.add("with_preprocessing", text=_PIXELS, action="store_true")
EXPORT.add("mean", "NUMBERS", "means of the channels; default: those of the data set", type=listed(float))
EXPORT.add("std", "NUMBERS", "standard deviations likewise", type=listed(float))
EXPORT.add("classes", "NAMES", "their names, for the metadata; default: those of the data set", type=listed(str))
EXPORT.add("model")

BENCH = CommandParser(
    "bench",
    "Compare two networks on the CPU: parameters, FLOPs, bytes, and the latency of eager, compiled and onnxruntime "
    "runs that take turns.",
    "mlprank bench dense.ckpt pruned.ckpt --batch_sizes [1,64] --out bench.json",
)
BENCH.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="two: dense, then pruned")
BENCH.add("ckpt_path", text="the same by name", nargs="+", default=[])
BENCH.add("backends", "NAMES", "any of [eager,compiled,onnxruntime]; default all", type=listed(str))
BENCH.add("batch_sizes", "NUMBERS", "default [1,64,1024]", type=listed(int))
BENCH.add("repeats", "N", "timed runs of each network, backend and batch size; default 20", type=int, default=20)
BENCH.add("threads", "N", "CPU threads; default: torch's choice", type=int)
BENCH.add("input_shape", type=listed(int))
BENCH.add("out", text="a JSON file for the numbers")
BENCH.add("model")


def export(argv: list[str]) -> int:
    """Write a checkpoint as ONNX, safetensors or pt2."""
    model, args = _parsed(EXPORT, argv)
    import torch

    from mlprank import datamodules
    from mlprank.artifact.export import Preprocessed, check_format, export_model
    from mlprank.models import load_network

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


def bench(argv: list[str]) -> int:
    """Compare a dense and a pruned checkpoint side by side."""
    model, arguments = _parsed(BENCH, argv)
    checkpoints = [*arguments.checkpoints, *arguments.ckpt_path]
    if len(checkpoints) != 2:
        raise OptionError(f"mlprank bench compares two checkpoints, dense and pruned, and {len(checkpoints)} are given")
    from rich.console import Console

    from mlprank.costs.bench import BACKENDS, BATCH_SIZES, as_json, bench, bench_table, num_steps
    from mlprank.grids.progress import shown_steps
    from mlprank.models import load_network
    from mlprank.utils.files import write_whole

    pruned = load_network(checkpoints[1], input_shape=arguments.input_shape, model=model)
    # The pruned file knows the shape of its inputs; a dense checkpoint may not.
    dense = load_network(checkpoints[0], input_shape=arguments.input_shape or pruned.input_shape, model=model)
    backends, batch_sizes = arguments.backends or BACKENDS, arguments.batch_sizes or BATCH_SIZES
    total, done = num_steps(backends, batch_sizes), itertools.count()
    with shown_steps() as show:
        result = bench(
            {"dense": dense.model, "pruned": pruned.model},
            dense.input_shape,
            backends=backends,
            batch_sizes=batch_sizes,
            repeats=arguments.repeats,
            threads=arguments.threads,
            on_step=lambda step: show(next(done), total, f"measuring {step}"),
        )
    console = Console()
    console.print(bench_table(result))
    for backend, reason in result.skipped.items():
        console.print(f"{backend} was not run: {reason}", markup=False, highlight=False, soft_wrap=True)
    if arguments.out is not None:
        write_whole(arguments.out, json.dumps(as_json(result), indent=2) + "\n")
        print(f"numbers: {arguments.out}")
    return 0


def _parsed(parser: CommandParser, argv: list[str]) -> tuple[Any, Any]:
    """Build the network that `--model my_package.Net --model.width 64` describes, and parse the other arguments."""
    model = None
    if any(word.partition("=")[0].partition(".")[0] == "--model" for word in argv):
        from mlprank.training.parser import typed_network

        model, argv = typed_network(argv)
    return model, parser.parse_args(argv)
