"""What a report gathers from results directories."""

import dataclasses
import json

import numpy as np
import pytest

from mlprank.experiments.records import LayerWidth, RecordStore
from mlprank.report import page_html
from mlprank.report.content import content_of, cost_points, lost_maps, panels_of, subtitles
from mlprank.utils.charts import pareto_front
from tests.experiments.synthetic import MEASURES, metrics, record, training, write_experiment


def cell(measure, top1, kept):
    layers = (LayerWidth(name="fc1", width=100, kept=kept),)
    return dataclasses.replace(record(measure=measure), metrics=metrics(top1, layers=layers))


def test_the_front_is_what_nothing_beats_in_both():
    cells = [cell("norm", 0.5, 10), cell("wanda", 0.4, 20), cell("random", 0.7, 20), cell("activation", 0.7, 30)]
    points = cost_points(panels_of(cells), cost="size")
    front = pareto_front(points)
    assert [point.series for point in front] == ["norm", "random"]
    assert [(point.cost, point.top1) for point in front] == [(16000, 0.5), (32000, 0.7)]
    assert not any(point.chosen for point in points), "all lose more than a point of 88 %"


def test_the_chosen_network_is_the_cheapest_that_loses_at_most_a_point():
    cells = [cell("norm", 0.86, 10), cell("wanda", 0.871, 20), cell("random", 0.88, 30)]
    assert [point.series for point in cost_points(panels_of(cells), cost="size") if point.chosen] == ["wanda"]


def test_networks_that_all_cost_what_the_dense_one_costs_have_no_front():
    assert cost_points(panels_of([cell("norm", 0.8, 100), cell("wanda", 0.7, 100)]), cost="size") == ()
    assert len(cost_points(panels_of([cell("norm", 0.8, 100), cell("wanda", 0.7, 90)]), cost="size")) == 2


def test_measures_that_lost_the_same_share_one_heat_map(tmp_path):
    write_experiment(tmp_path, amounts=(0.3, 0.5, 0.8), seeds=(0, 1))
    for panel in content_of([tmp_path]).panels:
        maps = lost_maps(panel)
        assert sum(len(labels) for labels, _ in maps) == len(MEASURES)
        assert (len(maps) == 1) == (panel.setting.method == "local")


def test_scores_come_layer_by_layer_with_their_masks(tmp_path):
    scores = np.random.default_rng(0).random(50)
    kept = scores > np.median(scores)
    with RecordStore(tmp_path) as store:
        store.append(record(), scores={"fc10": scores[:5], "fc1": scores, "fc2": scores[:7]}, kept={"fc1": kept})
    ((_, layers),) = content_of([tmp_path]).scores
    first, *others = layers
    assert (first.name, first.scores, first.kept) == ("fc1", tuple(scores), tuple(kept))
    assert {(layer.name, len(layer.scores), layer.kept) for layer in others} == {("fc2", 7, ()), ("fc10", 5, ())}


def test_of_many_cells_the_scores_of_the_one_nearest_a_half_are_shown(tmp_path):
    write_experiment(tmp_path, models=["SyntheticTwo"], measures=["norm", "wanda"], amounts=(0.1, 0.6), seeds=(0, 1))
    found = content_of([tmp_path]).scores
    assert [(cell.parameters.measure, cell.parameters.method, cell.parameters.amount) for cell, _ in found] == [
        ("norm", "local", 0.6),
        ("wanda", "local", 0.6),
    ]


def test_settings_that_vary_are_told_apart_in_panels(tmp_path):
    with RecordStore(tmp_path) as store:
        for protect in (True, False):
            for compensation in ("constant", "zero"):
                store.append(record(protect_output=protect, compensation=compensation))
    content = content_of([tmp_path])
    assert set(subtitles(panel.setting for panel in content.panels).values()) == {
        "constant compensation, output protected",
        "zero compensation, output protected",
        "constant compensation, output pruned too",
        "zero compensation, output pruned too",
    }
    assert 'data-filter="conditions"' in page_html(content)


