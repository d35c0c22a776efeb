"""What was found: tables with their forms in Markdown, LaTeX and CSV, sentences, and the numbers on top of the page."""

import csv
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlprank.experiments.records import DENSE, CellRecord
from mlprank.experiments.statistics import MIN_TRAININGS, Comparison, Estimate, finished_cells, grouped
from mlprank.report.content import WITHIN, Content, Panel, Point, conditions_text, subtitles
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
    means = {a: [c.points[a].top1.mean for c in panel.curves if a in c.points] for a in panel.amounts}
    rows: list[list[str | Cell]] = []
    for curve in panel.curves:
        row: list[str | Cell] = [looks[curve.label].name]
        for amount, others in means.items():
            if amount not in curve.points:
                row.append("–")
                continue
            top1 = curve.points[amount].top1
            compared = amount > 0.0 and min(others) < max(others) and top1.num >= MIN_TRAININGS
            mark = "best" if compared and top1.mean == max(others) else ""
            row.append(Cell(with_interval(top1, lambda value: f"{100 * value:.1f}"), mark=mark))
        rows.append(row)
    rows.append(["Dense network", f"{100 * panel.dense.top1.mean:.1f}", *[""] * (len(means) - 1)])
    return _table("accuracy", panel.title, ["Top-1, %", *(f"{100 * amount:g} %" for amount in means)], rows)


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

    pruned = [record.parameters for record in records if record.parameters.measure != DENSE]
    rows: list[tuple[str | Cell, ...]] = []
    for field in dataclasses.fields(pruned[0]) if pruned else ():
        values = list({text for p in pruned if (text := written(getattr(p, field.name)))})
        if values and field.name not in ("checkpoint", "checkpoint_sha256"):
            said = _PARAMETERS.get(field.name) or field.name.replace("_", " ").capitalize()
            # numbers by size, and then the rest by its text
            values.sort(key=lambda text: (float(text) if re.fullmatch(r"[\d.e+-]+", text) else 0.0, text))
            rows.append((said, ", ".join(values)))
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
    tables = [accuracy_table(panel, content.looks) for panel in content.panels]
    tables += [*difference_tables(content), *search_tables(content), failed_table(content)]
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


def title_of(content: Content) -> str:
    """What the report is about."""
    networks = list(dict.fromkeys(panel.setting.network for panel in content.panels))
    if not networks:
        others = [*(s.directory.name for s in content.searches), *(s.name for s in content.shrunk)]
        return "Pruning experiment" if content.records or not others else others[0]
    if len(networks) == 1:
        return f"Pruning {networks[0]}"
    datasets = sorted({panel.setting.dataset for panel in content.panels})
    models = sorted({panel.setting.model for panel in content.panels})
    if len(datasets) == 1 and len(models) < 5:
        return f"Pruning {_joined(models)} on {datasets[0]}"
    return f"Pruning {len(networks)} networks on {count(len(datasets), 'data set')}"


def sentences_of(content: Content) -> tuple[str, ...]:
    """What the records show: claims over settings first, then single networks, then grid searches and failures."""
    about = subtitles(claim[0].settings[0] for claim in content.claims)
    finding = [text for claim in content.claims for text in _claim(claim, about[claim[0].settings[0]])]
    # The highest mean near half of the neurons, of the dense network that is best.
    compared = [(panel, *best) for panel in content.panels if (best := best_at_middle(panel)) is not None]
    if compared:
        panel, label, at = max(compared, key=lambda e: (-abs(e[2].amount - 0.5), e[0].dense.top1.mean, e[2].top1.mean))
        finding.append(
            f"With {100 * at.amount:g} % of the neurons pruned, {display_name(label)} ({_how(panel)}) has the highest "
            f"mean accuracy on {panel.setting.network} ({count(at.top1.num, 'training')}): {percent(at.top1.mean)}, "
            f"against {percent(panel.dense.top1.mean)} dense."
        )
    if smallest := smallest_good(content.panels):
        panel, label, at = smallest
        share = percent(at.num_parameters / panel.dense.num_parameters, digits=0)
        finding.append(
            f"The smallest network within {100 * WITHIN:g} point of its dense accuracy has {share} of the parameters: "
            f"{panel.setting.network} by {display_name(label)} ({_how(panel)}) at {100 * at.amount:g} %; "
            f"--write-network {at.keys[0]} writes it."
        )
    for search in content.searches:
        label, score, _ = search.trials[0]
        reached = f"the best run reaches {percent(score)} with {label}" if score is not None else "every run failed"
        finding.append(f"{search.directory.name}: {reached}.")
    for shrunk in content.shrunk:
        unit, digits = (100, 1) if shrunk.percent else (1, 3)
        for point in (point for point in shrunk.points if point.chosen):
            share = percent(point.cost / shrunk.dense[0], digits=0)
            finding.append(
                f"{shrunk.name}: the chosen network has {share} of the dense network's bytes and scores "
                f"{unit * point.top1:.{digits}f}, against {unit * shrunk.dense[1]:.{digits}f} dense."
            )
    if not finished_cells(content.records) and not content.searches and not content.shrunk:
        finding.append("No cell finished, so there is nothing to compare.")
    if failed := content.num_failed:
        finding.append(f"{count(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} not in any number here.")
    return tuple(finding)


