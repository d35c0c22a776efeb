"""The report's charts: on one page that holds everything it needs, and as files for papers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlprank.experiments.statistics import Comparison, Setting, setting_of
from mlprank.report.content import (
    COSTS,
    Content,
    Panel,
    Scores,
    Shrunk,
    by_network,
    conditions_text,
    cost_unit,
    front_of,
    lost_maps,
    subtitles,
)
from mlprank.report.findings import (
    Table,
    accuracy_table,
    averaged_over,
    configuration_table,
    difference_tables,
    environment_table,
    failed_table,
    percent,
    search_tables,
    sentences_of,
    setting_title,
    slug,
    tiles_of,
    title_of,
)
from mlprank.utils import charts
from mlprank.utils.charts import AccuracyPanel, AccuracyPoint, Chart, CostPoint, HeatMap, display_name

PICTURE_KINDS = ("accuracy", "differences", "latency", "size", "lost", "centralities", "tuning", "shrunk")
"""The pictures of a report, by the first word of their names."""
_EXPLAIN = {
    "accuracy": "Mean top-1 accuracy over trained networks with its 95 % interval, where there are three or more; with fewer the tables show "
    "every value. Point at a chart for exact numbers; click measures in a legend to see them alone.",
    "differences": "Weighted PageRank against each other measure on the same trained network, calibration data, method and amount: mean "
    "difference in points with its 95 % interval, and wins – ties – losses. ▲ (ahead) and ▼ (behind) mark differences of at least {effect:g} "
    "points that are significant (5 %) after Holm's correction over the comparisons of their table.",
    "latency": "Every point is a pruned network; the line is the Pareto front: no network here is both cheaper and more accurate than one on "
    "it. The ring marks the cheapest that loses at most a point. Networks far below the best are not drawn.",
    "size": "The same networks by the bytes of their file.",
    "lost": "Percent of a layer's neurons that were pruned.",
    "centralities": "Each layer's neurons from the most central to the least; the height is the score, the dashed line the layer's mean.",
    "shrunk": "Every network that a search of mlprank shrink tried, by the bytes of its file; the ring marks the chosen one.",
    "tuning": "Validation accuracy, %, of a grid search; the best run is outlined.",
}
_FILTERS = {"model": "models", "dataset": "data sets", "method": "methods", "conditions": "conditions"}


def page_html(content: Content) -> str:
    """Write the whole page.

    Args:
        content: What `content_of` gathered.
    """
    from altair.utils.schemapi import debug_mode

    with _vega() as vega, debug_mode(False):  # tests check the charts against the schema, which takes seconds here
        return _filled(content, vega)


@contextmanager
def _vega() -> Iterator[subprocess.Popen[str]]:
    """Vega as one script; bundling takes more than a second, so another process does it while the charts are defined."""
    code = "import vl_convert; print(vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;'))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            yield process
        finally:
            process.kill()


def _filled(content: Content, vega: subprocess.Popen[str]) -> str:
    """The template with everything in its place."""
    page = _Page(content)
    sections = [
        page.section("accuracy", "Accuracy against amount", page.accuracy()),
        page.section("differences", "Who wins", page.differences()),
        page.section("latency", "Accuracy against measured latency", page.fronts("latency")),
        page.section("size", "Accuracy against size", page.fronts("size")),
        page.section("lost", "What every layer lost", page.lost()),
        page.section("centralities", "Where the centralities lie", page.centralities()),
        page.section("tuning", "Training runs", page.searches()),
        page.section("shrunk", "Smallest networks under a budget", page.shrunk()),
        page.section("failed", "Failed", _card(failed_table(content), kind="plain failed")),
        page.section("configuration", "Configuration", page.configuration()),
        page.section("environment", "Environment", _card(environment_table(content.records), kind="plain")),
    ]
    script, _ = vega.communicate()
    if vega.returncode:
        raise RuntimeError("vl-convert could not bundle Vega; its message stands above")
    finding = sentences_of(content)
    failed = len(failed_table(content).rows)
    parts = {
        "title": escape(title_of(content)),
        "lead": escape(finding[0] if finding else ""),
        "more": "".join(f"<li>{escape(sentence)}</li>" for sentence in finding[1:]),
        "tiles": "".join(
            f'<div class="tile"><b>{escape(t.value)}</b><span>{escape(t.name)}</span><small>{escape(t.note)}</small></div>'
            for t in tiles_of(content)
        ),
        "warning": f'<p class="warning">{failed} failed; <a href="#failed">see which and why</a>.</p>'
        if failed
        else "",
        "filters": page.filters(),
        "sections": "".join(sections),
        "where": escape(", ".join(str(directory) for directory in content.directories)),
        "charts": json.dumps({"config": page.config, "charts": page.specs}, separators=(",", ":")).replace(
            "</", "<\\/"
        ),
        "vega": script.replace("</script", "<\\/script"),
    }
    template = files(__package__).joinpath("page.html").read_text("utf-8")
    return re.sub(r"<!-- (\w+) -->", lambda place: parts[place[1]], template)


def write_pictures(
    content: Content,
    directory: Path,
    *,
    kinds: Collection[str],
    formats: Collection[str],
    on_picture: Callable[[str], None] = lambda name: None,
) -> tuple[Path, ...]:
    """Draw every chart into `directory`, named `<kind>_<what>.<format>`.

    Args:
        content: What `content_of` gathered.
        directory: It exists.
        kinds: Which charts, of `PICTURE_KINDS`.
        formats: "png", "svg", "pdf".
        on_picture: Told the name of each file before it is drawn.
    """
    from altair.utils.schemapi import debug_mode

    written = []
    for kind, what, draw in _pictures(content):
        if kind in kinds:
            with debug_mode(False):
                chart = draw()
            for ending in formats:
                path = directory / f"{kind}_{slug(what)}.{ending}"
                on_picture(path.name)
                written.append(charts.write_chart(chart, path))
    return tuple(written)


def _pictures(content: Content) -> Iterator[tuple[str, str, Callable[[], Chart]]]:
    about = subtitles(panel.setting for panel in content.panels)
    for network, panels in by_network(content.panels).items():
        drawn = [_accuracy_panel(panel, setting_title(panel.setting, about)) for panel in panels]
        yield "accuracy", network, partial(charts.accuracy_chart, drawn, content.looks)
        leads = [_leads(content, panel.setting, setting_title(panel.setting, about)) for panel in panels]
        if found := [lead for lead in leads if lead.differences]:
            effect = content.smallest_effect
            yield "differences", network, partial(charts.difference_chart, found, smallest_effect=effect)
        for cost in COSTS:
            if front_of(panels, cost=cost):
                yield cost, network, partial(_front_chart, panels, content, cost)
        maps = [_lost_map(panel, labels, curve, about) for panel in panels for labels, curve in lost_maps(panel)]
        yield "lost", network, partial(charts.heat_map_chart, maps, width=260)
        if scores := [_scores_panel(scores) for scores in content.scores if scores.network == network]:
            yield "centralities", network, partial(charts.scores_chart, scores)
    for search in content.searches:
        name = str(search.directory)
        yield "tuning", name, partial(charts.heat_map_chart, [search.map], whole_range=False, width=460)
    for shrunk in content.shrunk:
        yield "shrunk", str(shrunk.directory), partial(_shrunk_chart, shrunk)


class _Page:
    """Collects the specifications of the charts while the sections are written; the page's script draws them."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.about = subtitles(panel.setting for panel in content.panels)
        self.specs: dict[str, Any] = {}
        self.config: dict[str, Any] = {}

    def section(self, anchor: str, title: str, body: str) -> str:
        explain = _EXPLAIN.get(anchor, "").format(effect=100 * self.content.smallest_effect)
        said = f'<p class="explain">{escape(explain)}</p>' if explain else ""
        return f'<section id="{anchor}"><h2>{escape(title)}</h2>{said}{body}</section>' if body else ""

    def accuracy(self) -> str:
        groups = []
        for network, panels in by_network(self.content.panels).items():
            figures = []
            for panel in panels:
                title = setting_title(panel.setting, self.about).removeprefix(f"{network}, ")
                chart = charts.accuracy_chart([_accuracy_panel(panel, "")], self.content.looks, width=None)
                table = _table(accuracy_table(panel, self.content.looks, title=network), kind="numbers")
                numbers = f"<details><summary>Numbers</summary>{table}</details>"
                figures.append(self.figure(title, _best_at_middle(panel), chart, panel.setting, numbers))
            groups.append(_group(network, figures, panels[0].setting))
        return "".join(groups)

    def differences(self) -> str:
        claims: list[str] = []
        settings: list[str] = []
        for table in difference_tables(self.content):
            target = claims if table.kind == "claims" else settings
            target.append(f"<h3>{escape(table.title)}</h3>{_card(table, kind='wins numbers')}")
        effect = self.content.smallest_effect
        drawn = [
            self.figure(
                conditions_text(claim[0].settings[0]),
                averaged_over(claim[0]),
                charts.difference_chart([_difference_panel(claim, "")], smallest_effect=effect, width=None),
            )
            for claim in self.content.claims
        ]
        figures = f'<div class="panels">{"".join(drawn)}</div>' if drawn else ""
        if not claims:
            return figures + "".join(settings)
        every = f"<details><summary>Every setting by itself</summary>{''.join(settings)}</details>"
        return figures + "".join(claims) + every

    def fronts(self, cost: str) -> str:
        figures = []
        for network, panels in by_network(self.content.panels).items():
            front = front_of(panels, cost=cost)
            if front:
                under = f"{sum(entry.on_front for entry in front)} of {len(front)} pruned networks are on the front"
                chart = _front_chart(panels, self.content, cost, width=None, title="")
                figures.append(self.figure(network, under, chart, panels[0].setting, whole_network=True))
        return f'<div class="panels">{"".join(figures)}</div>' if figures else ""

    def lost(self) -> str:
        groups = []
        for network, panels in by_network(self.content.panels).items():
            figures = []
            for panel in panels:
                for labels, curve in lost_maps(panel):
                    table = _lost_map(panel, labels, curve, self.about)
                    title, _, under = table.title.partition(": ")
                    chart = charts.heat_map_chart([_untitled(table)])
                    figures.append(self.figure(title, under, chart, panel.setting))
            groups.append(_group(network, figures, panels[0].setting, kind="facets"))
        return "".join(groups)

    def centralities(self) -> str:
        groups = []
        for network, panels in by_network(self.content.panels).items():
            found = [scores for scores in self.content.scores if scores.network == network and scores.layers]
            figures = []
            for scores in sorted(found, key=lambda scores: list(self.content.looks).index(scores.label)):
                panel, p = _scores_panel(scores), scores.record.parameters
                chart = charts.scores_chart([charts.ScoresPanel("", panel.layers)], width=None)
                under = f"{p.method}, {100 * p.amount:g} %, {conditions_text(setting_of(p))}"
                figures.append(self.figure(display_name(scores.label), under, chart))
            if figures:
                groups.append(_group(network, figures, panels[0].setting, kind="facets"))
        return "".join(groups)

    def searches(self) -> str:
        figures = []
        for search, table in zip(self.content.searches, search_tables(self.content), strict=True):
            chart = charts.heat_map_chart([_untitled(search.map)], whole_range=False)
            body = f"<details><summary>The best trials</summary>{_table(table, kind='numbers')}</details>"
            figures.append(self.figure(search.map.title, str(search.directory), chart, body=body))
        return f'<div class="panels">{"".join(figures)}</div>' if figures else ""

    def shrunk(self) -> str:
        figures = [
            self.figure(found.directory.name, str(found.directory), _shrunk_chart(found, width=None, title=""))
            for found in self.content.shrunk
        ]
        return f'<div class="panels">{"".join(figures)}</div>' if figures else ""

    def configuration(self) -> str:
        texts = [
            f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
            for name, text in self.content.configs
        ]
        return _card(configuration_table(self.content.records), kind="plain") + "".join(texts)

    def filters(self) -> str:
        """A select for whatever varies between the panels."""
        found = []
        for name, said in _FILTERS.items():
            values = sorted({_filter_values(panel.setting)[name] for panel in self.content.panels})
            if len(values) > 1:
                options = "".join(f'<option value="{escape(v)}">{escape(v)}</option>' for v in values)
                all_of = f'<option value="">All {said}</option>'
                found.append(f'<select data-filter="{name}" aria-label="Show {said}">{all_of}{options}</select>')
        return "".join(found)

    def figure(
        self,
        title: str,
        under: str,
        chart: Chart,
        setting: Setting | None = None,
        body: str = "",
        *,
        whole_network: bool = False,
    ) -> str:
        """A card with a chart, which gets a name under which the script finds it."""
        spec = charts.spec_of(chart)
        self.config = spec.pop("config")
        name = f"chart-{len(self.specs)}"
        self.specs[name] = spec
        title = title[:1].upper() + title[1:]
        caption = f"<strong>{escape(title)}</strong>" + (f"<span>{escape(under)}</span>" if under else "")
        drawn = f'<div class="chart" id="{name}" role="img" aria-label="{escape(title)}"></div>'
        data = _data(setting, whole_network=whole_network)
        return f'<figure class="card"{data}><figcaption>{caption}</figcaption>{drawn}{body}</figure>'


