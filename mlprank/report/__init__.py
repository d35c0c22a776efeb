"""The report of experiments and searches: one self-contained HTML page, Markdown, tables, pictures; needs no torch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments.records import to_csv
from mlprank.experiments.statistics import SMALLEST_EFFECT
from mlprank.report.charts import PICTURE_KINDS, write_pictures
from mlprank.report.content import Content, content_of
from mlprank.report.findings import sentences_of, title_of
from mlprank.report.page import HEADINGS, page_html
from mlprank.report.tables import all_tables, csv_table, latex_table, markdown_table, slug
from mlprank.utils.files import write_whole

__all__ = ["PICTURE_KINDS", "ReportFiles", "write_report"]

_LONGEST_NAME = 80
_SECTIONS = {
    "accuracy": "Top-1 accuracy",
    "claims": "Weighted PageRank against the others",
    "differences": "Weighted PageRank against the others, setting by setting",
    **{kind: heading for kind, heading in HEADINGS.items() if kind not in ("accuracy", "differences")},
    "trials": "The best trials",
    "failed": "Failed cells",
    "configuration": "Configuration",
    "environment": "Environment",
}
_PICTURES = {"claims": "differences", "differences": ""}
"""Which pictures stand in a section, where they are not those of its own kind."""


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
    problems: tuple[tuple[Path, str], ...]


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
    drawn = write_pictures(content, directory, kinds=pictures, formats=formats, on_picture=on_step)
    on_step("tables")
    write_whole(text, _markdown(content, drawn))
    tables = _write_tables(content, directory / "tables")
    failed = sum(record.status == "failed" for record in content.records)
    rows = to_csv(content.records, directory / "results.csv") if csv else None
    return ReportFiles(page, text, tables, drawn, rows, len(content.records) - failed, failed, content.problems)


def _write_tables(content: Content, directory: Path) -> tuple[Path, ...]:
    """Every table as LaTeX and CSV, named by what it shows; long names are cut and told apart by a number."""
    written: dict[Path, str] = {}
    for table in all_tables(content):
        name = "_".join(dict.fromkeys([table.kind, slug(table.title)[:_LONGEST_NAME]]))
        if directory / f"{name}.tex" in written:
            name += f"_{len(written)}"
        written |= {directory / f"{name}.tex": latex_table(table), directory / f"{name}.csv": csv_table(table)}
    for path, text in written.items():
        write_whole(path, text)
    return tuple(written)


def _markdown(content: Content, pictures: Sequence[Path]) -> str:
    """The report as Markdown, for a paper or a pull request; pictures are the files beside it."""
    blocks = [f"# {title_of(content)}", "  \n".join(sentences_of(content))]
    tables = all_tables(content)
    for kind, heading in _SECTIONS.items():
        drawn = f"{_PICTURES.get(kind, kind)}_"
        shown = [f"![{heading}]({path.name})" for path in pictures if path.name.startswith(drawn)]
        for table in tables:
            if table.kind == kind:
                shown += [f"**{table.title}**"] if table.title != heading else []
                shown.append(markdown_table(table))
        if shown and kind in ("claims", "differences"):
            shown.append(
                "Points with their 95 % interval, paired; wins – ties – losses in brackets. ▲ and ▼ mark "
                f"differences of at least {100 * content.smallest_effect:g} points that are significant after "
                "Holm's correction over their table."
            )
        blocks += [f"## {heading}", *shown] if shown else []
    return "\n\n".join(blocks) + "\n"
