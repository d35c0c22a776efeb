"""The sections of the page: headings, cards with charts, tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from mlprank.report.accuracy_chart import accuracy_svg, percent
from mlprank.report.content import Content
from mlprank.report.data import Curve, Panel, by_network, front_of, lost_tables, short_names
from mlprank.report.front_chart import front_svg
from mlprank.report.heat_map import heat_map_svg
from mlprank.report.palette import Style, display_name
from mlprank.report.ridges import ridges_svg
from mlprank.report.svg import tag
from mlprank.report.tables import Cell, Table, accuracy_table

WINS = (
    "Weighted PageRank against each other measure on the same checkpoint, calibration data, method and amount: mean "
    "difference of top-1 accuracy in points with its 95 % interval, and wins – ties – losses. ▲ (ahead) and ▼ (behind) "
    "mark differences whose interval excludes zero."
)
FRONT = (
    "Every point is a pruned network. The staircase is the Pareto front: no network here is both cheaper and more "
    "accurate than one on it."
)
CENTRALITIES = (
    "How a measure spreads its scores over the neurons of each layer. The dashed line is the layer's mean; the pale part "
    "was taken out."
)


@dataclass(frozen=True)
class Section:
    """One section of the page; `body` is HTML."""

    anchor: str
    title: str
    explain: str
    body: str


def sections_of(content: Content) -> list[Section]:
    """All sections that have something to show, in reading order."""
    accuracy = (
        "Mean with its 95 % interval over trained networks, or over calibration seeds where there is one network of a kind. "
        "Move over a chart for exact numbers."
    )
    sections = (
        Section("accuracy", "Accuracy against amount", accuracy, _accuracy(content)),
        Section("wins", "Who wins", WINS, _wins(content)),
        Section("latency", "Accuracy against measured latency", FRONT, _fronts(content, "latency")),
        Section(
            "size", "Accuracy against size", "The same networks by the bytes of their file.", _fronts(content, "size")
        ),
        Section("lost", "What every layer lost", "Percent of a layer's neurons that were taken out.", _lost(content)),
        Section("centralities", "Where the centralities lie", CENTRALITIES, _centralities(content)),
        Section("tuning", "Training runs", "Validation accuracy, %, of a grid search.", _grids(content)),
        Section("failed", "Failed cells", "", _card(content.failed, kind="plain failed")),
        Section("configuration", "Configuration", "", _configuration(content)),
        Section("environment", "Environment", "", _card(content.environment, kind="plain")),
    )
    return [section for section in sections if section.body]


def filter_values(panel: Panel) -> dict[str, str]:
    """What the page's filters compare, by name."""
    s = panel.setting
    output = "output protected" if s.protect_output else "output pruned too"
    fields = {"model": s.model, "dataset": s.dataset, "method": s.method, "compensation": s.compensation}
    return fields | {"output": output, "graph": s.graph}


def table_html(table: Table, *, kind: str) -> str:
    """One table; `kind` names its look: "numbers", "wins numbers", "plain", "plain failed"."""
    head = "".join(tag("th", escape(column), scope="col") for column in table.columns)
    rows = []
    for first, *rest in table.rows:
        cells = [tag("th", _cell(first), scope="row")]
        cells += [tag("td", _cell(cell), class_=cell.mark or None) for cell in rest]
        rows.append(tag("tr", *cells))
    whole = tag("table", tag("thead", tag("tr", head)), tag("tbody", *rows), class_=kind)
    return tag("div", whole, class_="scroll")


def _cell(cell: Cell) -> str:
    return escape(cell.text) + (tag("small", escape(cell.note)) if cell.note else "")


def _card(table: Table, *, kind: str) -> str:
    return tag("div", table_html(table, kind=kind), class_="card") if table.rows else ""


def _figure(
    title: str, under: str, body: str, *, setting: Mapping[str, str] | None = None, series: str | None = None
) -> str:
    caption = tag("figcaption", tag("strong", escape(title)), tag("span", escape(under)) if under else "")
    data = json.dumps(setting) if setting else None
    return tag("figure", caption, body, class_="card", data_setting=data, data_series=series)


def _group(
    title: str, figures: list[str], *, kind: str, setting: Mapping[str, str] | None = None, columns: int = 0
) -> str:
    data = json.dumps(setting) if setting else None
    wide = "--facet:370px" if columns > 6 else None
    return tag("div", tag("h3", escape(title)), tag("div", *figures, class_=kind, style=wide), data_setting=data)


def _network_filter(panel: Panel) -> dict[str, str]:
    return {"model": panel.setting.model, "dataset": panel.setting.dataset}


def _method(panel: Panel) -> str:
    return f"{panel.setting.method[:1].upper()}{panel.setting.method[1:]}"


