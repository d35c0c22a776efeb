"""The report as one self-contained HTML page: style, script, pictures and numbers all inside, nothing fetched."""

from html import escape
from importlib.resources import files

from mlprank.report.content import Content
from mlprank.report.sections import filter_values, sections_of
from mlprank.report.svg import line_sample, tag

FILTERS = {
    "model": "models",
    "dataset": "data sets",
    "method": "methods",
    "compensation": "compensations",
    "output": "output layers",
    "graph": "graphs",
}


def page_html(content: Content) -> str:
    """Write the whole page.

    Args:
        content: What `content_of` gathered.
    """
    sections = sections_of(content)
    colours = "".join(f"--c{style.index}:light-dark({style.light},{style.dark});" for style in content.styles.values())
    style = files(__package__).joinpath("page.css").read_text("utf-8") + f":root{{{colours}}}"
    script = files(__package__).joinpath("page.js").read_text("utf-8")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(content.summary.title)} · mlprank</title><style>{style}</style>"
    )
    body = [_top(content), _bar(content) if content.panels else "", "<main>"]
    for section in sections:
        explain = tag("p", escape(section.explain), class_="explain") if section.explain else ""
        heading = tag("h2", escape(section.title))
        body.append(tag("section", heading, explain, section.body, id=section.anchor))
    body.append(f"</main>{_footer(content)}<div id='tip' role='status'></div><script>{script}</script>")
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _top(content: Content) -> str:
    summary = content.summary
    tiles = [
        tag("div", tag("b", escape(t.value)), tag("span", escape(t.name)), tag("small", escape(t.note)), class_="tile")
        for t in summary.tiles
    ]
    failed = len(content.failed.rows)
    warning = ""
    if failed:
        said = "1 cell failed" if failed == 1 else f"{failed} cells failed"
        warning = tag("p", f'{said}; <a href="#failed">see which and why</a>.', class_="warning")
    button = tag("button", "Dark", id="theme", type="button", title="Light or dark")
    return tag(
        "header",
        tag("div", "mlprank · experiment report", button, class_="eyebrow"),
        tag("h1", escape(summary.title)),
        tag("p", escape(summary.finding[0]), class_="lead"),
        tag("ul", *(tag("li", escape(sentence)) for sentence in summary.finding[1:]), class_="more"),
        tag("div", *tiles, class_="tiles"),
        warning,
        class_="top",
    )


def _bar(content: Content) -> str:
    chips = [
        tag(
            "button",
            line_sample(style),
            escape(style.name),
            class_="chip",
            type="button",
            aria_pressed="true",
            data_series=label,
        )
        for label, style in content.styles.items()
    ]
    filters = []
    for name, said in FILTERS.items():
        values = sorted({filter_values(panel)[name] for panel in content.panels})
        if len(values) > 1:
            options = [tag("option", f"All {said}", value="")] + [tag("option", escape(v), value=v) for v in values]
            filters.append(tag("select", *options, data_filter=name, aria_label=f"Show {said}"))
    return tag("div", tag("div", *chips, tag("div", *filters, class_="filters")), class_="bar")


def _footer(content: Content) -> str:
    where = ", ".join(str(directory) for directory in content.directories)
    return tag("footer", f"Made by <code>mlprank report</code> from {escape(where)}.")
