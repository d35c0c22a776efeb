"""Two models side by side: size, FLOPs, and the time of eager, compiled and onnxruntime runs that take turns."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from mlprank.artifact.export import ONNX, export_model, onnx_function
from mlprank.costs.metrics import Latency, ModelMetrics, measure_latency, measure_model
from mlprank.utils.errors import check_choice, check_whole, require
from mlprank.utils.modules import check_fit

BACKENDS = ("eager", "compiled", "onnxruntime")
BATCH_SIZES = (1, 64, 1024)
_THREADS_A_CORE = 8
_NO_LIMIT = 64  # one compilation for each model and batch size, more than torch's default of 8


@dataclass(frozen=True)
class Bench:
    """What was measured; ratios refer to the first model, and `skipped` says why a backend did not run."""

    metrics: Mapping[str, ModelMetrics]
    timings: Mapping[tuple[str, int], Mapping[str, Latency]]  # by backend and batch size, and by model
    skipped: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1


def bench(
    models: Mapping[str, nn.Module],
    input_shape: Sequence[int],
    *,
    backends: Sequence[str] = BACKENDS,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Bench:
    """Measure models of the same input on the CPU.

    `input_shape` is that of one sample, `threads` those of one operation; every model, backend and batch size has
    `warmup` untimed and `repeats` timed runs. What cannot run (no C++ compiler, no onnxruntime) is skipped with its
    reason.
    """
    for name, given in {"models": models, "batch_sizes": batch_sizes}.items():
        if not given:
            raise ValueError(f"bench: {name} is empty; give at least one")
    for backend in backends:
        check_choice("bench: backend", backend, BACKENDS)
    for size in batch_sizes:
        check_whole("bench: ", batch_size=size)
    check_whole("bench: ", repeats=repeats)
    check_whole("bench: ", most=_THREADS_A_CORE * (os.cpu_count() or 1), threads=1 if threads is None else threads)
    on_step("counts")
    # A model in half or double precision takes inputs of its own precision.
    floats = (each.dtype for model in models.values() for each in model.parameters() if each.is_floating_point())
    example = _images(2, input_shape, dtype=next(floats, torch.float32))
    for name, model in models.items():
        check_fit(model, example, who=f"bench: {name}")
    metrics = {name: measure_model(model, example) for name, model in models.items()}
    timings: dict[tuple[str, int], Mapping[str, Latency]] = {}
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        stack.enter_context(torch._dynamo.config.patch(recompile_limit=_NO_LIMIT))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads or torch.get_num_threads())
        for backend in dict.fromkeys(backends):
            on_step(f"{backend}, getting ready")
            try:
                runners: dict[str, Callable[..., object]] = dict(models)
                if backend == "compiled":
                    runners = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
                elif backend == "onnxruntime":
                    require("export", *ONNX)
                    for index, (name, model) in enumerate(models.items()):
                        path = Path(folder) / f"{index}.onnx"
                        export_model(model, example, path, "onnx")
                        runners[name] = onnx_function(path)
                for size in batch_sizes:
                    on_step(f"{backend}, batch {size}")
                    images = _images(size, input_shape, dtype=example.dtype)
                    timings[backend, size] = measure_latency(runners, images, repeats=repeats, warmup=warmup)
            except ImportError as error:
                skipped[backend] = str(error)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                text = " ".join(str(error).split()).partition(" Set TORCHDYNAMO")[0][:200]
                remedy = "; install one, such as g++" if "Compiler" in text else ""
                skipped[backend] = f"torch.compile failed ({text}){remedy}"
        return Bench(metrics, timings, skipped, torch.get_num_threads())


def num_steps(backends: Sequence[str], batch_sizes: Sequence[int]) -> int:
    """How often `bench` calls `on_step` when nothing is skipped."""
    return 1 + len(dict.fromkeys(backends)) * (1 + len(batch_sizes))


def as_json(result: Bench) -> dict[str, Any]:
    """Return a bench as plain types: counts, and one record a backend, batch size and model; times in seconds."""
    counts = ("num_parameters", "num_nonzero", "flops", "flops_nonzero", "size_bytes")
    return {
        "threads": result.threads,
        "torch": torch.__version__,
        "models": {
            name: {count: getattr(metrics, count) for count in counts} for name, metrics in result.metrics.items()
        },
        "latency": [
            {"backend": backend, "batch_size": size, "model": name, **asdict(latency)}
            for (backend, size), latencies in result.timings.items()
            for name, latency in latencies.items()
        ],
        "skipped": dict(result.skipped),
    }


def _images(num: int, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def bench_table(result: Bench) -> Table:
    """Lay out a bench: one row a number, one column a model, and each model's ratio to the first."""
    names = list(result.metrics)
    table = Table(
        title=f"{' against '.join(names)}, {result.threads} CPU thread{'s' * (result.threads != 1)}",
        caption="latency: median ± half the interquartile range of runs that take turns",
    )
    ratios = ["ratio"] if len(names) == 2 else [f"{name} ratio" for name in names[1:]]

    def ratios_of(values: Sequence[float]) -> list[str]:
        return [f"{value / values[0]:.3f}" if values[0] else "-" for value in values[1:]]

    for title in ("", *names, *ratios):
        table.add_column(title, justify="right" if title else "left")
    metrics = list(result.metrics.values())
    counts = {"parameters": "num_parameters", "FLOPs of one image": "flops", "bytes": "size_bytes"}
    if any(each.num_nonzero != each.num_parameters for each in metrics):
        counts = {"parameters": "num_parameters", "non-zero parameters": "num_nonzero", **counts}
    for title, attribute in counts.items():
        values = [getattr(each, attribute) for each in metrics]
        table.add_row(title, *(f"{value:,}" for value in values), *ratios_of(values))
    shown = ""
    for (backend, size), timing in result.timings.items():
        if backend != shown:
            table.add_section()
            shown = backend
        latencies = [timing[name] for name in names]
        times = []
        for each in latencies:
            at = sum(each.median_s < least for least in (1.0, 1e-3))
            unit, factor = ("s", "ms", "µs")[at], 1e3**at
            times.append(f"{each.median_s * factor:.3g} ± {each.iqr_s / 2 * factor:.2g} {unit}")
        table.add_row(f"{backend}, batch {size}", *times, *ratios_of([each.median_s for each in latencies]))
    for skipped in result.skipped:
        table.add_section()
        table.add_row(skipped, *["not run"] * len(names), *[""] * (len(names) - 1))
    return table
