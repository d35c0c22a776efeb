"""The page, the Markdown, the tables and the sentences of a report."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlprank.cli import main
from mlprank.experiments.records import RecordStore
from mlprank.report import PICTURE_KINDS, page_html, write_report
from mlprank.report.content import content_of, content_of_records
from mlprank.report.findings import (
    Cell,
    Table,
    all_tables,
    configuration_table,
    csv_table,
    difference_tables,
    latex_table,
    markdown_table,
    sentences_of,
    tiles_of,
)
from tests.experiments.synthetic import MEASURES, record, training, write_experiment


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    write_experiment(directory, amounts=(0.3, 0.5, 0.8), seeds=(0, 1, 2))
    return directory


@pytest.fixture(scope="module")
def page(results):
    return page_html(content_of([results]))


def content(*records):
    return content_of_records(records, {record.key: Path("results") for record in records})


def tables(kind, found):
    return [table for table in all_tables(found) if table.kind == kind]


def said(*records):
    return " ".join(sentences_of(content(*records)))


def specs(page):
    """The specifications of a page's charts."""
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL).group(1)
    return json.loads(data)["charts"]


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


def test_the_page_fetches_nothing_and_its_tags_close(page):
    collector = Collector()
    collector.feed(page)
    assert collector.fetched == []
    assert collector.wrong == []
    assert collector.open == []
    ours = re.sub(r'<script type="module">const .*?</script>', "", page, flags=re.DOTALL)
    ours = page[: page.index('<script type="module">')]
    assert "url(" not in ours
    assert "@import" not in ours
    assert "http" not in re.sub(r"https://vega\.github\.io/schema\S*", "", ours)


def test_the_page_has_at_most_3_megabytes(page):
    assert len(page.encode()) < 3e6


def test_text_from_records_cannot_become_markup(page):
    assert "checkpoint &lt;synthetic&gt; &amp; its model disagree" in page
    assert "<synthetic>" not in page


def test_a_name_that_closes_a_script_stays_a_name(tmp_path):
    with RecordStore(tmp_path) as store:
        store.append(record(model="</script><b>"))
    found = page_html(content_of([tmp_path]))
    assert "</script><b>" not in found
    assert len(specs(found)) == 4


