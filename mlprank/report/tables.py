"""The tables of a report, computed from the records, and how they become Markdown, LaTeX and CSV."""

import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlprank.experiments.records import DENSE, CellRecord
from mlprank.experiments.statistics import MIN_TRAININGS, Comparison, Estimate, grouped
from mlprank.report.content import Content, Panel, conditions_text
from mlprank.utils.charts import Look, display_name

_SHOWN = 20  # trials of a search
_SIGNS = {"better": "▲ ", "worse": "▼ "}
_TEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
    | {"▲": r"$\uparrow$", "▼": r"$\downarrow$", "…": r"\dots{}"}
)
_PARAMETERS = {
    "model": "Models", "dataset": "Data sets", "measure": "Measures", "measure_args": "Arguments of measures",
    "method": "Methods", "method_args": "Arguments of methods", "amount": "Amounts", "graph": "Graph",
    "protect_output": "Output protected", "calibration_samples": "Calibration images",
    "calibration_seed": "Calibration seeds",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `mark` is "best", "better", "worse", "undecided" or empty."""

    text: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its heading; the first cell of a row names it. `kind` is what file names begin with."""

    kind: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def percent(value: float, *, digits: int = 1) -> str:
    """A fraction as a percentage: 0.877 is `87.7 %`."""
    return f"{100 * value:.{digits}f} %"


def points(value: float, *, digits: int | None = None) -> str:
    """A difference of fractions in points with its sign: 0.023 is `+2.3`; what rounds to 0 has no sign."""
    shown = (1 if abs(value) >= 0.01 else 2) if digits is None else digits
    text = f"{100 * value:+.{shown}f}".replace("-", "−")
    return text if any(sign in text for sign in "123456789") else text[1:]


def points_text(estimate: Estimate) -> str:
    """A difference in points, with its interval."""
    return with_interval(estimate, lambda value: points(value, digits=1 if abs(estimate.mean) >= 0.01 else 2))


def with_interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    """An estimate with its interval, or all of its values where trainings are too few for one."""
    if 1 < estimate.num < MIN_TRAININGS:
        return ", ".join(form(value) for value in estimate.values)
    if estimate.low is None or estimate.high is None or form(estimate.low) == form(estimate.high):
        return form(estimate.mean)
    return f"{form(estimate.mean)} [{form(estimate.low)}, {form(estimate.high)}]"


def count(number: int, name: str) -> str:
    """A number with its noun: `1 cell`, `2 cells`."""
    return f"{number} {name}" + ("" if number == 1 else "s")


def accuracy_table(panel: Panel, looks: Mapping[str, Look]) -> Table:
    """Top-1 accuracy for every measure and amount; of several measures with intervals the highest mean is marked."""
    means = {a: [point.top1.mean for c in panel.curves if (point := c.at(a)) is not None] for a in panel.amounts}
    rows = []
    for curve in panel.curves:
        cells = [Cell(looks[curve.label].name)]
        for amount, others in means.items():
            found = curve.at(amount)
            if found is None:
                cells.append(Cell("–"))
                continue
            compared = amount > 0.0 and min(others) < max(others) and found.top1.num >= MIN_TRAININGS
            mark = "best" if compared and found.top1.mean == max(others) else ""
            cells.append(Cell(with_interval(found.top1, lambda value: f"{100 * value:.1f}"), mark=mark))
        rows.append(tuple(cells))
    dense = Cell("Dense network"), Cell(f"{100 * panel.dense.top1.mean:.1f}"), *[Cell("")] * (len(means) - 1)
    columns = ("Top-1, %", *(f"{100 * amount:g} %" for amount in means))
    return Table("accuracy", panel.title, columns, (*rows, dense))


def accuracy_tables(content: Content) -> tuple[Table, ...]:
    """The accuracy table of every setting."""
    return tuple(accuracy_table(panel, content.looks) for panel in content.panels)


def difference_tables(content: Content) -> tuple[Table, ...]:
    """Paired comparisons: a table for every claim over several settings, then one for every setting."""
    tables = []
    for claim in content.claims:
        if len(claim[0].settings) > 1:
            named = [(display_name(c.baseline) or "Average", _lead(c), points_text(c.retention)) for c in claim]
            title = f"All settings with {conditions_text(claim[0].settings[0])}"
            tables.append(_table("claims", title, ("Against", "Top-1, points", "Retention, points"), named))
    titles = {panel.setting: panel.title for panel in content.panels}
    for setting, found in grouped(content.comparisons, lambda comparison: comparison.settings[0]).items():
        amounts = sorted({c.amount for c in found if c.amount is not None})
        cells = {(c.baseline, c.amount): _lead(c) for c in found}
        rows = [
            (display_name(baseline), *(cells.get((baseline, amount), "–") for amount in (None, *amounts)))
            for baseline in dict.fromkeys(c.baseline for c in found)
        ]
        columns = ("Against", "All amounts", *(f"{100 * amount:g} %" for amount in amounts))
        tables.append(_table("differences", titles[setting], columns, rows))
    return tuple(tables)


def _lead(comparison: Comparison) -> Cell:
    counts = f"{comparison.wins} – {comparison.ties} – {comparison.losses}"
    return Cell(points_text(comparison.accuracy), counts, comparison.verdict)


def _table(kind: str, title: str, columns: Iterable[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table whose cells are mostly plain text."""
    cells = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(kind, title, tuple(columns), tuple(cells))


def search_tables(content: Content) -> tuple[Table, ...]:
    """The best trials of every grid search."""
    return tuple(
        _table(
            "trials",
            f"{search.directory.name}: the best of {count(len(search.trials), 'trial')}",
            ("Trial", "Validation accuracy, %", "Note"),
            [(text, "–" if top1 is None else f"{100 * top1:.2f}", note) for text, top1, note in search.trials[:_SHOWN]],
        )
        for search in content.searches
    )


def configuration_table(records: Sequence[CellRecord]) -> Table:
    """What was varied and what was held, from the pruned cells' own parameters."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} = {entry}" for name, entry in sorted(value.items()))
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def by_number(text: str) -> tuple[float, str]:
        return (float(text) if re.fullmatch(r"[\d.e+-]+", text) else 0.0), text

    pruned = [record.parameters for record in records if record.parameters.measure != DENSE]
    rows: list[tuple[str | Cell, ...]] = []
    for field in dataclasses.fields(pruned[0]) if pruned else ():
        values = {text for p in pruned if (text := written(getattr(p, field.name)))}
        if values and field.name not in ("checkpoint", "checkpoint_sha256"):
            said = _PARAMETERS.get(field.name) or field.name.replace("_", " ").capitalize()
            rows.append((said, ", ".join(sorted(values, key=by_number))))
    checkpoints = sorted({(r.parameters.checkpoint, r.parameters.checkpoint_sha256) for r in records})
    rows += [("Checkpoint", Cell(path, note=f"sha256 {digest[:16]}…")) for path, digest in checkpoints]
    return _table("configuration", "Configuration", ("Parameter", "Values"), rows)


def environment_table(records: Sequence[CellRecord]) -> Table:
    """Versions, machine and times of the cells."""
    found, spent = defaultdict[str, set[str]](set), defaultdict[str, float](float)
    for record in records:
        for name, value in {**record.versions, **record.machine}.items():
            found[name].add(value)
        for name, seconds in record.timings.items():
            spent[name] += seconds
    rows = [(name, ", ".join(sorted(values))) for name, values in found.items()]
    stamps = sorted(record.timestamp for record in records)
    rows += [("run", f"{stamps[0]} to {stamps[-1]}")] if stamps else []
    rows += [(f"time, {name.removesuffix('_s')}", f"{spent[name]:.1f} s over all cells") for name in sorted(spent)]
    return _table("environment", "Environment", ("What", "Value"), rows)


def failed_table(content: Content) -> Table:
    """Cells that failed and directories that could not be read, each with the error."""
    rows = [(Cell(str(directory), note="results directory"), text) for directory, text in content.problems]
    for record in content.records:
        if record.status == "failed":
            p = record.parameters
            what = f"{p.model} on {p.dataset}, {display_name(p.measure)}, {p.method}, {100 * p.amount:g} %"
            where = f"{content.owners[record.key]} · {record.key} · calibration seed {p.calibration_seed}"
            rows.append((Cell(what, note=where), record.error or ""))
    return _table("failed", "Failed cells", ("Cell", "Error"), rows)


def all_tables(content: Content) -> tuple[Table, ...]:
    """Every table of the report that has a row, in reading order."""
    tables = [*accuracy_tables(content), *difference_tables(content), *search_tables(content), failed_table(content)]
    tables += [configuration_table(content.records), environment_table(content.records)]
    return tuple(table for table in tables if table.rows)


def markdown_table(table: Table) -> str:
    """A table in Markdown, numbers to the right."""

    def written(cell: Cell) -> str:
        words = _SIGNS.get(cell.mark, "") + cell.text.replace("|", "\\|").replace("\n", "<br>")
        words = f"**{words}**" if cell.mark == "best" else words
        return f"{words} ({cell.note})" if cell.note else words

    rule = ["---"] + ["---:" if len(table.columns) > 2 else "---"] * (len(table.columns) - 1)
    rows = [table.columns, rule, *([written(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def latex_table(table: Table) -> str:
    """A table in LaTeX, for the package booktabs; notes are left out."""

    def row(cells: Sequence[Cell]) -> str:
        texts = [(_SIGNS.get(cell.mark, "") + cell.text).replace("\n", " ").translate(_TEX) for cell in cells]
        marked = [rf"\textbf{{{text}}}" if c.mark == "best" else text for text, c in zip(texts, cells, strict=True)]
        return f"    {' & '.join(marked)} \\\\"

    numbers = ("r" if len(table.columns) > 2 else "l") * (len(table.columns) - 1)
    head = [r"\begin{table}", rf"  \caption{{{table.title.translate(_TEX)}}}", rf"  \begin{{tabular}}{{l{numbers}}}"]
    head += [r"    \toprule", row([Cell(column) for column in table.columns]), r"    \midrule"]
    return "\n".join([*head, *map(row, table.rows), r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def csv_table(table: Table) -> str:
    """A table as CSV; a cell's note follows its text in a column of its own where any cell has one."""
    noted = [any(row[place].note for row in table.rows) for place in range(len(table.columns))]
    header = [Cell(name, f"{name}, note") for name in table.columns]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (header, *table.rows):
        pairs = zip(row, noted, strict=True)
        writer.writerow([text for cell, has in pairs for text in ([cell.text, cell.note] if has else [cell.text])])
    return buffer.getvalue()


def slug(text: str) -> str:
    """A title as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
