"""`mlprank report`: from results directories to a page that one wants to read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlprank.cli.vocabulary import CommandParser
from mlprank.experiments.records import read_records, read_scores
from mlprank.experiments.statistics import finished_cells
from mlprank.report import PICTURE_KINDS, write_report
from mlprank.utils.charts import FORMATS

REPORT = CommandParser(
    "report",
    "Write one self-contained HTML page, Markdown, tables and, where asked for, pictures from the results of `mlprank "
    "experiment`, `tune` and `shrink`. Needs neither a GPU nor the network.",
    "mlprank report runs/thesis --out runs/thesis/report",
)
REPORT.add_argument(
    "results", nargs="+", type=Path, metavar="RESULTS", help="results directories, or their records.jsonl"
)
REPORT.add("out", "DIR", "where to write; default: `report` in the first of them", type=Path)
_KINDS = f"draw pictures too, half a second each: all, or {', '.join(PICTURE_KINDS)}"
REPORT.add("pictures", "KIND", _KINDS, nargs="*", choices=PICTURE_KINDS)
REPORT.add("no_png", text=argparse.SUPPRESS, action="store_true")  # pictures were once drawn unasked
REPORT.add("formats", "FORMAT", "of pictures: png, svg, pdf", nargs="+", choices=FORMATS, default=["png"])
REPORT.add("csv", text="write results.csv too, one row a cell", action="store_true")
REPORT.add("baselines", "MEASURE", "compare weighted PageRank with these alone: random norm", nargs="+")
_CELL = "write the network of a cell, named by its key or the beginning of it, and no report"
REPORT.add("write_network", "CELL", _CELL)
_EFFECT = "the smallest difference of accuracy that counts, in points; default 0.2"
REPORT.add("smallest_effect", "POINTS", _EFFECT, type=float, default=0.2)


def report(argv: list[str]) -> int:
    """Write the report; return the exit code, 1 where a directory could not be read."""
    arguments = REPORT.parse_args(argv)
    first = arguments.results[0]
    output = arguments.out or (first.parent if first.is_file() else first) / "report"
    if arguments.write_network is not None:
        print(_write_network(arguments.write_network, arguments.results, output))
        return 0
    with Console(stderr=True).status("report") as shown:
        written = write_report(
            arguments.results,
            output,
            pictures=PICTURE_KINDS if arguments.pictures == [] else arguments.pictures or (),
            formats=arguments.formats,
            csv=arguments.csv,
            baselines=arguments.baselines,
            smallest_effect=arguments.smallest_effect / 100,
            on_step=shown.update,
        )
    content = written.content
    for directory, text in content.problems:
        print(f"mlprank report: {directory} is left out: {text}", file=sys.stderr)
    print(f"{len(content.records) - content.num_failed} cells finished, {content.num_failed} failed")
    for path in (written.html, written.markdown, *([written.csv] if written.csv else []), *written.pictures):
        print(path)
    if written.tables:
        print(f"{written.tables[0].parent}: {len(written.tables)} tables as LaTeX and CSV")
    return 1 if content.problems else 0


def _write_network(cell: str, results: Sequence[Path], output: Path) -> Path:
    """Prune once more as a cell was pruned, and write the network."""
    from mlprank.experiments.config import ExperimentConfig, read_config
    from mlprank.experiments.runner import rebuild

    directories = [source.parent if source.is_file() else source for source in results]
    found = {
        record.key: (record, directory)
        for directory in directories
        for record in finished_cells(read_records(directory))
        if record.key.startswith(cell)
    }
    if len(found) != 1:
        raise ValueError(
            f"--write-network {cell}: {len(found)} finished cells have a key that begins so; give more of it"
        )
    [(record, directory)] = found.values()
    config_file = directory / "config.yaml"
    config = ExperimentConfig(**read_config(config_file)) if config_file.is_file() else ExperimentConfig()
    _, kept = read_scores(directory, record.key) or ({}, {})
    result = rebuild(record, config, kept=kept)
    return result.save(output / f"{record.key}.ckpt", cell=record.key, results=str(directory))
