"""`mlprank report`: from results directories to a page that one wants to read."""

import argparse
import sys
import time
from pathlib import Path

from mlprank.experiments import PICTURE_KINDS


def main(argv: list[str]) -> int:
    """Run `mlprank report`.

    Args:
        argv: The arguments after `report`.

    Returns:
        0. Cells that failed are in the report and leave this command at 0.

    Raises:
        FileNotFoundError: If a directory holds no results.
        ValueError: If a file is damaged or of another schema version.
        OSError: If the report cannot be written.
    """
    arguments = _parser().parse_args(argv)
    from mlprank.report import write_report

    output = arguments.output or _default_output(arguments.results[0])
    started = time.monotonic()
    live = sys.stderr.isatty()

    def say(step: str) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[2K{time.monotonic() - started:5.1f} s  {step}")
            sys.stderr.flush()

    pictures = arguments.pictures or not arguments.no_png
    try:
        written = write_report(arguments.results, output, pictures=pictures, csv=arguments.csv, on_step=say)
    finally:
        if live:
            sys.stderr.write("\r\x1b[2K")
    print(f"{written.num_finished} cells finished, {written.num_failed} failed")
    for path in (written.html, written.markdown, *([written.csv] if written.csv else []), *written.pictures):
        print(path)
    return 0


def _default_output(results: Path) -> Path:
    return (results.parent if results.is_file() else results) / "report"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlprank report",
        description="Write one self-contained HTML page, PNG pictures and Markdown from the results of "
        "`mlprank experiment` and `mlprank tune`. Needs neither a GPU nor the network.",
        epilog="example: mlprank report runs/thesis --output runs/thesis/report",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="results directories (or their records.jsonl)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write; default: `report` in the first results directory"
    )
    png = parser.add_mutually_exclusive_group()
    png.add_argument("--no-png", action="store_true", help="leave the PNG pictures out, which take seconds")
    png.add_argument(
        "--pictures",
        nargs="+",
        choices=PICTURE_KINDS,
        metavar="KIND",
        help=f"draw these alone: {', '.join(PICTURE_KINDS)}",
    )
    parser.add_argument("--csv", action="store_true", help="write results.csv too, one row a cell")
    return parser
