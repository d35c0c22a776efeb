"""The report's tables as plain rows of text, which the page and the Markdown both write out."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments.records import DENSE, CellRecord
from mlprank.experiments.statistics import Comparison, compare
from mlprank.report.accuracy_chart import interval_text, percent
from mlprank.report.data import Panel
from mlprank.report.palette import Style, display_name, styles_of
from mlprank.report.summary import points_text


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `mark` is "best", "better", "worse", "undecided" or empty."""

    text: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its heading; the first cell of a row names it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def accuracy_table(panel: Panel, styles: Mapping[str, Style], *, title: str) -> Table:
    """Top-1 accuracy, mean and 95 % interval, per measure and amount; the best of every amount is marked."""
    amounts = panel.amounts
    best = {
        amount: max(point.top1.mean for curve in panel.curves if (point := curve.at(amount)) is not None)
        for amount in amounts
    }
    rows = []
    for curve in sorted(panel.curves, key=lambda curve: styles[curve.label].index):
        cells = [Cell(styles[curve.label].name)]
        for amount in amounts:
            point = curve.at(amount)
            if point is None:
                cells.append(Cell("–"))
            else:
                cells.append(
                    Cell(
                        interval_text(point.top1).removesuffix(" %"),
                        mark="best" if point.top1.mean == best[amount] else "",
                    )
                )
        rows.append(tuple(cells))
    dense = Cell("Dense network"), Cell(percent(panel.dense_top1).removesuffix(" %")), *[Cell("")] * (len(amounts) - 1)
    return Table(title, ("Top-1, %", *(f"{100 * amount:g} %" for amount in amounts)), (*rows, dense))


def wins_tables(records: Sequence[CellRecord]) -> tuple[Table, ...]:
    """Paired comparisons of weighted PageRank: over everything, then a table a network where there are several."""
    groups: dict[str, list[CellRecord]] = {}
    for record in records:
        groups.setdefault(f"{record.parameters.model} on {record.parameters.dataset}", []).append(record)
    named = [("All networks" if len(groups) > 1 else next(iter(groups), ""), list(records))]
    named += sorted(groups.items()) if len(groups) > 1 else []
    tables = [_wins_table(title, compare(found)) for title, found in named]
    return tuple(table for table in tables if table.rows)


def configuration_table(records: Sequence[CellRecord]) -> Table:
    """What was varied and what was held, from the pruned cells' own parameters."""
    pruned = [record for record in records if record.parameters.measure != DENSE]
    names = {
        "model": "Models",
        "dataset": "Data sets",
        "measure": "Measures",
        "measure_args": "Arguments of measures",
        "method": "Methods",
        "method_args": "Arguments of methods",
        "amount": "Amounts",
        "compensation": "Compensation",
        "graph": "Graph",
        "protect_output": "Output protected",
        "calibration_samples": "Calibration images",
        "calibration_seed": "Calibration seeds",
    }
    rows = []
    for name, said in names.items():
        values = {_written(getattr(record.parameters, name)): getattr(record.parameters, name) for record in pruned}
        ordered = sorted(values, key=lambda text: (isinstance(values[text], str), _number(values[text]), text))
        shown = [text for text in ordered if text]
        if shown:
            rows.append((Cell(said), Cell(", ".join(shown))))
    checkpoints = sorted({(r.parameters.checkpoint, r.parameters.checkpoint_sha256) for r in records})
    rows += [(Cell("Checkpoint"), Cell(path, note=f"sha256 {digest[:16]}…")) for path, digest in checkpoints]
    return Table("Configuration", ("Parameter", "Values"), tuple(rows))


def environment_table(records: Sequence[CellRecord]) -> Table:
    """Versions, machine and times of the cells."""
    found: dict[str, set[str]] = {}
    for record in records:
        for name, value in (dataclasses.asdict(record.versions) | dict(record.machine)).items():
            found.setdefault(name, set()).add(value)
    rows = [(Cell(name), Cell(", ".join(sorted(values)))) for name, values in found.items()]
    stamps = sorted(record.timestamp for record in records)
    if stamps:
        rows.append((Cell("run"), Cell(f"{stamps[0]} to {stamps[-1]}")))
    for name in sorted({name for record in records for name in record.timings}):
        spent = sum(record.timings.get(name, 0.0) for record in records)
        rows.append((Cell(f"time, {name.removesuffix('_s')}"), Cell(f"{spent:.1f} s over all cells")))
    return Table("Environment", ("What", "Value"), tuple(rows))


def failed_table(records: Sequence[CellRecord], sources: Mapping[str, Path]) -> Table:
    """Cells that failed, each with its error and where it is recorded."""
    rows = []
    for record in records:
        if record.status == "failed":
            p = record.parameters
            what = f"{p.model} on {p.dataset}, {display_name(p.measure)}, {p.method}, {100 * p.amount:g} %"
            where = f"{sources.get(record.key, Path())} · {record.key} · calibration seed {p.calibration_seed}"
            rows.append((Cell(what, note=where), Cell(record.error or "")))
    return Table("Failed cells", ("Cell", "Error"), tuple(rows))


def _wins_table(title: str, comparisons: Sequence[Comparison]) -> Table:
    amounts = sorted({c.amount for c in comparisons if c.amount is not None})
    found = {(c.baseline, c.amount): c for c in comparisons}
    rows = []
    for baseline in styles_of(c.baseline for c in comparisons):
        cells = [Cell(display_name(baseline))]
        for amount in [None, *amounts]:
            c = found.get((baseline, amount))
            if c is None:
                cells.append(Cell("–"))
            else:
                cells.append(Cell(points_text(c.accuracy), f"{c.wins} – {c.ties} – {c.losses}", c.verdict))
        rows.append(tuple(cells))
    columns = ("Against", "All amounts", *(f"{100 * amount:g} %" for amount in amounts))
    return Table(title, columns, tuple(rows))


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {entry}" for name, entry in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