def smallest_good(panels: Sequence[Panel]) -> tuple[Panel, str, Point] | None:
    """The network with the fewest parameters, as a share of its dense one, that loses at most `WITHIN`."""
    curves = [(panel, curve) for panel in panels if panel.dense.num_parameters for curve in panel.curves]
    good = [(panel, curve.label, at) for panel, curve in curves for at in curve.points.values() if panel.is_good(at)]
    return min(good, key=lambda e: (e[2].num_parameters / e[0].dense.num_parameters, -e[2].top1.mean), default=None)


def best_at_middle(panel: Panel) -> tuple[str, Point] | None:
    """The highest mean at the amount nearest a half, of several measures that have enough trainings."""
    amounts = [amount for amount in panel.amounts if amount > 0.0]
    middle = min(amounts, key=lambda amount: (abs(amount - 0.5), amount), default=-1.0)
    found = [(curve.label, curve.points[middle]) for curve in panel.curves if middle in curve.points]
    if len(found) < 2 or min(point.top1.num for _, point in found) < MIN_TRAININGS:
        return None
    return max(found, key=lambda entry: (entry[1].top1.mean, entry[0]))


def tiles_of(content: Content) -> tuple[tuple[str, str, str], ...]:
    """The numbers on top of the page, each with its name and a note."""
    if not content.records:
        return ()
    done = finished_cells(content.records)
    trained = {record.parameters.checkpoint_sha256 for record in done}
    note = count(len(trained), "trained network") + (f", {content.num_failed} failed" if content.num_failed else "")
    tiles = [(f"{len(done)}", "cells finished", note)]
    if content.claims:
        claim = content.claims[0][0]
        lead, pairs = claim.retention, claim.wins + claim.ties + claim.losses
        shown = "" if lead.low is None or lead.high is None else f", {points(lead.low)} to {points(lead.high)}"
        about = subtitles(other[0].settings[0] for other in content.claims)[claim.settings[0]]
        over = display_name(claim.baseline) if claim.baseline else "the average of the others"
        note = f"points of retention{shown}" + (f"; {about}" if about else "")
        tiles.append((points(lead.mean), f"against {over}", note))
        tiles.append((percent(claim.wins / pairs, digits=0), "paired wins", f"{claim.wins} of {pairs} comparisons"))
    if found := smallest_good(content.panels):
        panel, label, point = found
        times = panel.dense.num_parameters / point.num_parameters
        lost = points(point.top1.mean - panel.dense.top1.mean)
        tiles.append((f"{times:.1f} ×", "fewer parameters", f"{display_name(label)}, {lost} points top-1"))
    return tuple(tiles)


def _claim(claim: Sequence[Comparison], about: str) -> list[str]:
    """One group of settings: the lead on average and over what it is averaged, then who is beaten and who is not."""
    first, each = claim[0], [c for c in claim if c.baseline]
    lead, names = first.retention, [display_name(c.baseline) for c in each]
    others = f"the average of {_joined(names)}" if len(each) > 1 else names[0]
    amount = f"{abs(100 * lead.mean):.1f} points {'more' if lead.mean >= 0 else 'less'} of the dense accuracy than"
    amount = "as much of the dense accuracy as" if abs(lead.mean) < 0.0005 else amount
    text = f"{display_name(first.reference)} keeps {amount} {others}"
    if lead.low is not None and lead.high is not None:
        text += f" (95 % interval {points(lead.low, digits=1)} to {points(lead.high, digits=1)})"
    if first.verdict == "undecided":
        text += ", which is no clear difference"
    elif not first.verdict:
        text += f", too few trainings for a verdict ({MIN_TRAININGS} of every network are needed)"
    parts = []
    for verdict, words in (("better", "ahead of"), ("worse", "behind"), ("undecided", "not clearly different from")):
        found = [f"{display_name(c.baseline)} ({points(c.accuracy.mean)})" for c in each if c.verdict == verdict]
        parts += [f"{words} {_joined(found)}"] if found and len(each) > 1 else []
    pairs = first.wins + first.ties + first.losses
    beaten = f"in points of top-1 accuracy it is {', '.join(parts)}; it" if parts else "it"
    beaten += f" wins {first.wins} of {count(pairs, 'paired comparison')} and loses {first.losses}."
    start = f"With {about}: " if about else ""
    beaten = f"{start}{beaten}" if about else f"{beaten[:1].upper()}{beaten[1:]}"
    return [f"{start}{text}; {averaged_over(first)}.", beaten]


def averaged_over(claim: Comparison) -> str:
    """Over what a claim averages: `averaged with equal weight over 2 networks, 2 methods and all amounts`."""
    if len(claim.settings) == 1:
        (setting,) = claim.settings
        over = f"for {setting.network}, {setting.method} method, averaged over all amounts"
    else:
        networks, methods = {s.network for s in claim.settings}, {s.method for s in claim.settings}
        parts = [count(len(networks), "network"), count(len(methods), "method"), "all amounts"]
        over = f"averaged with equal weight over {_joined(parts)}"
    return f"{over} ({count(claim.accuracy.num, 'training')})"


def _how(panel: Panel) -> str:
    return f"{panel.setting.method}, {panel.setting.compensation.replace('_', ' ')} compensation"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
