import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mlprank.cli import main
from mlprank.experiments.store import RecordStore
from mlprank.report import write_report
from mlprank.report.content import content_of
from mlprank.report.data import panels_of
from mlprank.report.markdown import markdown_of
from mlprank.report.page import page_html
from mlprank.report.palette import styles_of
from mlprank.report.summary import summary_of
from mlprank.report.svg import nice_ticks
from mlprank.report.tables import configuration_table
from tests.experiments.synthetic import MEASURES, record, write_experiment


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    write_experiment(directory, amounts=(0.3, 0.5, 0.8), seeds=(0, 1))
    return directory


def said(*records):
    return " ".join(summary_of(records, panels_of(records)).finding)


class Collector(HTMLParser):
    """Gathers what a page would fetch, and checks that its tags close."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.fetched += [names[name] for name in ("src", "href", "srcset") if name in names and names[name][:1] != "#"]
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_fetches_nothing_and_its_tags_close(results):
    page = page_html(content_of([results]))
    collector = Collector()
    collector.feed(page)
    assert collector.fetched == []
    assert collector.wrong == []
    assert collector.open == []
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", page)


def test_text_from_records_cannot_become_markup(results):
    page = page_html(content_of([results]))
    assert "checkpoint &lt;synthetic&gt; &amp; its model disagree" in page
    assert "<synthetic>" not in page


def test_every_section_is_there_and_sections_without_data_are_not(results, tmp_path):
    page = page_html(content_of([results]))
    found = re.findall(r'<section id="(\w+)"', page)
    assert found == [
        "accuracy",
        "wins",
        "latency",
        "size",
        "lost",
        "centralities",
        "failed",
        "configuration",
        "environment",
    ]
    with RecordStore(tmp_path) as store:
        plain = record()
        store.append(
            dataclasses.replace(
                plain, metrics=dataclasses.replace(plain.metrics, latency_s_before=None, latency_s_after=None)
            )
        )
    found = re.findall(r'<section id="(\w+)"', page_html(content_of([tmp_path])))
    assert found == ["accuracy", "size", "lost", "configuration", "environment"]


def test_a_panel_for_every_model_and_method_and_a_curve_for_every_measure(results):
    page = page_html(content_of([results]))
    charts = re.findall(r'<svg class="chart lines".*?</svg>', page, flags=re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        assert set(re.findall(r'class="series" data-series="(\w+)"', chart)) == set(MEASURES)
        assert chart.count('class="band"') == len(MEASURES)


def test_the_numbers_on_the_page_are_those_of_the_records(tmp_path):
    with RecordStore(tmp_path) as store:
        for seed, top1 in enumerate((0.81, 0.82, 0.83)):
            store.append(record(top1, calibration_seed=seed))
    content = content_of([tmp_path])
    half_width = 4.302652729911275 * 0.01 / 3**0.5
    point = content.panels[0].curves[0].points[0]
    assert point.top1.mean == pytest.approx(0.82)
    assert point.top1.half_width == pytest.approx(half_width)
    assert f">82.0 ± {100 * half_width:.1f}<" in page_html(content)


def test_one_seed_draws_lines_without_bands(tmp_path):
    write_experiment(tmp_path, models=("SyntheticTwo",), seeds=(0,), amounts=(0.5,), failures=0)
    page = page_html(content_of([tmp_path]))
    assert 'class="curve"' in page
    assert 'class="band"' not in page


def test_failed_cells_alone_still_make_a_report(tmp_path):
    with RecordStore(tmp_path) as store:
        store.append(record(None, error="KeyError: 'fc9'"))
    written = write_report([tmp_path], tmp_path / "out", pictures=False)
    assert (written.num_finished, written.num_failed) == (0, 1)
    page = written.html.read_text()
    assert "No cell finished" in page
    assert "KeyError: &#x27;fc9&#x27;" in page
    assert "KeyError: 'fc9'" in written.markdown.read_text()


def test_the_summary_says_who_leads_and_by_how_much():
    cells = [record(0.8, dense=0.8, calibration_seed=seed) for seed in (0, 1)]
    cells += [record(top1, dense=0.8, measure="norm", calibration_seed=seed) for seed, top1 in enumerate((0.62, 0.58))]
    text = said(*cells)
    assert "Weighted PageRank keeps 25.0 points more of the dense accuracy than Norm" in text
    assert "it wins 2 of 2 paired comparisons and loses 0" in text
    assert "the most accurate on SyntheticTwo on SyntheticData: 80.0 %, against 80.0 % dense" in text


def test_the_summary_says_when_weighted_pagerank_loses_and_when_nothing_is_clear():
    behind = said(record(0.6, dense=0.8), record(0.8, dense=0.8, measure="norm"))
    assert "keeps 25.0 points less of the dense accuracy than Norm" in behind
    cells = [record(top1, calibration_seed=seed) for seed, top1 in enumerate((0.7, 0.8))]
    cells += [record(0.74, measure="norm", calibration_seed=seed) for seed in (0, 1)]
    assert "which is no clear difference" in said(*cells)


def test_the_smallest_good_network_loses_at_most_a_point():
    near, far = record(0.871, dense=0.88, amount=0.5), record(0.86, dense=0.88, amount=0.8)
    assert "has 50 % of the parameters" in said(near, far)
    assert "smallest network" not in said(far)


def test_every_measure_keeps_its_look_and_no_two_share_one():
    alone, together = styles_of(["wanda"])["wanda"], styles_of(MEASURES)
    assert alone == together["wanda"]
    many = styles_of([*MEASURES, *[f"norm(p={p})" for p in range(2, 20)]])
    assert len({style.index for style in many.values()}) == len(many)
    assert len({(style.light, style.dash) for style in many.values()}) == len(many)
    assert len({style.marker for style in together.values()}) == len({s.dash for s in together.values()}) + 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.123, 0.131), (0.5, 0.5), (0.0, 0.0), (3.0, 1700.0)])
def test_ticks_are_even_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_the_markdown_has_the_tables_and_names_its_pictures(results, tmp_path):
    text = markdown_of(content_of([results]), [tmp_path / "accuracy_a.png", tmp_path / "size_a.png"])
    assert text.startswith("# Pruning ")
    assert "![Accuracy against amount](accuracy_a.png)" in text
    assert "## Weighted PageRank against the others" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1, table


def test_the_command_writes_the_files_and_names_them(results, tmp_path, capsys):
    assert main(["report", str(results), "--output", str(tmp_path / "out"), "--no-png", "--csv"]) == 0
    out = capsys.readouterr().out
    assert "168 cells finished, 2 failed" in out
    for name in ("report.html", "report.md", "results.csv"):
        assert (tmp_path / "out" / name).is_file()
        assert str(tmp_path / "out" / name) in out


def test_the_command_says_what_is_wrong_and_fails(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "mlprank report: error: no results at" in capsys.readouterr().err
    (tmp_path / "records.jsonl").write_text('{"schema_version": 5}\n')
    assert main(["report", str(tmp_path)]) == 2
    assert "schema version 5" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said(results, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(results), "--output", str(tmp_path / "file"), "--no-png"]) == 2
    assert "mlprank report: error" in capsys.readouterr().err


def test_no_results_directory_is_refused():
    with pytest.raises(ValueError, match="at least one results directory"):
        content_of([])


def test_chosen_pictures_alone_are_drawn_and_shown(tmp_path, capsys):
    write_experiment(tmp_path / "results", models=["SyntheticTwo"], seeds=[0])
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "results"), "--output", str(out), "--pictures", "accuracy", "lost"]) == 0
    assert {path.name.partition("_")[0] for path in out.glob("*.png")} == {"accuracy", "lost"}
    text = (out / "report.md").read_text()
    assert "](accuracy_" in text
    assert "](latency_" not in text
    capsys.readouterr()


def test_the_baseline_is_no_part_of_the_configuration():
    dense = record(measure="dense", method="none", compensation="none", graph="none", amount=0.0)
    rows = {row[0].text: row[1].text for row in configuration_table([dense, record(amount=0.3)]).rows}
    assert rows["Amounts"] == "0.3"
    assert rows["Methods"] == "local"