def _filter_values(setting: Setting, *, whole_network: bool = False) -> dict[str, str]:
    """What the page's filters compare, by name."""
    found = {"model": setting.model, "dataset": setting.dataset}
    return found if whole_network else found | {"method": setting.method, "conditions": conditions_text(setting)}


def _data(setting: Setting | None, *, whole_network: bool = False) -> str:
    if setting is None:
        return ""
    return f' data-setting="{escape(json.dumps(_filter_values(setting, whole_network=whole_network)))}"'


def _group(title: str, figures: Sequence[str], setting: Setting, *, kind: str = "panels") -> str:
    data = _data(setting, whole_network=True)
    return f'<div{data}><h3>{escape(title)}</h3><div class="{kind}">{"".join(figures)}</div></div>'


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


def _best_at_middle(panel: Panel) -> str:
    """The highest mean at the amount nearest a half, where there are several measures."""
    amounts = [amount for amount in panel.amounts if amount > 0.0]
    if not amounts or len(panel.curves) < 2:
        return ""
    amount = min(amounts, key=lambda amount: (abs(amount - 0.5), amount))
    found = [(point.top1.mean, curve.label) for curve in panel.curves if (point := curve.at(amount)) is not None]
    value, label = max(found)
    return f"Highest mean at {100 * amount:g} %: {display_name(label)}, {percent(value)}"


