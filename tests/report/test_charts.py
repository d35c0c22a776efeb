"""The charts of a report: curves with their intervals, and leads."""

import re

import pytest

from mlprank.experiments.statistics import Comparison, Estimate, Setting
from mlprank.report.charts import draw_accuracy, draw_differences
from mlprank.report.content import Curve, Panel, Point
from mlprank.utils.charts import compose, looks_of, specification, write_chart

LOOKS = looks_of(["weighted_pagerank", "norm"])
SETTING = Setting("Net", "Data", "local", "constant", ())


def point(amount, top1, low=None, high=None):
    return Point(amount, Estimate(top1, low, high, (top1,)), {}, 1.0)


def lead(baseline, mean, low, high, verdict):
    estimate = Estimate(mean, low, high, (mean,))
    return Comparison((SETTING,), "weighted_pagerank", baseline, None, 1, 0, 0, estimate, estimate, None, verdict)


PANEL = Panel(
    SETTING,
    point(0.0, 0.88),
    (
        Curve("weighted_pagerank", {0.5: point(0.5, 0.86, 0.85, 0.87)}, {}),
        Curve("norm", {0.5: point(0.5, 0.7, 0.6, 0.78), 0.9: point(0.9, 0.2)}, {}),
    ),
)
LEADS = (lead("norm", 0.02, 0.01, 0.03, "better"), lead("random", 0.1, None, None, ""))
ALL = {
    "accuracy": [draw_accuracy(PANEL, LOOKS, title="Net")],
    "accuracies": [draw_accuracy(PANEL, LOOKS, title="Net", width=380)] * 3,
    "differences": [draw_differences(LEADS, smallest_effect=0.002, title="Net")],
}


def values(spec):
    """All rows that a specification holds."""
    return [row for rows in spec["datasets"].values() for row in rows]


@pytest.mark.parametrize("name", ALL)
def test_every_chart_is_valid_vega_lite_and_becomes_a_whole_picture(name, tmp_path):
    assert compose(ALL[name]).to_dict(validate=True)["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    data = write_chart(specification(ALL[name]), tmp_path / "chart.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"IEND" in data[-12:]


def test_accuracy_axes_end_at_100_percent_at_most():
    high = Panel(SETTING, point(0.0, 0.999), (Curve("norm", {0.95: point(0.95, 0.99, 0.97, 1.0)}, {}),))
    spec = specification([draw_accuracy(high, LOOKS, title="t")])
    domains = re.findall(r"'domain': \[(\d[^\]]*)\]", str(spec))
    assert {text.split(", ")[1] for text in domains} == {"100"}


def test_curves_start_at_the_dense_network_and_the_pointer_tells_all_values():
    rows = values(specification(ALL["accuracy"]))
    starts = [row for row in rows if row.get("amount") == 0]
    assert {row["series"] for row in starts} == {"Norm", "Weighted PageRank"}
    assert {row["top1"] for row in starts} == {88.0}
    first, last = [row for row in rows if "Norm" in row]
    assert (first["left"], first["right"]) == (0, 70), "half way to the neighbours"
    assert (first["Weighted PageRank"], first["Norm"]) == ("86.00 % (85.00 to 87.00)", "70.00 % (60.00 to 78.00)")
    assert last == {"Norm": "20.00 %", "amount": 90.0, "left": 70, "right": 100}


def test_the_legend_switches_series():
    assert "'bind': 'legend'" in str(specification(ALL["accuracy"]))


def test_leads_say_what_is_ahead_and_what_has_too_few_trainings():
    told = {row["baseline"]: row["verdict"] for row in values(specification(ALL["differences"])) if "verdict" in row}
    assert told == {"Norm": "ahead", "Random": "too few trainings"}
