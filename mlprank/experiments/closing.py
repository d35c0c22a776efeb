"""What an experiment says when it ends: tables of means and intervals, the comparison, what failed, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlprank.experiments.progress import title_of
from mlprank.experiments.records import CellRecord
from mlprank.experiments.statistics import finished_cells, series_label
from mlprank.report.data import panels_of, subtitles
from mlprank.report.palette import styles_of
from mlprank.report.summary import summary_of
from mlprank.report.tables import Table, accuracy_table

_PLAIN_WIDTH = 120
_SHOWN_FAILURES = 5


def tables_of(records: Sequence[CellRecord]) -> tuple[Table, ...]:
    """Top-1 accuracy of every setting, mean and 95 % interval by measure and amount."""
    panels = panels_of(records)
    about = subtitles(panels)
    styles = styles_of({series_label(record.parameters) for record in finished_cells(records)})
    return tuple(
        accuracy_table(
            panel,
            styles,
            title=", ".join(filter(None, [panel.setting.network, panel.setting.method, about[panel.setting]])),
        )
        for panel in panels
    )


def sentences_of(records: Sequence[CellRecord]) -> tuple[str, ...]:
    """What was found, weighted PageRank's comparison first."""
    return summary_of(records, panels_of(records)).finding


def print_closing(records: Sequence[CellRecord], directory: Path) -> None:
    """Print tables and findings to the standard output.

    Args:
        records: The experiment's cells.
        directory: The results directory.
    """
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, no_color=True)
    for table in tables_of(records):
        console.print(f"\n{table.title}", highlight=False, markup=False)
        shown = RichTable()
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(f"[bold]{cell.text}[/]" if cell.mark == "best" else cell.text for cell in row))
        console.print(shown)
    console.print()
    for sentence in sentences_of(records):
        console.print(sentence, highlight=False, markup=False)
    failed = [record for record in records if record.status == "failed"]
    for record in failed[:_SHOWN_FAILURES]:
        console.print(f"failed: {title_of(record.parameters)}: {record.error}", highlight=False, markup=False)
    if len(failed) > _SHOWN_FAILURES:
        console.print(f"and {len(failed) - _SHOWN_FAILURES} more failed; {directory / 'records.jsonl'} holds them all")