def test_several_results_directories_are_joined_and_the_last_counts(tmp_path):
    for name, top1 in (("a", 0.5), ("b", 0.6)):
        with RecordStore(tmp_path / name) as store:
            store.append(record(top1))
            store.append(record(top1, measure="norm" if name == "a" else "wanda"))
    content = content_of([tmp_path / "a", tmp_path / "b"])
    assert len(content.records) == 3
    assert content.panels[0].curves[0].points[0.5].top1.mean == 0.6


def test_a_point_has_one_value_for_every_training(tmp_path):
    with RecordStore(tmp_path) as store:
        for number in range(3):
            for seed in range(2):
                top1 = 0.8 + number / 100 + seed / 1000
                store.append(record(top1, checkpoint_sha256=training(number), calibration_seed=seed))
    estimate = content_of([tmp_path]).panels[0].curves[0].points[0.5].top1
    assert estimate.values == pytest.approx((0.8005, 0.8105, 0.8205))


def write_trials(directory, trials):
    """What `mlprank tune` leaves of trials: (point, validation accuracy, None where diverged, or an error)."""
    for number, (point, outcome) in enumerate(trials):
        place = directory / "trials" / f"{number:016x}"
        place.mkdir(parents=True)
        plain = {"schema": 1, "key": place.name, "point": point}
        if isinstance(outcome, str):
            (place / "failed.json").write_text(json.dumps(plain | {"error": outcome}))
        else:
            plain |= {"status": "done", "val_top1": outcome, "best_epoch": 1, "duration_s": 1.0, "history": []}
            (place / "result.json").write_text(json.dumps(plain))
    (directory / "grid.json").write_text('{"schema": 1}')


def point(lr, decay):
    return {"model.optimizer.init_args.lr": lr, "model.optimizer.init_args.weight_decay": decay, "seed_everything": 0}


def test_a_grid_search_is_read_and_shown(tmp_path):
    trials = [(point(lr, d), lr / 2 + d) for lr in (0.1, 1.0) for d in (0.0, 0.25)]
    trials += [(point(0.01, 0.0), None), (point(0.01, 0.25), "RuntimeError: out of memory")]
    write_trials(tmp_path / "search", trials)
    content = content_of([tmp_path / "search"])
    (search,) = content.searches
    assert (search.map.row_title, search.map.column_title) == ("lr", "weight_decay")
    values = {("0.01", "0"): None, ("0.01", "0.25"): None, ("0.1", "0"): 0.05, ("0.1", "0.25"): 0.3}
    assert search.map.values == values | {("1", "0"): 0.5, ("1", "0.25"): 0.75}
    assert search.trials[0] == ("lr 1, weight_decay 0.25", 0.75, "epoch 2")
    assert {note for _, score, note in search.trials if score is None} == {"diverged", "RuntimeError: out of memory"}
    page = page_html(content)
    assert '"of":"1","at":"0.25","value":75.0,"said":"75.0 %","best":true' in page
    assert "search: the best run reaches 75.0 % with lr 1, weight_decay 0.25." in page
    assert 'id="tuning"' in page


def test_a_grid_search_without_a_good_run_has_no_best(tmp_path):
    write_trials(tmp_path, [(point(0.1, 0.0), None), (point(0.2, 0.0), None)])
    content = content_of([tmp_path])
    page = page_html(content)
    assert "datum.best" not in page
    assert "every run failed" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"point": {"lr": 1}}', "best_epoch"),
        ('{"point": {"lr": 1}, "best_epoch": 1, "val_top1": 87.5}', "val_top1 must be in"),
    ],
)
def test_a_damaged_trial_is_named(tmp_path, text, message):
    write_trials(tmp_path, [(point(0.1, 0.0), 0.5)])
    (tmp_path / "trials" / f"{0:016x}" / "result.json").write_text(text)
    with pytest.raises(
        FileNotFoundError, match=rf"result\.json is damaged .*{message if message != 'is damaged' else ''}"
    ):
        content_of([tmp_path])


