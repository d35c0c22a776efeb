"""The report as one page that holds everything it needs: text, tables, and charts that a script draws."""

import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from mlprank.report.charts import PICTURE_KINDS, Figure, figures_of, where_of
from mlprank.report.content import Content
from mlprank.report.findings import sentences_of, tiles_of, title_of
from mlprank.report.tables import Table, configuration_table, difference_tables, environment_table, failed_table
from mlprank.utils.charts import compose, spec_of

HEADINGS = {
    "accuracy": "Accuracy against amount",
    "differences": "Who wins",
    "latency": "Accuracy against measured latency",
    "size": "Accuracy against size",
    "lost": "What every layer lost",
    "centralities": "Where the centralities lie",
    "tuning": "Training runs",
    "shrunk": "Smallest networks under a budget",
}
_EXPLAIN = {
    "accuracy": "Mean top-1 accuracy over trained networks with its 95 % interval, where there are three or more; with"
    " fewer the tables show every value. Point at a chart for exact numbers; click measures in a legend to see them "
    "alone.",
    "differences": "Weighted PageRank against each other measure on the same trained network, calibration data, method"
    " and amount: mean difference in points with its 95 % interval, and wins – ties – losses. ▲ (ahead) and ▼ "
    "(behind) mark differences of at least {effect:g} points that are significant (5 %) after Holm's correction over "
    "the comparisons of their table.",
    "latency": "Every point is a pruned network; the line is the Pareto front: no network here is both cheaper and more"
    " accurate than one on it. The ring marks the cheapest that loses at most a point. Networks far below the best "
    "are not drawn.",
    "size": "The same networks by the bytes of their file.",
    "lost": "Percent of a layer's neurons that were taken out. With constant compensation a pruned channel stays in the"
    " network, as a constant, where a convolution that pads reads it.",
    "centralities": "Each layer's neurons from the most central to the least; the height is the score, the dashed line"
    " the layer's mean.",
    "shrunk": "Every network that a search of mlprank shrink tried, by the bytes of its file; the ring marks the chosen"
    " one.",
    "tuning": "Validation accuracy, %, of a grid search; the best run is outlined.",
}
_FILTERS = {"model": "models", "dataset": "data sets", "method": "methods", "conditions": "conditions"}
_SUMMARIES = {"accuracy": "Numbers", "tuning": "The best trials"}
_NARROW = ("lost", "centralities")


def page_html(content: Content) -> str:
    """The whole page."""
    import vl_convert
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        figures, specs = figures_of(content), dict[str, Any]()
        effect, sections = 100 * content.smallest_effect, ""
        for kind in PICTURE_KINDS:
            body = _figures([figure for figure in figures if figure.kind == kind], specs)
            if kind == "differences":
                body += _differences(content)
            sections += _section(kind, HEADINGS[kind], body, explain=_EXPLAIN[kind].format(effect=effect))
    failed = failed_table(content)
    texts = [
        f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        for name, text in content.configs
    ]
    configuration = _card(configuration_table(content.records), kind="plain") + "".join(texts)
    sections += _section("failed", "Failed", _card(failed, kind="plain failed"))
    sections += _section("configuration", "Configuration", configuration)
    sections += _section("environment", "Environment", _card(environment_table(content.records), kind="plain"))
    finding = sentences_of(content)
    config = [spec.pop("config") for spec in specs.values()]  # the same for all charts
    data = json.dumps({"config": config[0] if config else {}, "charts": specs}, separators=(",", ":"))
    warning = f'<p class="warning">{len(failed.rows)} failed; <a href="#failed">see which and why</a>.</p>'
    parts = {
        "title": escape(title_of(content)),
        "lead": escape(finding[0] if finding else ""),
        "more": "".join(f"<li>{escape(sentence)}</li>" for sentence in finding[1:]),
        "tiles": "".join(
            f'<div class="tile"><b>{escape(tile.value)}</b><span>{escape(tile.name)}</span>'
            f"<small>{escape(tile.note)}</small></div>"
            for tile in tiles_of(content)
        ),
        "warning": warning if failed.rows else "",
        "filters": _filters(content),
        "sections": sections,
        "where": escape(", ".join(str(directory) for directory in content.directories)),
        "charts": data.replace("</", "<\\/"),
        "vega": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"),
    }
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    return re.sub(r"<!-- (\w+) -->", lambda place: parts[place[1]], template)