def _accuracy(content: Content) -> str:
    groups = []
    for network, panels in by_network(content.panels).items():
        figures = []
        for panel in panels:
            method = f"{_method(panel)} method"
            table = accuracy_table(panel, content.styles, title=network)
            numbers = tag("details", tag("summary", "Numbers"), table_html(table, kind="numbers"))
            svg = accuracy_svg(panel, content.styles, title=f"Accuracy against amount, {network}, {method}")
            said = (content.subtitles[panel.setting], _best_at_middle(panel, content.styles))
            under = ". ".join(part[:1].upper() + part[1:] for part in said if part)
            figures.append(_figure(method, under, svg + numbers, setting=filter_values(panel)))
        groups.append(_group(network, figures, kind="panels", setting=_network_filter(panels[0])))
    return "".join(groups)


def _best_at_middle(panel: Panel, styles: Mapping[str, Style]) -> str:
    amount = min(panel.amounts, key=lambda amount: (abs(amount - 0.5), amount))
    found = [(point.top1.mean, curve.label) for curve in panel.curves if (point := curve.at(amount)) is not None]
    value, label = max(found)
    return f"best at {100 * amount:g} %: {styles[label].name}, {percent(value)}"


def _wins(content: Content) -> str:
    first, *rest = ["".join([tag("h3", escape(t.title)), _card(t, kind="wins numbers")]) for t in content.wins] or [""]
    return first + (tag("details", tag("summary", "Every network by itself"), *rest) if rest else "")


def _fronts(content: Content, cost: str) -> str:
    figures = []
    for network, panels in by_network(content.panels).items():
        front = front_of(panels, cost=cost)
        if front:
            svg = front_svg(front, panels, content.styles, cost=cost, title=f"Accuracy against {cost}, {network}")
            under = f"{sum(entry.on_front for entry in front)} of {len(front)} pruned networks are on the front"
            figures.append(_figure(network, under, svg, setting=_network_filter(panels[0])))
    return tag("div", *figures, class_="panels") if figures else ""


def _lost(content: Content) -> str:
    groups = []
    for network, panels in by_network(content.panels).items():
        figures = []
        for panel in panels:
            for labels, curve in lost_tables(panel):
                amounts = sorted({amount for lost in curve.lost.values() for amount in lost})
                every = len(labels) == len(panel.curves) > 1
                title = "Every measure" if every else ", ".join(map(display_name, labels))
                under = ", ".join(
                    part for part in (f"{_method(panel)} method", content.subtitles[panel.setting]) if part
                )
                heat = heat_map_svg(
                    [[lost.get(amount) for amount in amounts] for lost in curve.lost.values()],
                    short_names(list(curve.lost)),
                    [f"{100 * amount:g}" for amount in amounts],
                    title=f"{title}, {under}: share of every layer taken out",
                    col_title="requested amount, %",
                    low=0.0,
                    high=1.0,
                    form=lambda share: f"{100 * share:.0f}",
                    cell_width=38 if len(amounts) <= 6 else 31,
                    tips=_lost_tips(curve, amounts),
                )
                series = labels[0] if len(labels) == 1 else None
                figures.append(_figure(title, under, heat, setting=filter_values(panel), series=series))
        columns = max(len(panel.amounts) for panel in panels)
        setting = _network_filter(panels[0])
        groups.append(_group(network, figures, kind="facets", setting=setting, columns=columns))
    return "".join(groups)


def _lost_tips(curve: Curve, amounts: Sequence[float]) -> list[list[str]]:
    return [
        [
            f"{name}|{percent(lost[amount])} of its neurons taken out|{100 * amount:g} % requested"
            if amount in lost
            else f"{name}|not run at {100 * amount:g} %"
            for amount in amounts
        ]
        for name, lost in curve.lost.items()
    ]


def _centralities(content: Content) -> str:
    groups = []
    for network in dict.fromkeys(ridges.network for ridges in content.ridges):
        found = [ridges for ridges in content.ridges if ridges.network == network and ridges.layers]
        figures = []
        for ridges in sorted(found, key=lambda ridges: content.styles[ridges.label].index):
            p, style = ridges.record.parameters, content.styles[ridges.label]
            under = f"{p.method}, {100 * p.amount:g} %, calibration seed {p.calibration_seed}"
            svg = ridges_svg(ridges, style, title=f"Centralities by {style.name}, {network}")
            figures.append(_figure(style.name, under, svg, series=ridges.label))
        setting = {name: getattr(found[0].record.parameters, name) for name in ("model", "dataset")} if found else None
        groups.append(_group(network, figures, kind="facets", setting=setting))
    return "".join(groups)


def _grids(content: Content) -> str:
    figures = []
    for grid in content.grids:
        heat = heat_map_svg(
            grid.values,
            grid.row_labels,
            grid.col_labels,
            title=grid.title,
            row_title=grid.row_title,
            col_title=grid.col_title,
            best=grid.best,
            form=lambda accuracy: f"{100 * accuracy:.1f}",
            cell_width=62,
        )
        note = "The best run is outlined." if grid.best is not None else "Every run failed."
        figures.append(_figure(grid.title, " · ".join(part for part in (grid.note, note) if part), heat))
    return tag("div", *figures, class_="panels") if figures else ""


def _configuration(content: Content) -> str:
    files = [tag("details", tag("summary", escape(name)), tag("pre", escape(text))) for name, text in content.configs]
    return _card(content.configuration, kind="plain") + "".join(files)