def test_a_bad_directory_costs_only_itself(tmp_path):
    write_trials(tmp_path / "search", [(point(0.1, 0.0), 0.5)])
    write_experiment(tmp_path / "good", models=["SyntheticTwo"], amounts=(0.5,), seeds=(0,), failures=0)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "records.jsonl").write_text("{}\n")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "grid.json").write_text("{}")
    names = ["search", "torn", "good", "missing", "open"]
    content = content_of([tmp_path / name for name in names])
    assert [path.name for path, _ in content.problems] == ["torn", "missing", "open"]
    assert (len(content.searches), len(content.records)) == (1, 14)
    page = page_html(content)
    assert "3 failed; " in page
    for _, text in content.problems:
        assert text.split(";")[0].split("'")[0] in page


def test_a_config_that_is_no_text_costs_only_itself(tmp_path):
    write_experiment(tmp_path, models=["SyntheticTwo"], methods=["local"], amounts=(0.5,), seeds=(0,), failures=0)
    (tmp_path / "config.yaml").write_bytes(b"name: \xff")
    content = content_of([tmp_path])
    assert (len(content.records), len(content.problems), content.configs) == (len(MEASURES), 1, [])


def test_damaged_scores_cost_only_their_picture(tmp_path):
    write_experiment(tmp_path, models=["SyntheticTwo"], methods=["local"], amounts=(0.5,), seeds=(0,), failures=0)
    broken = sorted((tmp_path / "scores").iterdir())[0]
    broken.write_bytes(b"no safetensors")
    content = content_of([tmp_path])
    assert len(content.scores) == len(MEASURES) - 1
    assert broken.name in content.problems[0][1]


FRONT = """amount,parameters,flops,bytes,latency_s,score,drop,keeps,chosen,seconds,widths
0.0,1000,2000,4000000,,0.9,0.0,True,False,0.1,64-32
0.5,500,1000,2000000,,0.89,0.01,True,False,0.1,32-16
0.75,250,500,1000000,,0.88,0.02,True,True,0.1,16-8
0.7,300,600,1200000,,0.87,0.03,True,False,0.1,19-10
"""


def test_experiments_grid_searches_and_shrinks_are_shown_together(tmp_path):
    (tmp_path / "shrunk").mkdir()
    (tmp_path / "shrunk" / "frontier.csv").write_text(FRONT)
    write_trials(tmp_path / "search", [(point(0.1, 0.0), 0.5)])
    write_experiment(tmp_path / "cells", models=["SyntheticTwo"], amounts=(0.5,), seeds=(0,), failures=0)
    content = content_of([tmp_path / name for name in ("shrunk", "search", "cells")])
    (found,) = content.shrunk
    assert found.dense == (4e6, 0.9)
    assert [(p.cost, p.chosen) for p in found.points] == [(1e6, True), (1.2e6, False), (2e6, False)]
    assert [p.cost for p in pareto_front(found.points)] == [1e6, 2e6]
    page = page_html(content)
    assert all(f'<section id="{name}">' in page for name in ("accuracy", "tuning", "shrunk"))
    assert (
        "shrunk: the chosen network has 25 % of the dense network&#39;s bytes and scores 88.0, against 90.0 dense."
        in page
    )


@pytest.mark.parametrize("text", ["", "amount,bytes\n", FRONT.replace("0.88", "nan"), FRONT.replace("4000000", "many")])
def test_a_damaged_front_is_named(tmp_path, text):
    (tmp_path / "frontier.csv").write_text(text)
    with pytest.raises(FileNotFoundError, match=r"frontier\.csv is damaged .*run the same shrink command again"):
        content_of([tmp_path])
