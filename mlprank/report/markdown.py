"""The report as Markdown, for a paper or a pull request; pictures are the PNG files beside it."""

from collections.abc import Sequence
from pathlib import Path

from mlprank.report.content import Content
from mlprank.report.data import by_network
from mlprank.report.tables import Cell, Table, accuracy_table

_SIGNS = {"better": "▲ ", "worse": "▼ "}


def markdown_of(content: Content, pictures: Sequence[Path]) -> str:
    """Write the whole report.

    Args:
        content: What `content_of` gathered.
        pictures: PNG files in the report's directory, named `<kind>_<what>.png`.
    """
    summary = content.summary
    lines = [f"# {summary.title}", "", *(f"{sentence}  " for sentence in summary.finding), ""]
    lines += _pictures("accuracy", "Accuracy against amount", pictures)
    for network, panels in by_network(content.panels).items():
        lines += [f"## Top-1 accuracy: {network}", ""]
        for panel in panels:
            about = [f"method {panel.setting.method}", content.subtitles[panel.setting]]
            title = ", ".join(part for part in about if part)
            lines += [
                f"**{title[:1].upper()}{title[1:]}**",
                "",
                *_table(accuracy_table(panel, content.styles, title=network)),
            ]
    if content.wins:
        lines += [
            "## Weighted PageRank against the others",
            "",
            "Mean difference of top-1 accuracy in points with its 95 % interval, paired; wins – ties – losses in "
            "brackets. ▲ and ▼ mark differences whose interval excludes zero.",
            "",
        ]
        for table in content.wins:
            lines += [f"**{table.title}**", "", *_table(table)]
    for kind, title in (
        ("latency", "Accuracy against measured latency"),
        ("size", "Accuracy against size"),
        ("lost", "What every layer lost"),
        ("centralities", "Where the centralities lie"),
        ("tuning", "Training runs"),
    ):
        lines += _pictures(kind, title, pictures)
    for table in (content.failed, content.configuration, content.environment):
        if table.rows:
            lines += [f"## {table.title}", "", *_table(table)]
    return "\n".join(lines).rstrip() + "\n"


def _pictures(kind: str, title: str, pictures: Sequence[Path]) -> list[str]:
    found = [path.name for path in pictures if path.name.startswith(f"{kind}_")]
    return [f"## {title}", "", *(f"![{title}]({name})" for name in found), ""] if found else []


def _table(table: Table) -> list[str]:
    numbers = len(table.columns) > 2
    rule = ["---"] + ["---:" if numbers else "---"] * (len(table.columns) - 1)
    rows = [table.columns, rule, *([_text(cell) for cell in row] for row in table.rows)]
    return [f"| {' | '.join(row)} |" for row in rows] + [""]


def _text(cell: Cell) -> str:
    words = _SIGNS.get(cell.mark, "") + cell.text.replace("|", "\\|").replace("\n", "<br>")
    words = f"**{words}**" if cell.mark == "best" else words
    return f"{words} ({cell.note})" if cell.note else words
