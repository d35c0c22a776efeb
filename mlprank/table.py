"""The table that a person reads at the end of a pruning."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlprank.selection import describe_whole

if TYPE_CHECKING:
    from mlprank.metrics import ModelMetrics
    from mlprank.result import PruningResult


def pruning_table(
    result: PruningResult, before: ModelMetrics, after: ModelMetrics, *, title: str | None = None
) -> RenderableType:
    """Lay out what a pruning did.

    Args:
        result: The pruning.
        before: The dense network's numbers, with accuracies and latency where they were measured.
        after: The narrow network's.
        title: A heading; says how it was pruned by default.

    Returns:
        Something for a rich console: neurons per layer, then the totals, then what stays whole and the proof.
    """
    table = Table(title=title or _title(result), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, (wide, narrow) in result.widths.items():
        zeroed = int((~result.masks[name]).sum()) if name in result.masks and wide == narrow else 0
        note = f" ({zeroed} zeroed)" if zeroed else ""
        table.add_row(
            name, f"{wide} neurons", f"{narrow} neurons{note}", _percent(narrow, wide) if narrow != wide else "whole"
        )
    table.add_section()
    for row in _totals(before, after):
        table.add_row(*row)
    lines: list[RenderableType] = [table]
    requested = result.recipe.amount
    asked = (
        f"{requested:.1%}"
        if isinstance(requested, float | int)
        else ", ".join(f"{k} {v:.0%}" for k, v in requested.items())
    )
    lines.append(Text(f"Pruned {result.achieved:.1%} of the neurons of the prunable layers ({asked} requested)."))
    lines.append(
        Text(f"Masked and removed network agree: their outputs differ by at most {result.max_difference:.1e}.")
    )
    if result.whole:
        lines.append(Text(f"Whole: {describe_whole(result.whole)}."))
    return Group(*lines)


def render(result: PruningResult) -> str:
    """Return the table of a pruning as plain text."""
    console = Console(file=io.StringIO(), width=110, color_system=None, highlight=False)
    console.print(pruning_table(result, result.metrics.before, result.metrics.after))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip()


def _title(result: PruningResult) -> str:
    plain = result.recipe.plain()
    names = [plain["measure"]["name"], plain["method"]["name"], plain["compensation"]["name"], plain["graph"]]
    return f"{type(result.model).__name__} pruned by {', '.join(names)}"


def _totals(before: ModelMetrics, after: ModelMetrics) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            f"top-{k} accuracy",
            f"{before.top_k[k]:.2%}",
            f"{after.top_k[k]:.2%}",
            f"{100 * (after.top_k[k] - before.top_k[k]):+.2f} points",
        )
        for k in sorted(set(before.top_k) & set(after.top_k))
    ]
    for name, wide, narrow in (
        ("parameters", before.num_parameters, after.num_parameters),
        ("FLOPs per image", before.flops, after.flops),
    ):
        rows.append((name, f"{wide:,}", f"{narrow:,}", _percent(narrow, wide)))
    rows.append(
        (
            "file size",
            _bytes(before.size_bytes),
            _bytes(after.size_bytes),
            _percent(after.size_bytes, before.size_bytes),
        )
    )
    if before.latency_s is not None and after.latency_s is not None:
        ratio = before.latency_s / after.latency_s
        rows.append(
            (
                "latency",
                f"{1e3 * before.latency_s:.3f} ms",
                f"{1e3 * after.latency_s:.3f} ms",
                f"{ratio:.2f} times as fast",
            )
        )
    return rows


def _percent(after: float, before: float) -> str:
    return f"{(after - before) / before:+.1%}" if before else ""


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
