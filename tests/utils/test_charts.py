"""Charts: what they hold, how series look, and the files that they become."""

import math

import pytest

from mlprank.utils import charts
from mlprank.utils.charts import CostPoint, HeatMap, ScoredLayer

LOOKS = charts.looks_of(["weighted_pagerank", "norm"])
POINTS = (
    CostPoint("norm", 1.0, 0.5, "90 %"),
    CostPoint("norm", 2.0, 0.87, "50 %", chosen=True),
    CostPoint("weighted_pagerank", 3.0, 0.86, "30 %"),
)
FRACTIONS = {("0.1", "0"): 0.5, ("0.1", "1e-5"): None, ("0.01", "0"): 0.9, ("0.01", "1e-5"): 0.8}
HEAT = HeatMap(FRACTIONS, "lr", "decay")
SCORES = (ScoredLayer("net.0", (0.5, 0.3, 0.2), (True, False, True)), ScoredLayer("net.2", (1.0,)))
ALL = {
    "front": [charts.draw_front(POINTS, LOOKS, title="Net", cost="size, MB", dense=(4.0, 0.88))],
    "heat map": [charts.draw_heat_map(HEAT, title="Grid", search=True, width=200)],
    "scores": [charts.draw_scores(SCORES, title="Net")] * 2,
}


def values(spec):
    """All rows that a specification holds."""
    return [row for rows in spec["datasets"].values() for row in rows]


@pytest.mark.parametrize("name", ALL)
def test_every_chart_is_valid_vega_lite(name):
    assert (
        charts.compose(ALL[name])
        .to_dict(validate=True)["$schema"]
        .startswith("https://vega.github.io/schema/vega-lite/")
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_every_chart_becomes_a_whole_file(name, ending, start, tmp_path):
    path = charts.write_chart(charts.specification(ALL[name]), tmp_path / f"chart.{ending}")
    data = path.read_bytes()
    assert data.startswith(start)
    assert {"png": b"IEND", "svg": b"</svg>", "pdf": b"%%EOF"}[ending] in data[-12:]


def test_a_chart_of_altair_becomes_the_same_file(tmp_path):
    chart, spec = charts.compose(ALL["front"]), charts.specification(ALL["front"])
    files = [charts.write_chart(c, tmp_path / f"{n}.svg").read_text() for n, c in enumerate((chart, spec))]
    assert files[0] == files[1]


def test_another_ending_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"chart\.jpg: a chart is written as one of \.png, \.svg, \.pdf, got '\.jpg'"):
        charts.write_chart(charts.specification(ALL["front"]), tmp_path / "chart.jpg")
    assert not list(tmp_path.iterdir())


def test_dark_ground_turns_ground_and_ink(tmp_path):
    light = charts.specification(ALL["front"])
    dark = light | {"params": [{"name": "dark", "value": True}, *light["params"][1:]]}
    texts = [charts.write_chart(spec, tmp_path / f"{n}.svg").read_text() for n, spec in enumerate((light, dark))]
    assert ["#ffffff" in text and "#171e26" not in text for text in texts] == [True, False]
    assert ["#E69F00" in text for text in texts] == [True, False]
    assert ["#F4BC45" in text for text in texts] == [False, True]


def test_fronts_end_at_100_percent_at_most():
    front = charts.draw_front([CostPoint("norm", 1.0, 1.0)], LOOKS, title="t", cost="MB", dense=(2.0, 1.0))
    assert "'domain': [99, 100]" in str(charts.specification([front]))


def test_the_legend_switches_series():
    assert "'bind': 'legend'" in str(charts.specification(ALL["front"]))


def test_the_front_shows_the_useful_part_and_names_the_chosen_network(tmp_path):
    spec = charts.specification(ALL["front"])
    assert {row["top1"] for row in values(spec) if "front" in row} == {87.0, 86.0}, "50 % is out of reach of 88 %"
    text = charts.write_chart(spec, tmp_path / "front.svg").read_text()
    assert "chosen: Norm" in text
    assert "50 %: 87.0 %" in text


def test_sorted_scores_keep_their_sum_and_their_cut():
    steps = [row for row in values(charts.specification(ALL["scores"])) if row.get("run", "").startswith("1.")]
    assert [row["state"] for row in steps] == ["kept", "kept", "pruned", "pruned", "kept", "kept"]
    assert [row["x"] for row in steps] == [0, 33.33, 33.33, 66.67, 66.67, 100]
    assert [round((row["y"] - 1) / 0.86 * 1.5 / 3, 3) for row in steps[::2]] == [0.5, 0.3, 0.2]


