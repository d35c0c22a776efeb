"""The report of experiments and searches: one self-contained HTML page, Markdown, tables, pictures; needs no torch."""

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mlprank.experiments.records import CellRecord, to_csv
from mlprank.experiments.statistics import SMALLEST_EFFECT, grouped
from mlprank.report import findings
from mlprank.report.charts import PICTURE_KINDS, figures_of, where_of, write_pictures
from mlprank.report.content import Content, content_of, content_of_records
from mlprank.utils.charts import specification
from mlprank.utils.files import write_whole

__all__ = ["PICTURE_KINDS", "ReportFiles", "page_html", "print_findings", "write_report"]

_MARKDOWN = {
    "accuracy": "Top-1 accuracy",
    "claims": "Weighted PageRank against the others",
    "differences": "Weighted PageRank against the others, setting by setting",
    "latency": "Accuracy against measured latency",
    "size": "Accuracy against size",
    "lost": "What every layer lost",
    "centralities": "Where the centralities lie",
    "tuning": "Training runs",
    "shrunk": "Smallest networks under a budget",
    "trials": "The best trials",
    "failed": "Failed cells",
    "configuration": "Configuration",
    "environment": "Environment",
}
"""The sections of the Markdown, by the kinds of their tables and pictures; those of the page stand in its template."""
_PICTURES = {"claims": "differences", "differences": ""}
"""Which pictures stand in a section, where they are not those of its own kind."""
_SHOWN_FAILURES, _PLAIN_WIDTH = 5, 120  # in the terminal
_FILTERS = {"model": "models", "dataset": "data sets", "method": "methods", "conditions": "conditions"}


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, and of what."""

    content: Content
    html: Path
    markdown: Path
    tables: tuple[Path, ...]
    pictures: tuple[Path, ...]
    csv: Path | None


def write_report(
    results: Sequence[str | Path],
    output: str | Path,
    *,
    pictures: Collection[str] = (),
    formats: Collection[str] = ("png",),
    csv: bool = False,
    baselines: Sequence[str] | None = None,
    smallest_effect: float = SMALLEST_EFFECT,
    on_step: Callable[[str], None] = lambda step: None,
) -> ReportFiles:
    """Write `report.html`, `report.md`, the tables as LaTeX and CSV, and pictures into a directory, which is made.

    `results` are directories of experiments, grid searches and shrinks; one that cannot be read is named in the report.
    `pictures` are some of `PICTURE_KINDS`, their `formats` "png", "svg", "pdf"; with `csv`, `results.csv` has a row for
    every cell. `baselines` are the measures that weighted PageRank is compared with, by default all.

    Raises:
        FileNotFoundError: If no directory holds results.
        ValueError: If a baseline was not run.
        OSError: If the output cannot be written.
    """
    on_step("reading results")
    content = content_of(results, baselines=baselines, smallest_effect=smallest_effect)
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    on_step("report.html")
    page, text = directory / "report.html", directory / "report.md"
    write_whole(page, page_html(content))
    on_step("pictures")
    drawn = write_pictures(content, directory, kinds=pictures, formats=formats)
    on_step("tables")
    write_whole(text, _markdown(content, drawn))
    written: list[Path] = []
    for table in findings.all_tables(content):  # long names are cut, and told apart by a number
        name = "_".join(dict.fromkeys([table.kind, findings.slug(table.title)[:80]]))
        name += f"_{len(written)}" if directory / "tables" / f"{name}.tex" in written else ""
        for ending, form in (("tex", findings.latex_table), ("csv", findings.csv_table)):
            written.append(directory / "tables" / f"{name}.{ending}")
            write_whole(written[-1], form(table))
    rows = to_csv(content.records, directory / "results.csv") if csv else None
    return ReportFiles(content, page, text, tuple(written), drawn, rows)


def _markdown(content: Content, pictures: Sequence[Path]) -> str:
    """The report as Markdown, for a paper or a pull request; pictures are the files beside it."""
    blocks = [f"# {findings.title_of(content)}", "  \n".join(findings.sentences_of(content))]
    for kind, heading in _MARKDOWN.items():
        drawn = f"{_PICTURES.get(kind, kind)}_"
        shown = [f"![{heading}]({path.name})" for path in pictures if path.name.startswith(drawn)]
        for table in findings.all_tables(content):
            if table.kind == kind:
                shown += [f"**{table.title}**"] if table.title != heading else []
                shown.append(findings.markdown_table(table))
        if shown and kind in ("claims", "differences"):
            shown.append(
                "Points with their 95 % interval, paired; wins – ties – losses in brackets. ▲ and ▼ mark "
                f"differences of at least {100 * content.smallest_effect:g} points that are significant after "
                "Holm's correction over their table."
            )
        blocks += [f"## {heading}", *shown] if shown else []
    return "\n\n".join(blocks) + "\n"


def page_html(content: Content) -> str:
    """The whole page."""
    import jinja2
    import vl_convert

    figures = {f"chart-{number}": figure for number, figure in enumerate(figures_of(content))}
    specs = {name: specification([figure.draw(title="", width=None)]) for name, figure in figures.items()}
    config = [spec.pop("config") for spec in specs.values()]  # the same for all charts
    data = json.dumps({"config": config[0] if config else {}, "charts": specs}, separators=(",", ":"))
    kinds = grouped(figures.items(), lambda entry: entry[1].kind)
    # Whatever varies between the panels can be filtered by.
    varied = [
        (name, said, {where_of(panel.setting)[name] for panel in content.panels}) for name, said in _FILTERS.items()
    ]
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(
        title=findings.title_of(content),
        finding=findings.sentences_of(content),
        tiles=findings.tiles_of(content),
        filters=[(name, said, sorted(values)) for name, said, values in varied if len(values) > 1],
        figures={kind: grouped(found, lambda entry: entry[1].group) for kind, found in kinds.items()},
        effect=f"{100 * content.smallest_effect:g}",
        differences=findings.difference_tables(content),
        failed=findings.failed_table(content),
        configuration=findings.configuration_table(content.records),
        environment=findings.environment_table(content.records),
        content=content,
        charts=data.replace("</", "<\\/"),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    )


def print_findings(records: Sequence[CellRecord], directory: Path) -> None:
    """Print the tables and findings of an experiment, whose results are in `directory`, to the standard output."""
    from rich.console import Console
    from rich.markdown import Markdown

    content = content_of_records(records, {record.key: directory for record in records})
    live = sys.stdout.isatty()
    console = Console(highlight=False, markup=False, width=None if live else _PLAIN_WIDTH, no_color=not live or None)
    for table in findings.all_tables(content):
        if table.kind == "accuracy":
            console.print(f"\n{table.title}", Markdown(findings.markdown_table(table)), sep="\n")
    console.print("", *findings.sentences_of(content), sep="\n")
    failed = findings.failed_table(content).rows
    for what, error in failed[:_SHOWN_FAILURES]:
        console.print(f"failed: {what.text}: {error.text}")
    if len(failed) > _SHOWN_FAILURES:
        console.print(f"and {len(failed) - _SHOWN_FAILURES} more failed; {directory / 'records.jsonl'} holds them all")