def _accuracy_panel(panel: Panel, title: str) -> AccuracyPanel:
    points = tuple(
        AccuracyPoint(curve.label, point.amount, point.top1.mean, point.top1.low, point.top1.high)
        for curve in panel.curves
        for point in curve.points
    )
    return AccuracyPanel(title, panel.dense_top1, points)


def _front_chart(
    panels: Sequence[Panel], content: Content, cost: str, *, width: int | None = 460, title: str | None = None
) -> Chart:
    front = front_of(panels, cost=cost)
    dense = [(value, panel.dense_top1) for panel in panels if (value := panel.dense_cost(cost)) is not None]
    whole = tuple(sum(part) / len(dense) for part in zip(*dense, strict=True))
    divisor, unit = cost_unit(max([entry.cost for entry in front] + [value for value, _ in dense]), cost=cost)
    several = len({panel.setting.compensation for panel in panels}) > 1
    points = [
        CostPoint(
            entry.label,
            entry.cost / divisor,
            entry.point.top1.mean,
            ", ".join(
                [
                    f"{100 * entry.point.amount:g} %",
                    entry.panel.setting.method,
                    *([entry.panel.setting.compensation.replace("_", " ")] if several else []),
                ]
            ),
            on_front=entry.on_front,
            chosen=entry.chosen,
        )
        for entry in front
    ]
    return charts.front_chart(
        points,
        content.looks,
        title=panels[0].setting.network if title is None else title,
        cost=f"{COSTS[cost][0]}, {unit}",
        dense=(whole[0] / divisor, whole[1]) if dense else None,
        width=width,
    )


