"""What was found, in sentences and tables computed from the records; tables become Markdown, LaTeX, CSV, HTML and terminal text."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments.records import DENSE, CellRecord
from mlprank.experiments.statistics import MIN_TRAININGS, Comparison, Estimate, Setting, finished_cells
from mlprank.report.content import (
    WITHIN,
    Content,
    Panel,
    by_network,
    conditions_text,
    content_of_records,
    smallest_good,
    subtitles,
)
from mlprank.utils.charts import Look, display_name

_PLAIN_WIDTH = 120
_SHOWN_FAILURES = 5
_SHOWN_TRIALS = 20
_SIGNS = {"better": "▲ ", "worse": "▼ "}
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$"}
_TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "–": "--",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "…": r"\dots{}",
}


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


@dataclass(frozen=True)
class Tile:
    """One number with its name and a note."""

    value: str
    name: str
    note: str


def percent(value: float, *, digits: int = 1) -> str:
    """A fraction as a percentage: 0.877 is `87.7 %`."""
    return f"{100 * value:.{digits}f} %"


def points(value: float, *, digits: int | None = None) -> str:
    """A difference of fractions in points with its sign: 0.023 is `+2.3`."""
    shown = (1 if abs(value) >= 0.01 else 2) if digits is None else digits
    return f"{100 * value:+.{shown}f}".replace("-", "−")


def accuracy_text(estimate: Estimate) -> str:
    """An accuracy in percent, with its interval, or with all values where trainings are too few for one."""
    return _with_interval(estimate, lambda value: f"{100 * value:.1f}")


def points_text(estimate: Estimate) -> str:
    """A difference in points, with its interval, or with all values where trainings are too few for one."""
    digits = 1 if abs(estimate.mean) >= 0.01 else 2
    return _with_interval(estimate, lambda value: points(value, digits=digits))


def _with_interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    if 1 < estimate.num < MIN_TRAININGS:
        return ", ".join(form(value) for value in estimate.values)
    if estimate.low is None or estimate.high is None or form(estimate.low) == form(estimate.high):
        return form(estimate.mean)
    return f"{form(estimate.mean)} [{form(estimate.low)}, {form(estimate.high)}]"


def title_of(content: Content) -> str:
    """What the report is about."""
    networks = list(by_network(content.panels))
    if not networks:
        others = [*(s.map.title for s in content.searches), *(s.directory.name for s in content.shrunk)]
        return "Pruning experiment" if content.records or not others else others[0]
    if len(networks) == 1:
        return f"Pruning {networks[0]}"
    datasets = sorted({panel.setting.dataset for panel in content.panels})
    models = sorted({panel.setting.model for panel in content.panels})
    if len(datasets) == 1 and len(models) < 5:
        return f"Pruning {_joined(models)} on {datasets[0]}"
    return f"Pruning {len(networks)} networks on {len(datasets)} data sets"


def sentences_of(content: Content) -> tuple[str, ...]:
    """What the records show: claims over settings first, then single networks, then grid searches and failures."""
    failed = sum(record.status == "failed" for record in content.records)
    about = subtitles(claim[0].settings[0] for claim in content.claims)
    finding = [text for claim in content.claims for text in _claim(claim, about[claim[0].settings[0]])]
    finding += [*_best(content.panels), *_smallest(content.panels)]
    for search in content.searches:
        label, score, _ = search.trials[0]
        reached = f"the best run reaches {percent(score)} with {label}" if score is not None else "every run failed"
        finding.append(f"{search.map.title}: {reached}.")
    for shrunk in content.shrunk:
        unit, digits = (100, 1) if shrunk.percent else (1, 3)
        finding += [
            f"{shrunk.directory.name}: the chosen network has {point.cost / shrunk.dense[0]:.0%} of the dense network's bytes and "
            f"scores {unit * point.top1:.{digits}f}, against {unit * shrunk.dense[1]:.{digits}f} dense.".replace(
                "%", " %"
            )
            for point in shrunk.points
            if point.chosen
        ]
    if not finished_cells(content.records) and not content.searches and not content.shrunk:
        finding.append("No cell finished, so there is nothing to compare.")
    if failed:
        finding.append(f"{_count(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} not in any number here.")
    return tuple(finding)


def tiles_of(content: Content) -> tuple[Tile, ...]:
    """The numbers on top of the page."""
    done = finished_cells(content.records)
    if not content.records:
        return ()
    failed = len(content.records) - sum(record.status == "ok" for record in content.records)
    trained = {record.parameters.checkpoint_sha256 for record in done}
    note = f"{_count(len(trained), 'trained network')}" + (f", {failed} failed" if failed else "")
    tiles = [Tile(f"{len(done)}", "cells finished", note)]
    if content.claims:
        claim = content.claims[0][0]
        over = "the average of the others" if not claim.baseline else display_name(claim.baseline)
        amount = claim.retention
        shown = "" if amount.low is None or amount.high is None else f", {points(amount.low)} to {points(amount.high)}"
        about = subtitles(other[0].settings[0] for other in content.claims)[claim.settings[0]]
        note = f"points of retention{shown}" + (f"; {about}" if about else "")
        tiles.append(Tile(points(amount.mean), f"against {over}", note))
        pairs = claim.wins + claim.ties + claim.losses
        tiles.append(Tile(percent(claim.wins / pairs, digits=0), "paired wins", f"{claim.wins} of {pairs} comparisons"))
    found = smallest_good(content.panels)
    if found is not None:
        panel, label, point = found
        times = panel.dense_parameters / point.num_parameters
        lost = points(point.top1.mean - panel.dense_top1)
        tiles.append(Tile(f"{times:.1f} ×", "fewer parameters", f"{display_name(label)}, {lost} points top-1"))
    return tuple(tiles)


def _claim(claim: Sequence[Comparison], about: str) -> list[str]:
    """One group of settings: the lead on average and over what it is averaged, then who is beaten and who is not."""
    first, each = claim[0], [c for c in claim if c.baseline]
    amount = first.retention
    side = "more" if amount.mean >= 0 else "less"
    others = f"the average of {_joined([display_name(c.baseline) for c in each])}" if len(each) > 1 else ""
    text = (
        f"{display_name(first.reference)} keeps {abs(100 * amount.mean):.1f} points {side} of the dense accuracy than "
        f"{others or display_name(each[0].baseline)}"
    )
    if amount.low is not None and amount.high is not None:
        text += f" (95 % interval {points(amount.low, digits=1)} to {points(amount.high, digits=1)})"
    if first.verdict == "undecided":
        text += ", which is no clear difference"
    elif not first.verdict:
        text += f", too few trainings for a verdict ({MIN_TRAININGS} of every network are needed)"
    parts = []
    for verdict, words in (("better", "ahead of"), ("worse", "behind"), ("undecided", "not clearly different from")):
        found = [f"{display_name(c.baseline)} ({points(c.accuracy.mean)})" for c in each if c.verdict == verdict]
        if found and len(each) > 1:
            parts.append(f"{words} {_joined(found)}")
    pairs = first.wins + first.ties + first.losses
    beaten = f"in points of top-1 accuracy it is {', '.join(parts)}; it" if parts else "it"
    beaten += f" wins {first.wins} of {_count(pairs, 'paired comparison')} and loses {first.losses}."
    start = f"With {about}: " if about else ""
    return [
        f"{start}{text}; {averaged_over(first)}.",
        f"{start}{beaten}" if about else f"{beaten[:1].upper()}{beaten[1:]}",
    ]


def averaged_over(claim: Comparison) -> str:
    """Over what a claim averages: `averaged with equal weight over 2 networks, 2 methods and all amounts; 10 trainings`."""
    networks, methods = {s.network for s in claim.settings}, {s.method for s in claim.settings}
    if len(claim.settings) == 1:
        setting = claim.settings[0]
        over = f"for {setting.network}, {setting.method} method, averaged over all amounts"
    else:
        parts = [_count(len(networks), "network"), _count(len(methods), "method"), "all amounts"]
        over = f"averaged with equal weight over {_joined(parts)}"
    return f"{over} ({_count(claim.accuracy.num, 'training')})"


def _best(panels: Sequence[Panel]) -> list[str]:
    """The highest mean at the amount nearest a half, in the panel whose dense network is best; nothing where nothing was compared."""
    found = [
        (panel, curve.label, point)
        for panel in panels
        for curve in panel.curves
        for point in curve.points
        if point.amount > 0.0 and sum(other.at(point.amount) is not None for other in panel.curves) > 1
    ]
    if not found:
        return []
    panel, label, point = max(found, key=lambda e: (-abs(e[2].amount - 0.5), e[0].dense_top1, e[2].top1.mean))
    s = panel.setting
    return [
        f"With {100 * point.amount:g} % of the neurons pruned, {display_name(label)} ({s.method}, {_spoken(s.compensation)} "
        f"compensation) has the highest mean accuracy on {s.network}: {percent(point.top1.mean)}, against "
        f"{percent(panel.dense_top1)} dense."
    ]


def _smallest(panels: Sequence[Panel]) -> list[str]:
    found = smallest_good(panels)
    if found is None:
        return []
    panel, label, point = found
    share = point.num_parameters / panel.dense_parameters
    return [
        f"The smallest network within {100 * WITHIN:g} point of its dense accuracy has {percent(share, digits=0)} of "
        f"the parameters: {panel.setting.network} by {display_name(label)} ({panel.setting.method}, "
        f"{_spoken(panel.setting.compensation)} compensation) at {100 * point.amount:g} %; --write-network {point.keys[0]} writes it."
    ]


def accuracy_table(panel: Panel, looks: Mapping[str, Look], *, title: str) -> Table:
    """Top-1 accuracy for every measure and amount; the highest mean of every amount is marked where there are several."""
    amounts = panel.amounts
    rows = []
    for curve in panel.curves:
        cells = [Cell(looks[curve.label].name)]
        for amount in amounts:
            point = curve.at(amount)
            others = [p.top1.mean for other in panel.curves if (p := other.at(amount)) is not None]
            best = amount > 0.0 and len(others) > 1 and point is not None and point.top1.mean == max(others)
            cells.append(Cell("–") if point is None else Cell(accuracy_text(point.top1), mark="best" if best else ""))
        rows.append(tuple(cells))
    dense = Cell("Dense network"), Cell(percent(panel.dense_top1).removesuffix(" %")), *[Cell("")] * (len(amounts) - 1)
    columns = ("Top-1, %", *(f"{100 * amount:g} %" for amount in amounts))
    return Table("accuracy", title, columns, (*rows, dense))


def setting_title(setting: Setting, about: Mapping[Setting, str]) -> str:
    """Network, method and what else tells a setting from the others: `Net on Data, local method, constant compensation`."""
    return ", ".join(filter(None, [setting.network, f"{setting.method} method", about.get(setting, "")]))


def accuracy_tables(content: Content) -> tuple[Table, ...]:
    """The accuracy table of every setting."""
    about = subtitles(panel.setting for panel in content.panels)
    return tuple(
        accuracy_table(panel, content.looks, title=setting_title(panel.setting, about)) for panel in content.panels
    )


def difference_tables(content: Content) -> tuple[Table, ...]:
    """Paired comparisons: one table for the claims, then one for every setting."""
    tables = []
    for claim in content.claims:
        if len(claim[0].settings) > 1:
            rows: list[tuple[Cell, ...]] = [
                (Cell(display_name(c.baseline) or "Average"), _lead(c), Cell(points_text(c.retention))) for c in claim
            ]
            title = f"All settings with {conditions_text(claim[0].settings[0])}"
            tables.append(Table("claims", title, ("Against", "Top-1, points", "Retention, points"), tuple(rows)))
    about = subtitles(panel.setting for panel in content.panels)
    for setting in dict.fromkeys(c.settings[0] for c in content.comparisons):
        found = {(c.baseline, c.amount): c for c in content.comparisons if c.settings[0] == setting}
        amounts = sorted({amount for _, amount in found if amount is not None})
        rows = [
            (
                Cell(display_name(baseline)),
                *(
                    _lead(found[baseline, amount]) if (baseline, amount) in found else Cell("–")
                    for amount in (None, *amounts)
                ),
            )
            for baseline in dict.fromkeys(baseline for baseline, _ in found)
        ]
        columns = ("Against", "All amounts", *(f"{100 * amount:g} %" for amount in amounts))
        tables.append(Table("differences", setting_title(setting, about), columns, tuple(rows)))
    return tuple(tables)


def _lead(comparison: Comparison) -> Cell:
    counts = f"{comparison.wins} – {comparison.ties} – {comparison.losses}"
    return Cell(points_text(comparison.accuracy), counts, comparison.verdict)


def search_tables(content: Content) -> tuple[Table, ...]:
    """The best trials of every grid search."""
    return tuple(
        Table(
            "trials",
            f"{search.map.title}: the best of {_count(len(search.trials), 'trial')}",
            ("Trial", "Validation accuracy, %", "Note"),
            tuple(
                (Cell(label), Cell("–" if score is None else f"{100 * score:.2f}"), Cell(note))
                for label, score, note in search.trials[:_SHOWN_TRIALS]
            ),
        )
        for search in content.searches
    )


def configuration_table(records: Sequence[CellRecord]) -> Table:
    """What was varied and what was held, from the pruned cells' own parameters."""
    pruned = [record.parameters for record in records if record.parameters.measure != DENSE]
    names = {
        "model": "Models", "dataset": "Data sets", "measure": "Measures", "measure_args": "Arguments of measures",
        "method": "Methods", "method_args": "Arguments of methods", "amount": "Amounts", "graph": "Graph",
        "protect_output": "Output protected", "calibration_samples": "Calibration images",
        "calibration_seed": "Calibration seeds",
    }  # fmt: skip
    rows = []
    for field in dataclasses.fields(pruned[0]) if pruned else ():
        if field.name in ("checkpoint", "checkpoint_sha256"):
            continue
        values = {_written(getattr(p, field.name)): getattr(p, field.name) for p in pruned}
        shown = [text for text in sorted(values, key=lambda text: (_number(values[text]), text)) if text]
        if shown:
            said = names.get(field.name) or field.name.replace("_", " ").capitalize()
            rows.append((Cell(said), Cell(", ".join(shown))))
    checkpoints = sorted({(r.parameters.checkpoint, r.parameters.checkpoint_sha256) for r in records})
    rows += [(Cell("Checkpoint"), Cell(path, note=f"sha256 {digest[:16]}…")) for path, digest in checkpoints]
    return Table("configuration", "Configuration", ("Parameter", "Values"), tuple(rows))


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
    return Table("environment", "Environment", ("What", "Value"), tuple(rows))


