import dataclasses

import numpy as np

from mlprank.experiments.records import LayerWidth
from mlprank.experiments.store import RecordStore
from mlprank.report.content import content_of
from mlprank.report.data import front_of, front_steps, lost_tables, panels_of, short_names
from mlprank.report.page import page_html
from mlprank.report.ridges import ridges_of
from tests.experiments.synthetic import MEASURES, metrics, record, write_experiment


def test_the_pareto_front_holds_what_nothing_beats():
    def cell(measure, top1, kept):
        layers = (LayerWidth(name="fc1", width=100, kept=kept),)
        return dataclasses.replace(record(measure=measure), metrics=metrics(top1, layers=layers))

    cells = [cell("norm", 0.5, 10), cell("wanda", 0.4, 20), cell("random", 0.7, 20), cell("activation", 0.7, 30)]
    front = front_of(panels_of(cells), cost="size")
    assert [entry.label for entry in front if entry.on_front] == ["norm", "random"]
    assert front_steps(front) == [(16000, 0.5), (32000, 0.5), (32000, 0.7)]


def test_measures_that_lost_the_same_share_one_heat_map(tmp_path):
    write_experiment(tmp_path, amounts=(0.3, 0.5, 0.8), seeds=(0, 1))
    for panel in content_of([tmp_path]).panels:
        tables = lost_tables(panel)
        assert sum(len(labels) for labels, _ in tables) == len(MEASURES)
        assert (len(tables) == 1) == (panel.setting.method == "local")


def test_long_layer_names_lose_their_common_beginning_and_short_ones_stay():
    assert short_names(["stack.linear.0", "stack.linear.2"]) == ["…0", "…2"]
    assert short_names(["fc1", "fc10"]) == ["fc1", "fc10"]
    assert short_names(["encoder.0.fc", "encoder.1.fc"]) == ["…0.fc", "…1.fc"]
    assert short_names(["a.b", "c.d"]) == ["a.b", "c.d"]
    assert short_names(["stack.linear.0"]) == ["stack.linear.0"]


def test_histograms_count_every_neuron_once_and_split_at_the_mask(tmp_path):
    scores = np.random.default_rng(0).random(50)
    kept = scores > np.median(scores)
    with RecordStore(tmp_path) as store:
        store.append(record(), scores={"fc1": scores, "fc10": scores[:5], "fc2": scores[:7]}, kept={"fc1": kept})
        records = store.records
    (ridges,) = ridges_of([(tmp_path, records)])
    assert [ridge.layer for ridge in ridges.layers] == ["fc1", "fc2", "fc10"]
    assert sum(ridges.layers[0].kept) == sum(ridges.layers[0].removed) == 25
    assert sum(ridges.layers[1].kept) == 7
    assert not any(ridges.layers[1].removed)


def test_settings_that_vary_are_told_apart_in_panels(tmp_path):
    with RecordStore(tmp_path) as store:
        for protect in (True, False):
            for compensation in ("constant", "zero"):
                store.append(record(protect_output=protect, compensation=compensation))
    content = content_of([tmp_path])
    assert set(content.subtitles.values()) == {
        "constant compensation, output protected",
        "zero compensation, output protected",
        "constant compensation, output pruned too",
        "zero compensation, output pruned too",
    }
    assert 'data-filter="compensation"' in page_html(content)


def test_several_results_directories_are_joined_and_the_last_counts(tmp_path):
    for name, top1 in (("a", 0.5), ("b", 0.6)):
        with RecordStore(tmp_path / name) as store:
            store.append(record(top1))
            store.append(record(top1, measure="norm" if name == "a" else "wanda"))
    content = content_of([tmp_path / "a", tmp_path / "b"])
    assert len(content.records) == 3
    assert content.panels[0].curves[0].points[0].top1.mean == 0.6
