"""The report of experiments and searches: one self-contained HTML page, Markdown, tables, pictures; needs no torch."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from mlprank.experiments.records import to_csv
from mlprank.experiments.statistics import SMALLEST_EFFECT, grouped
from mlprank.report import tables
from mlprank.report.charts import PICTURE_KINDS, figures_of, where_of, write_pictures
from mlprank.report.content import Content, content_of
from mlprank.report.findings import sentences_of, tiles_of, title_of
from mlprank.utils.charts import specification
from mlprank.utils.files import write_whole

__all__ = ["PICTURE_KINDS", "ReportFiles", "page_html", "write_report"]

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
_FILTERS = {"model": "models", "dataset": "data sets", "method": "methods", "conditions": "conditions"}


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, how many cells it saw, and which directories it could not read."""

    html: Path
    markdown: Path
    tables: tuple[Path, ...]
    pictures: tuple[Path, ...]
    csv: Path | None
    num_finished: int
    num_failed: int
    problems: Sequence[tuple[Path, str]]


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
    written: dict[Path, str] = {}
    for table in tables.all_tables(content):  # long names are cut, and told apart by a number
        name = "_".join(dict.fromkeys([table.kind, tables.slug(table.title)[:80]]))
        name += f"_{len(written)}" if directory / "tables" / f"{name}.tex" in written else ""
        written[directory / "tables" / f"{name}.tex"] = tables.latex_table(table)
        written[directory / "tables" / f"{name}.csv"] = tables.csv_table(table)
    for path, content_of_file in written.items():
        write_whole(path, content_of_file)
    failed = sum(record.status == "failed" for record in content.records)
    rows = to_csv(content.records, directory / "results.csv") if csv else None
    return ReportFiles(page, text, tuple(written), drawn, rows, len(content.records) - failed, failed, content.problems)


def _markdown(content: Content, pictures: Sequence[Path]) -> str:
    """The report as Markdown, for a paper or a pull request; pictures are the files beside it."""
    blocks = [f"# {title_of(content)}", "  \n".join(sentences_of(content))]
    for kind, heading in _MARKDOWN.items():
        drawn = f"{_PICTURES.get(kind, kind)}_"
        shown = [f"![{heading}]({path.name})" for path in pictures if path.name.startswith(drawn)]
        for table in tables.all_tables(content):
            if table.kind == kind:
                shown += [f"**{table.title}**"] if table.title != heading else []
                shown.append(tables.markdown_table(table))
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
        title=title_of(content),
        finding=sentences_of(content),
        tiles=tiles_of(content),
        filters=[(name, said, sorted(values)) for name, said, values in varied if len(values) > 1],
        figures={kind: grouped(found, lambda entry: entry[1].group) for kind, found in kinds.items()},
        effect=f"{100 * content.smallest_effect:g}",
        differences=tables.difference_tables(content),
        failed=tables.failed_table(content),
        configuration=tables.configuration_table(content.records),
        configs=content.configs,
        environment=tables.environment_table(content.records),
        directories=content.directories,
        charts=data.replace("</", "<\\/"),
        vega=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    )
