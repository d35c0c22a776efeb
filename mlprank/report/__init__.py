"""The report of an experiment: one self-contained HTML page, PNG pictures and Markdown; needs no torch."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments import PICTURE_KINDS
from mlprank.experiments.store import to_csv, write_whole
from mlprank.report.content import content_of
from mlprank.report.heat_map import heat_map_svg
from mlprank.report.markdown import markdown_of
from mlprank.report.page import page_html

__all__ = ["ReportFiles", "heat_map_svg", "write_report"]


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, and how many cells it saw."""

    html: Path
    markdown: Path
    pictures: tuple[Path, ...]
    csv: Path | None
    num_finished: int
    num_failed: int


def write_report(
    results: Sequence[str | Path],
    output: str | Path,
    *,
    pictures: bool | Collection[str] = True,
    csv: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> ReportFiles:
    """Write `report.html`, `report.md` and the PNG files.

    Args:
        results: Results directories of experiments and of grid searches.
        output: Directory, made where it is missing.
        pictures: Whether to draw PNG files (the slow part: seconds), or which: "accuracy", "latency", "size", "lost", "centralities",
            "tuning".
        csv: Whether to write `results.csv` too, one row a cell.
        on_step: Told what is done next, a few words each.

    Raises:
        FileNotFoundError: If a directory holds no results.
        ValueError: If a file is damaged or of another schema version.
        OSError: If the output cannot be written.
    """
    on_step("reading results")
    content = content_of(results)
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    on_step("report.html")
    page = directory / "report.html"
    write_whole(page, page_html(content).encode())
    drawn: tuple[Path, ...] = ()
    if pictures:
        on_step("loading matplotlib")
        from mlprank.report.pictures import write_pictures

        kinds = PICTURE_KINDS if isinstance(pictures, bool) else pictures
        drawn = write_pictures(content, directory, on_picture=on_step, kinds=kinds)
    on_step("report.md")
    text = directory / "report.md"
    write_whole(text, markdown_of(content, drawn).encode())
    failed = sum(record.status == "failed" for record in content.records)
    table = to_csv(content.records, directory / "results.csv") if csv else None
    return ReportFiles(page, text, drawn, table, len(content.records) - failed, failed)
