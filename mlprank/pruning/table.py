"""The table that a person reads at the end of a pruning."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mlprank.graph.records import describe_whole

if TYPE_CHECKING:
    from mlprank.costs.metrics import ModelMetrics
    from mlprank.pruning.evaluation import Evaluation
    from mlprank.pruning.result import PruningResult


def pruning_table(
    result: PruningResult, before: ModelMetrics, after: ModelMetrics, *, split: str | None = None
) -> RenderableType:
    """Lay out what a pruning did.

    Args:
        result: The pruning.
        before: The dense network's numbers, with accuracies and latency where they were measured.
        after: The narrow network's.
        split: The data that accuracies were measured on.

    Returns:
        Something for a rich console: neurons per layer, then the totals, then what stays whole and the proof.
    """
    table = Table(title=_title(result), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, (wide, narrow) in result.widths.items():
        zeroed = result.zeroed.get(name, 0)
        note = f" ({zeroed} zeroed)" if zeroed else ""
        unit = result.units.get(name, "neurons")
        table.add_row(
            name, f"{wide} {unit}", f"{narrow} {unit}{note}", _percent(narrow, wide) if narrow != wide else "whole"
        )
    table.add_section()
    for row in _totals(before, after, split):
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
    if result.losses is not None:
        kind, (first, last) = result.recipe.plain()["refine"], result.losses
        lines.append(
            Text(
                f"Refined without labels in {kind['steps']:,} steps: loss ({kind['loss']}) on the calibration data {first:.3g} → {last:.3g};"
                " the agreement above is that of the networks before."
            )
        )
    if result.held_back:
        layers = ", ".join(f'"{name}" {count}' for name, count in result.held_back.items())
        lines.append(Text(f"Kept though chosen, as nothing can take the constants they would leave behind: {layers}."))
    lines += [Text(note) for note in result.notes]
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


def print_pruning(
    evaluations: Sequence[Evaluation], files: Sequence[Mapping[str, Path]], *, dense: Path | None, config: Path
) -> None:
    """Print the table of every pruning, the files that hold it, and a command to try next.

    Args:
        evaluations: The prunings.
        files: The files of each, by what they hold; empty if none were written.
        dense: The dense checkpoint.
        config: The run's config, for the next command; the hint is for the library where there is none.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for evaluation in evaluations:
        console.print(pruning_table(evaluation.result, evaluation.before, evaluation.after, split=evaluation.split))
    if not files:
        return
    rows = [("dense network", dense)] if dense is not None else []
    rows += [(what, path) for written in files for what, path in written.items()]
    rows += [("config", config)] if config.is_file() else []
    console.print("\nWritten:")
    for what, path in rows:
        console.print(f"  {what:<15} {_from_here(path)}", soft_wrap=True)
    if config.is_file() and dense is not None:
        amount = max((evaluation.result.achieved for evaluation in evaluations), default=0.0)
        further = round(1 - (1 - amount) / 2, 2)  # half of what is left
        hint = f"mlprank prune --config {_from_here(config)} --ckpt_path {_from_here(dense)} --amount {further:g}"
    else:
        pruned = _from_here(files[-1]["pruned network"])
        hint = f"python -c \"import mlprank; print(mlprank.load_pruned('{pruned}', YourNetwork()))\""
    console.print(f"Next: {hint}", soft_wrap=True)


def _from_here(path: Path) -> Path:
    """A path below the current directory as a relative one; Lightning makes its paths absolute."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _title(result: PruningResult) -> str:
    plain = result.recipe.plain()
    names = [plain["measure"]["name"], plain["method"]["name"], plain["compensation"]["name"], plain["graph"]]
    return f"{type(result.model).__name__} pruned by {', '.join(names)}"


def _totals(before: ModelMetrics, after: ModelMetrics, split: str | None) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            f"{split} top-{k}" if split else f"top-{k}",
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
                "latency of 64 images",
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
