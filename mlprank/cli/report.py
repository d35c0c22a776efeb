"""`mlprank report`: from results directories to a page that one wants to read."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mlprank.report import PICTURE_KINDS, write_report
from mlprank.utils.charts import FORMATS

UNREADABLE = 1


def main(argv: list[str]) -> int:
    """Run `mlprank report`.

    Args:
        argv: The arguments after `report`.

    Returns:
        0, or 1 where a directory could not be read and is only named in the report. Cells that failed leave it at 0.

    Raises:
        FileNotFoundError: If no directory holds results.
        ValueError: If an option is wrong.
        OSError: If the report cannot be written.
    """
    arguments = _parser().parse_args(argv)
    output = arguments.output or _default_output(arguments.results[0])
    started = time.monotonic()
    live = sys.stderr.isatty()

    def say(step: str) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[2K{time.monotonic() - started:5.1f} s  {step}")
            sys.stderr.flush()

    try:
        written = write_report(
            arguments.results,
            output,
            pictures=() if arguments.no_png else arguments.pictures if arguments.pictures else PICTURE_KINDS,
            formats=arguments.formats,
            csv=arguments.csv,
            baselines=arguments.baselines,
            smallest_effect=arguments.smallest_effect / 100,
            on_step=say,
        )
    finally:
        if live:
            sys.stderr.write("\r\x1b[2K")
    for directory, text in written.problems:
        print(f"mlprank report: {directory} is left out: {text}", file=sys.stderr)
    print(f"{written.num_finished} cells finished, {written.num_failed} failed")
    for path in (written.html, written.markdown, *([written.csv] if written.csv else []), *written.pictures):
        print(path)
    if written.tables:
        print(f"{written.tables[0].parent}: {len(written.tables)} tables as LaTeX and CSV")
    return UNREADABLE if written.problems else 0


def _default_output(results: Path) -> Path:
    return (results.parent if results.is_file() else results) / "report"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlprank report",
        description="Write one self-contained HTML page, Markdown, tables and pictures from the results of `mlprank experiment` and "
        "`mlprank tune`. Needs neither a GPU nor the network.",
        epilog="example: mlprank report runs/thesis --output runs/thesis/report",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="results directories (or their records.jsonl)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write; default: `report` in the first results directory"
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--no-png", action="store_true", help="leave the pictures out, which take seconds")
    pictures.add_argument(
        "--pictures",
        nargs="+",
        choices=PICTURE_KINDS,
        metavar="KIND",
        help=f"draw these alone: {', '.join(PICTURE_KINDS)}",
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["png"], metavar="FORMAT", help="of pictures: png, svg, pdf"
    )
    parser.add_argument("--csv", action="store_true", help="write results.csv too, one row a cell")
    parser.add_argument(
        "--baselines", nargs="+", metavar="MEASURE", help="compare weighted PageRank with these alone: random norm"
    )
    parser.add_argument(
        "--smallest-effect",
        type=float,
        default=0.2,
        metavar="POINTS",
        help="the smallest difference of accuracy that counts, in points; default 0.2",
    )
    return parser