def test_a_wide_layer_has_few_corners_and_the_right_cut():
    layer = ScoredLayer("fc", tuple(1.0 + i for i in range(5000)), tuple(i >= 1234 for i in range(5000)))
    rows = values(charts.specification([charts.draw_scores([layer], title="wide")]))
    assert len(rows) < 100
    (cut,) = [row["x"] for row in rows if row.get("run") == "0.1"][:1]
    assert cut == pytest.approx(100 * (5000 - 1234) / 5000)


def test_the_map_of_a_search_has_the_best_of_every_pair_and_nothing_where_trials_diverged():
    options = {"opt.lr": ["0.1", "0.2"], "opt.decay": ["0", "1"], "seed": ["7"]}
    points = [{"opt.lr": lr, "opt.decay": decay, "seed": "7"} for lr in ("0.1", "0.2") for decay in ("0", "1")]
    found = charts.search_map(options, zip([*points, points[0]], [0.5, 0.75, math.nan, 0.25, 0.4], strict=True))
    assert (found.row_title, found.column_title) == ("lr", "decay")
    assert found.values == {("0.1", "0"): 0.5, ("0.1", "1"): 0.75, ("0.2", "0"): None, ("0.2", "1"): 0.25}
    one = charts.search_map({"opt.lr": ["0.1", "0.2"]}, [({"opt.lr": "0.2"}, 0.75), ({"opt.lr": "0.1"}, None)])
    assert one.values == {("", "0.1"): None, ("", "0.2"): 0.75}


def test_the_best_of_a_search_is_outlined_where_there_is_one():
    (best,) = [row for row in values(charts.specification(ALL["heat map"])) if row.get("best")]
    assert (best["of"], best["at"]) == ("0.01", "0")
    nothing = charts.search_map({"lr": ["1"]}, [({"lr": "1"}, None)])
    assert "datum.best" not in str(charts.specification([charts.draw_heat_map(nothing, title="t", search=True)]))


def test_every_measure_keeps_its_look_and_no_two_share_one():
    known = ("weighted_pagerank", "modified_pagerank", "random", "norm", "activation", "wanda", "reconstruction")
    alone, together = charts.looks_of(["wanda"])["wanda"], charts.looks_of(known)
    assert alone == together["wanda"]
    many = charts.looks_of([*known, *[f"norm(p={p})" for p in range(2, 20)]])
    drawn = [look.channels for look in many.values()]
    assert len({look.name for look in many.values()}) == len(many) == 25
    assert len({str((channels["color"], channels["strokeDash"])) for channels in drawn}) == len(many)
    assert len({look.channels["shape"] for look in together.values()}) == 7
    assert charts.looks_of(["norm(p=2)"])["norm(p=2)"].channels == together["norm"].channels


def test_a_series_is_called_as_a_person_calls_it():
    labels = ["norm(p=2)", "weighted_pagerank", "my.package.Katz"]
    assert list(map(charts.display_name, labels)) == ["Norm (p=2)", "Weighted PageRank", "Katz"]
    assert "#E69F00" in str(charts.looks_of(["norm", "weighted_pagerank"])["norm"].channels["color"])


def test_a_network_that_is_dearer_and_worse_is_not_on_the_front():
    points = [CostPoint("a", 2, 0.8), CostPoint("a", 3, 0.7), CostPoint("a", 1, 0.5)]
    assert [point.cost for point in charts.pareto_front(points)] == [1, 2]


def test_layer_names_stay_whole_or_differ_by_words():
    assert charts.short_names(["net.stack.0", "net.stack.2"]) == ["stack.0", "stack.2"]
    assert charts.short_names(["stack.linear.0", "stack.linear.2"]) == ["linear.0", "linear.2"]
    assert charts.short_names(["fc1", "fc10"]) == ["fc1", "fc10"]
    assert charts.short_names(["encoder.0.fc", "encoder.1.fc"]) == ["encoder.0.fc", "encoder.1.fc"]
    assert charts.short_names(["a.b", "c.d"]) == ["b", "d"]
    assert charts.short_names(["0", "2"]) == ["0", "2"]
    assert charts.short_names(["a.0", "b.a.0"]) == ["a.0", "b.a.0"]