def failed_table(content: Content) -> Table:
    """Cells that failed and directories that could not be read, each with the error."""
    rows: list[tuple[Cell, ...]] = [
        (Cell(str(directory), note="results directory"), Cell(text)) for directory, text in content.problems
    ]
    for record in content.records:
        if record.status == "failed":
            p = record.parameters
            what = f"{p.model} on {p.dataset}, {display_name(p.measure)}, {p.method}, {100 * p.amount:g} %"
            where = f"{content.owners[record.key]} · {record.key} · calibration seed {p.calibration_seed}"
            rows.append((Cell(what, note=where), Cell(record.error or "")))
    return Table("failed", "Failed cells", ("Cell", "Error"), tuple(rows))


def all_tables(content: Content) -> tuple[Table, ...]:
    """Every table of the report that has a row, in reading order."""
    tables = [*accuracy_tables(content), *difference_tables(content), *search_tables(content), failed_table(content)]
    tables += [configuration_table(content.records), environment_table(content.records)]
    return tuple(table for table in tables if table.rows)


def markdown_table(table: Table) -> str:
    """A table in Markdown, numbers to the right."""
    numbers = len(table.columns) > 2
    rule = ["---"] + ["---:" if numbers else "---"] * (len(table.columns) - 1)
    rows = [table.columns, rule, *([_markdown_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(cell: Cell) -> str:
    words = _SIGNS.get(cell.mark, "") + cell.text.replace("|", "\\|").replace("\n", "<br>")
    words = f"**{words}**" if cell.mark == "best" else words
    return f"{words} ({cell.note})" if cell.note else words


def latex_table(table: Table) -> str:
    """A table in LaTeX, for the package booktabs."""
    numbers = "r" if len(table.columns) > 2 else "l"
    lines = [
        r"\begin{table}",
        rf"  \caption{{{_tex(table.title)}}}",
        rf"  \begin{{tabular}}{{l{numbers * (len(table.columns) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(_tex(column) for column in table.columns)} \\\\",
        r"    \midrule",
    ]
    for row in table.rows:
        cells = [rf"\textbf{{{_tex(cell.text)}}}" if cell.mark == "best" else _tex(_signed(cell)) for cell in row]
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _signed(cell: Cell) -> str:
    return _SIGNS.get(cell.mark, "") + cell.text


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text.replace("\n", " "))


def csv_table(table: Table) -> str:
    """A table as CSV; a cell's note follows its text in a column of its own where any cell has one."""
    noted = [any(row[place].note for row in table.rows) for place in range(len(table.columns))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [name for c, has in zip(table.columns, noted, strict=True) for name in ([c, f"{c}, note"] if has else [c])]
    )
    for row in table.rows:
        writer.writerow(
            [text for c, has in zip(row, noted, strict=True) for text in ([c.text, c.note] if has else [c.text])]
        )
    return buffer.getvalue()


def slug(text: str) -> str:
    """A title as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def print_findings(records: Sequence[CellRecord], directory: Path) -> None:
    """Print an experiment's tables and findings to the standard output.

    Args:
        records: The experiment's cells.
        directory: The results directory.
    """
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    content = content_of_records(records, {record.key: directory for record in records})
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH, no_color=True)
    for table in accuracy_tables(content):
        console.print(f"\n{table.title}", highlight=False, markup=False)
        shown = RichTable()
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(Text(cell.text, style="bold" if cell.mark == "best" else "") for cell in row))
        console.print(shown)
    console.print()
    for sentence in sentences_of(content):
        console.print(sentence, highlight=False, markup=False)
    failed = failed_table(content)
    for what, error in failed.rows[:_SHOWN_FAILURES]:
        console.print(f"failed: {what.text}: {error.text}", highlight=False, markup=False)
    if len(failed.rows) > _SHOWN_FAILURES:
        more = len(failed.rows) - _SHOWN_FAILURES
        console.print(f"and {more} more failed; {directory / 'records.jsonl'} holds them all")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {entry}" for name, entry in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: object) -> tuple[bool, float]:
    number = isinstance(value, int | float)
    return not number, float(value) if isinstance(value, int | float) else 0.0


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