def _section(anchor: str, title: str, body: str, *, explain: str = "") -> str:
    said = f'<p class="explain">{escape(explain)}</p>' if explain else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{said}{body}</section>' if body else ""


def _figures(figures: list[Figure], specs: dict[str, Any]) -> str:
    """The cards of one kind, under a heading for every network; the charts' specifications are put in `specs`."""
    groups = []
    for name, found in groupby(figures, key=lambda figure: figure.group):
        members = list(found)
        kind = "facets" if members[0].kind in _NARROW else "panels"
        cards = f'<div class="{kind}">{"".join(_figure(figure, specs) for figure in members)}</div>'
        where = {key: text for key, text in members[0].where.items() if key in ("model", "dataset")}
        headed = members[0].kind == "accuracy" or members[0].kind in _NARROW
        groups.append(f"<div{_data(where)}><h3>{escape(name)}</h3>{cards}</div>" if headed else cards)
    return "".join(groups)


def _figure(figure: Figure, specs: dict[str, Any]) -> str:
    """A card with a chart, which gets a name under which the script finds it."""
    name = f"chart-{len(specs)}"
    specs[name] = spec_of(compose([figure.draw(title="", width=None)]))
    title = escape(figure.title[:1].upper() + figure.title[1:])
    caption = f"<strong>{title}</strong>" + (f"<span>{escape(figure.note)}</span>" if figure.note else "")
    numbers = ""
    if figure.numbers is not None:
        table = _table(figure.numbers, kind="numbers")
        numbers = f"<details><summary>{_SUMMARIES[figure.kind]}</summary>{table}</details>"
    drawn = f'<div class="chart" id="{name}" role="img" aria-label="{title}"></div>'
    return f'<figure class="card"{_data(figure.where)}><figcaption>{caption}</figcaption>{drawn}{numbers}</figure>'


def _differences(content: Content) -> str:
    """The tables of the claims, then those of every setting, folded where there are claims over several."""
    cards = {"claims": "", "differences": ""}
    for table in difference_tables(content):
        cards[table.kind] += f"<h3>{escape(table.title)}</h3>{_card(table, kind='wins numbers')}"
    if not cards["claims"]:
        return cards["differences"]
    return f"{cards['claims']}<details><summary>Every setting by itself</summary>{cards['differences']}</details>"


def _filters(content: Content) -> str:
    """A select for whatever varies between the panels."""
    found = []
    for name, said in _FILTERS.items():
        values = sorted({where_of(panel.setting)[name] for panel in content.panels})
        if len(values) > 1:
            options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
            all_of = f'<option value="">All {said}</option>'
            found.append(f'<select data-filter="{name}" aria-label="Show {said}">{all_of}{options}</select>')
    return "".join(found)


def _data(where: Mapping[str, str]) -> str:
    return f' data-setting="{escape(json.dumps(dict(where)))}"' if where else ""


def _table(table: Table, *, kind: str) -> str:
    """One table; `kind` names its look: "numbers", "wins numbers", "plain", "plain failed"."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = []
    for row in table.rows:
        cells = []
        for place, cell in enumerate(row):
            note = f"<small>{escape(cell.note)}</small>" if cell.note else ""
            mark = f' class="{cell.mark}"' if cell.mark else ""
            opening, closing = ('th scope="row"', "th") if place == 0 else (f"td{mark}", "td")
            cells.append(f"<{opening}>{escape(cell.text)}{note}</{closing}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def _card(table: Table, *, kind: str) -> str:
    return f'<div class="card">{_table(table, kind=kind)}</div>' if table.rows else ""
