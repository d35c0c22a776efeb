"""The table that `mlprank bench` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mlprank.costs.bench import Bench
from mlprank.costs.latency import Latency


def bench_table(result: Bench) -> Table:
    """Lay out a bench: one row a number, one column a model, and each model's ratio to the first."""
    names = list(result.metrics)
    table = Table(
        title=f"{' against '.join(names)}, {result.threads} CPU thread{'s' * (result.threads != 1)}",
        caption="latency: median ± half the interquartile range of runs that take turns",
    )
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column("ratio" if len(names) == 2 else f"{name} ratio", justify="right")
    counts = result.metrics.values()
    table.add_row("parameters", *_counts([m.num_parameters for m in counts]))
    if any(m.num_nonzero != m.num_parameters for m in counts):
        table.add_row("non-zero parameters", *_counts([m.num_nonzero for m in counts]))
    table.add_row("FLOPs of one image", *_counts([m.flops for m in counts]))
    table.add_row("bytes", *_counts([m.size_bytes for m in counts]))
    backend = ""
    for timing in result.timings:
        if timing.backend != backend:
            table.add_section()
            backend = timing.backend
        latencies = [timing.latency[name] for name in names]
        medians = [latency.median_s for latency in latencies]
        cells = [_time(latency) for latency in latencies]
        table.add_row(f"{backend}, batch {timing.batch_size}", *cells, *_ratios(medians))
    for skipped in result.skipped:
        table.add_section()
        table.add_row(skipped, *["not run"] * len(names), *[""] * (len(names) - 1))
    return table


def _counts(values: Sequence[int]) -> list[str]:
    return [f"{value:,}" for value in values] + _ratios(values)


def _ratios(values: Sequence[float]) -> list[str]:
    first = values[0]
    return [f"{value / first:.3f}" if first else "-" for value in values[1:]]


def _time(latency: Latency) -> str:
    unit, factor = next(
        ((unit, factor) for unit, factor in (("s", 1.0), ("ms", 1e3)) if latency.median_s * factor >= 1.0), ("µs", 1e6)
    )
    return f"{latency.median_s * factor:.3g} ± {latency.iqr_s / 2 * factor:.2g} {unit}"