def test_every_section_is_there_and_sections_without_data_are_not(page, tmp_path):
    found = re.findall(r'<section id="(\w+)"', page)
    assert found == [
        "accuracy",
        "differences",
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


def test_a_panel_for_every_model_and_method_and_a_curve_for_every_measure(page):
    charts = [spec for spec in specs(page).values() if "neurons pruned" in json.dumps(spec)]
    assert len(charts) == 4
    for spec in charts:
        rows = [row for rows in spec["datasets"].values() for row in rows if "series" in row]
        assert len({row["series"] for row in rows}) == len(MEASURES)
        assert all(row["low"] is not None for row in rows)
        assert spec["width"] == "container"


def test_the_numbers_on_the_page_are_those_of_the_records(tmp_path):
    with RecordStore(tmp_path) as store:
        for number, top1 in enumerate((0.81, 0.82, 0.83)):
            store.append(record(top1, checkpoint_sha256=training(number)))
    found = content_of([tmp_path])
    half_width = 4.302652729911275 * 0.01 / 3**0.5
    estimate = found.panels[0].curves[0].points[0.5].top1
    assert estimate.mean == pytest.approx(0.82)
    assert estimate.high - estimate.low == pytest.approx(2 * half_width, rel=0.01)
    assert f">82.0 [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]<" in page_html(found)


def test_fewer_than_three_trainings_show_their_values_and_no_band_or_verdict(tmp_path):
    write_experiment(tmp_path, models=("SyntheticTwo",), methods=("local",), seeds=(0, 1), amounts=(0.5,), failures=0)
    found = content_of([tmp_path])
    rows = [row for spec in specs(page_html(found)).values() for rows in spec["datasets"].values() for row in rows]
    assert {row["low"] for row in rows if row.get("amount", 0) > 0 and "low" in row} == {None}
    (table,) = tables("accuracy", found)
    assert re.fullmatch(r"\d\d\.\d, \d\d\.\d", table.rows[0][1].text)
    assert {cell.mark for row in table.rows for cell in row} == {""}
    (table,) = difference_tables(found)
    assert {cell.mark for row in table.rows for cell in row} == {""}
    assert "too few trainings for a verdict (3 of every network are needed)" in " ".join(sentences_of(found))


def test_failed_cells_alone_still_make_a_report(tmp_path):
    with RecordStore(tmp_path) as store:
        store.append(record(None, error="KeyError: 'fc9'"))
    written = write_report([tmp_path], tmp_path / "out")
    assert (len(written.content.records), written.content.num_failed) == (1, 1)
    page = written.html.read_text()
    assert "No cell finished" in page
    assert "KeyError: &#39;fc9&#39;" in page
    assert "KeyError: 'fc9'" in written.markdown.read_text()


def pair(ours, theirs, **changes):
    """Weighted PageRank and norm on trainings of their own, of a dense network of 80 %."""
    cells = [record(top1, dense=0.8, checkpoint_sha256=training(n), **changes) for n, top1 in enumerate(ours)]
    theirs = enumerate(theirs)
    return cells + [
        record(top1, dense=0.8, measure="norm", checkpoint_sha256=training(n), **changes) for n, top1 in theirs
    ]


def test_the_summary_says_who_leads_and_by_how_much():
    text = said(*pair((0.8, 0.8, 0.8), (0.62, 0.58, 0.6)))
    assert (
        "Weighted PageRank keeps 25.0 points more of the dense accuracy than Norm (95 % interval +18.8 to +31.2)"
        in text
    )
    assert "for SyntheticTwo on SyntheticData, local method, averaged over all amounts (3 trainings)" in text
    assert "It wins 3 of 3 paired comparisons and loses 0." in text
    assert (
        "has the highest mean accuracy on SyntheticTwo on SyntheticData (3 trainings): 80.0 %, against 80.0 % dense"
        in text
    )


def test_the_summary_says_when_weighted_pagerank_loses_and_when_nothing_is_clear():
    behind = said(*pair((0.6, 0.61, 0.6), (0.8, 0.8, 0.8)))
    assert "keeps 24.6 points less of the dense accuracy than Norm" in behind
    assert "no clear difference" not in behind
    assert "which is no clear difference" in said(*pair((0.7, 0.8, 0.75), (0.74, 0.74, 0.74)))


def test_claims_name_what_is_beaten_and_over_what_they_average():
    cells = pair((0.8, 0.8, 0.79), (0.62, 0.58, 0.6)) + pair((0.8, 0.8, 0.79), (0.62, 0.58, 0.6), method="global")
    cells += [
        record(0.795, dense=0.8, measure="wanda", method=m, checkpoint_sha256=training(n))
        for n in range(3)
        for m in ("local", "global")
    ]
    text = said(*cells)
    assert "than the average of Norm and Wanda" in text
    assert "averaged with equal weight over 1 network, 2 methods and all amounts (3 trainings)" in text
    assert (
        "In points of top-1 accuracy it is ahead of Norm (+19.7), not clearly different from Wanda (+0.17); it wins"
        in text
    )


def test_repaired_and_unrepaired_networks_are_claimed_apart():
    cells = pair((0.8, 0.8, 0.79), (0.62, 0.58, 0.6))
    cells += pair((0.7, 0.7, 0.71), (0.79, 0.8, 0.79), compensation="least_squares")
    lead, _, *rest = sentences_of(content(*cells))
    assert lead.startswith("With constant compensation: ")
    assert "points more" in lead
    assert rest[0].startswith("With least squares compensation: ")
    assert "points less" in rest[0]


def test_a_single_measure_and_amount_0_win_nothing():
    alone = content(record(0.8), record(0.7, amount=0.8))
    assert "highest mean" not in " ".join(sentences_of(alone))
    assert {cell.mark for row in tables("accuracy", alone)[0].rows for cell in row} == {""}
    nothing = content(record(0.88, amount=0.0), record(0.87, amount=0.0, measure="norm"))
    assert sentences_of(nothing) == ()
    assert {cell.mark for row in tables("accuracy", nothing)[0].rows for cell in row} == {""}
    assert difference_tables(nothing) == ()


def test_what_does_not_vary_has_no_interval_in_a_table():
    cells = [record(0.8, checkpoint_sha256=training(n)) for n in range(3)]
    cells += [record(0.8 + n * 1e-6, amount=0.8, checkpoint_sha256=training(n)) for n in range(3)]
    (table,) = tables("accuracy", content(*cells))
    assert [cell.text for cell in table.rows[0]] == ["Weighted PageRank", "80.0", "80.0"]


def test_the_smallest_good_network_loses_at_most_a_point():
    near, far = record(0.871, dense=0.88, amount=0.5), record(0.86, dense=0.88, amount=0.8)
    assert "has 50 % of the parameters" in said(near, far)
    assert "smallest network" not in said(far)


def test_baselines_can_be_chosen(results, tmp_path, capsys):
    chosen = content_of([results], baselines=["random", "norm", "activation"])
    assert {c.baseline for c in chosen.comparisons} == {"random", "norm", "activation"}
    assert "than the average of Activation, Norm and Random" in sentences_of(chosen)[0]
    assert tiles_of(chosen)[1][1] == "against the average of the others"
    arguments = ["report", str(results), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--baselines", "norm", "katz"]) == 2
    assert "baselines ['katz'] have no finished cell" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_markdown_has_the_tables_and_names_its_pictures(tmp_path):
    write_experiment(tmp_path / "results", models=["SyntheticTwo"], amounts=(0.5,), seeds=(0, 1, 2))
    written = write_report([tmp_path / "results"], tmp_path, pictures=["accuracy", "size"], formats=["svg"])
    text = written.markdown.read_text()
    assert text.startswith("# Pruning ")
    assert "![Top-1 accuracy](accuracy_synthetictwo-on-syntheticdata.svg)" in text
    assert "## Weighted PageRank against the others" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 8
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1, table


def test_tables_become_markdown_latex_and_csv():
    rows = (
        (Cell("a_b & c"), Cell("−0.5 [−1.0, +0.1]", "1 – 2 – 3", "worse")),
        (Cell('say "x|y"'), Cell("50 %", mark="best")),
    )
    table = Table("kind", "What 50 % cost", ("Against", "Points"), rows)
    assert markdown_table(table).splitlines()[2:] == [
        "| a_b & c | ▼ −0.5 [−1.0, +0.1] (1 – 2 – 3) |",
        '| say "x\\|y" | **50 %** |',
    ]
    latex = latex_table(table)
    assert r"a\_b \& c & $\downarrow$ $-$0.5 [$-$1.0, +0.1] \\" in latex
    assert r"\textbf{50 \%}" in latex
    assert r"\caption{What 50 \% cost}" in latex
    assert (
        csv_table(table)
        == 'Against,Points,"Points, note"\na_b & c,"−0.5 [−1.0, +0.1]",1 – 2 – 3\n"say ""x|y""",50 %,\n'
    )


def test_every_table_is_a_file_of_each_kind(results, tmp_path):
    written = write_report([results], tmp_path)
    assert len(written.tables) == 2 * len(all_tables(content_of([results])))
    assert {path.suffix for path in written.tables} == {".tex", ".csv"}
    assert len({path.name for path in written.tables}) == len(written.tables)
    for path in written.tables:
        text = path.read_text()
        assert text.startswith(r"\begin{table}") if path.suffix == ".tex" else text.count("\n") >= 2


def test_the_command_writes_the_files_and_names_them(results, tmp_path, capsys):
    assert main(["report", str(results), "--output", str(tmp_path / "out"), "--csv"]) == 0
    out = capsys.readouterr().out
    assert "252 cells finished, 2 failed" in out
    for name in ("report.html", "report.md", "results.csv"):
        assert (tmp_path / "out" / name).is_file()
        assert str(tmp_path / "out" / name) in out


def test_the_command_says_what_is_wrong_and_fails(results, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "mlprank report: error: no results at" in capsys.readouterr().err
    fitted = tmp_path / "fitted"
    fitted.mkdir()
    (fitted / "metrics.csv").write_text("epoch,val_top1\n0,0.5\n")
    assert main(["report", str(fitted)]) == 2
    assert "is a run of `mlprank fit`" in capsys.readouterr().err
    (tmp_path / "records.jsonl").write_text('{"schema_version": 5}\n')
    assert main(["report", str(tmp_path)]) == 2
    assert "schema version 5" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(results), "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert f"{tmp_path} is left out: " in told.err
    assert "252 cells finished" in told.out


def test_an_output_that_cannot_be_written_is_said(results, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(results), "--output", str(tmp_path / "file")]) == 2
    assert "mlprank report: error" in capsys.readouterr().err


def test_no_results_directory_is_refused():
    with pytest.raises(ValueError, match="at least one results directory"):
        content_of([])


def test_chosen_pictures_alone_are_drawn_in_chosen_formats_and_shown(tmp_path, capsys):
    write_experiment(tmp_path / "results", models=["SyntheticTwo"], amounts=(0.5,), seeds=[0])
    out = tmp_path / "out"
    arguments = ["report", str(tmp_path / "results"), "--output", str(out), "--pictures", "accuracy", "lost"]
    assert main([*arguments, "--formats", "png", "pdf"]) == 0
    for ending in ("png", "pdf"):
        assert {path.name.partition("_")[0] for path in out.glob(f"*.{ending}")} == {"accuracy", "lost"}
    text = (out / "report.md").read_text()
    assert "](accuracy_" in text
    assert "](latency_" not in text
    capsys.readouterr()


def test_pictures_are_drawn_where_they_are_asked_for(tmp_path):
    write_experiment(tmp_path / "results", models=["SyntheticTwo"], methods=["local"], amounts=(0.5,), seeds=[0])
    for number, (asked, kinds) in enumerate([([], set()), (["--pictures"], set(PICTURE_KINDS[:6]))]):
        out = tmp_path / str(number)
        assert main(["report", str(tmp_path / "results"), "--output", str(out), *asked, "--formats", "svg"]) == 0
        assert {path.name.partition("_")[0] for path in out.glob("*.svg")} == kinds


def test_the_best_mean_is_marked_and_equal_means_are_not():
    cells = [
        record(top1, measure=measure, amount=amount, checkpoint_sha256=training(n))
        for n in range(3)
        for measure, amount, top1 in (("norm", 0.5, 0.8), ("wanda", 0.5, 0.7), ("norm", 0.9, 0.1), ("wanda", 0.9, 0.1))
    ]
    (table,) = tables("accuracy", content(*cells))
    marks = {row[0].text: [cell.mark for cell in row[1:]] for row in table.rows}
    assert marks["Norm"] == ["best", ""]
    assert marks["Wanda"] == ["", ""]


def test_the_baseline_is_no_part_of_the_configuration():
    dense = record(measure="dense", method="none", compensation="none", graph="none", amount=0.0)
    rows = {row[0].text: row[1].text for row in configuration_table([dense, record(amount=0.3)]).rows}
    assert rows["Amounts"] == "0.3"
    assert rows["Methods"] == "local"
    assert rows["Compensation"] == "constant"
