"""Everything that a report shows, gathered from results directories once, before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlprank.experiments.records import CellRecord
from mlprank.experiments.statistics import finished_cells, series_label
from mlprank.experiments.store import RECORDS_NAME, read_records
from mlprank.report.data import Panel, Setting, panels_of, subtitles
from mlprank.report.grids import Grid, is_tune_directory, read_grid
from mlprank.report.palette import Style, styles_of
from mlprank.report.ridges import Ridges, ridges_of
from mlprank.report.summary import Summary, summary_of
from mlprank.report.tables import Table, configuration_table, environment_table, failed_table, wins_tables

CONFIG_NAMES = ("config.yaml", "experiment.yaml")


@dataclass(frozen=True)
class Content:
    """What the page, the Markdown and the pictures are made of."""

    directories: tuple[Path, ...]
    records: tuple[CellRecord, ...]
    panels: tuple[Panel, ...]
    subtitles: Mapping[Setting, str]
    styles: Mapping[str, Style]
    summary: Summary
    wins: tuple[Table, ...]
    configuration: Table
    configs: tuple[tuple[str, str], ...]
    environment: Table
    failed: Table
    ridges: tuple[Ridges, ...]
    grids: tuple[Grid, ...]


def content_of(results: Sequence[str | Path]) -> Content:
    """Read results directories of experiments and of grid searches.

    Args:
        results: Directories (or their `records.jsonl`); a cell that is in several counts once, the last one.

    Raises:
        FileNotFoundError: If one holds no results.
        ValueError: If none is given, or a file is damaged or of another schema version.
    """
    if not results:
        raise ValueError("report: give at least one results directory")
    cells: dict[str, tuple[CellRecord, Path]] = {}
    directories, grids = [], []
    for source in map(Path, results):
        directory = source.parent if source.name == RECORDS_NAME else source
        directories.append(directory)
        if is_tune_directory(directory):
            grids.append(read_grid(directory))
        else:
            cells |= {record.key: (record, directory) for record in read_records(source)}
    records = tuple(record for record, _ in cells.values())
    panels = panels_of(records)
    labels = {series_label(record.parameters) for record in finished_cells(records)}
    owners = {key: directory for key, (_, directory) in cells.items()}
    configs = [directory / name for directory in directories for name in CONFIG_NAMES]
    sources = [(d, [record for record in records if owners[record.key] == d]) for d in dict.fromkeys(directories)]
    return Content(
        directories=tuple(directories),
        records=records,
        panels=panels,
        subtitles=subtitles(panels),
        styles=styles_of(labels),
        summary=summary_of(records, panels, grids=grids),
        wins=wins_tables(records),
        configuration=configuration_table(records),
        configs=tuple((str(path), path.read_text("utf-8")) for path in configs if path.is_file()),
        environment=environment_table(records),
        failed=failed_table(records, owners),
        ridges=ridges_of(sources),
        grids=tuple(grids),
    )