def _shrunk_chart(found: Shrunk, *, width: int | None = 460, title: str | None = None) -> Chart:
    return charts.front_chart(
        found.points,
        charts.looks_of(["shrink"]),
        title=found.directory.name if title is None else title,
        cost="file size, MB",
        dense=found.dense,
        width=width,
        score="score",
        percent=found.percent,
    )


def _lost_map(panel: Panel, labels: Sequence[str], curve: Any, about: Mapping[Setting, str]) -> HeatMap:
    amounts = sorted({amount for lost in curve.lost.values() for amount in lost})
    every = len(labels) == len(panel.curves) > 1
    measures = "every measure" if every else ", ".join(map(display_name, labels))
    where = setting_title(panel.setting, about).removeprefix(f"{panel.setting.network}, ")
    return HeatMap(
        title=f"{measures}: {where}",
        rows=tuple(charts.short_names(list(curve.lost))),
        columns=tuple(f"{100 * amount:g}" for amount in amounts),
        values=tuple(tuple(lost.get(amount) for amount in amounts) for lost in curve.lost.values()),
        column_title="requested amount, %",
        value_title="pruned",
    )


def _untitled(table: HeatMap) -> HeatMap:
    return HeatMap(
        "", table.rows, table.columns, table.values, table.row_title, table.column_title, table.value_title, table.best
    )


def _scores_panel(scores: Scores) -> charts.ScoresPanel:
    p = scores.record.parameters
    return charts.ScoresPanel(f"{display_name(scores.label)}, {p.method}, {100 * p.amount:g} %", scores.layers)


def _leads(content: Content, setting: Setting, title: str) -> charts.DifferencePanel:
    return _difference_panel([c for c in content.comparisons if c.settings[0] == setting and c.amount is None], title)


def _difference_panel(comparisons: Sequence[Comparison], title: str) -> charts.DifferencePanel:
    """The leads over single baselines, averaged over amounts."""
    return charts.DifferencePanel(
        title,
        tuple(
            charts.Difference(c.baseline, c.accuracy.mean, c.accuracy.low, c.accuracy.high, c.verdict)
            for c in comparisons
            if c.baseline
        ),
    )
