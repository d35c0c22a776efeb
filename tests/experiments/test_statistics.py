import math

import numpy as np
import pytest
from scipy import stats

from mlprank.experiments.statistics import (
    compare,
    find_reference,
    mean_interval,
    replicates,
    retention_advantage,
    series_label,
)
from tests.experiments.synthetic import parameters, record


def test_the_interval_of_1_2_3_is_that_of_the_textbook():
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert interval.num == 3
    assert (interval.low, interval.high) == pytest.approx((2 - 2.48413771, 2 + 2.48413771))


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 30, 31, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_interval_equals_scipys(num, confidence):
    values = np.random.default_rng(num).normal(0.8, 0.02, num)
    low, high = stats.t.interval(confidence, num - 1, loc=values.mean(), scale=stats.sem(values))
    interval = mean_interval(values, confidence=confidence)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-9)


def test_one_value_has_no_interval():
    interval = mean_interval([0.5])
    assert (interval.mean, interval.half_width, interval.low, interval.high) == (0.5, None, 0.5, 0.5)


def test_equal_values_have_an_interval_of_width_zero():
    assert mean_interval([0.5, 0.5, 0.5]).half_width == 0.0


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_values_and_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match=r"mean_interval: values must"):
        mean_interval(values)


def test_a_confidence_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        mean_interval([1.0, 2.0], confidence=95)


def test_a_seed_makes_replicates_and_other_arguments_make_curves():
    assert series_label(parameters(measure="random", measure_args={"seed": 3})) == "random"
    assert series_label(parameters(measure="norm", measure_args={"p": 2})) == "norm(p=2)"


def grid():
    """Weighted PageRank against norm: 3 seeds, 2 amounts; differences 0.02, 0.00, −0.01 and 0.1, 0.2, 0.3."""
    ours = {0.3: (0.82, 0.80, 0.79), 0.5: (0.6, 0.7, 0.8)}
    theirs = {0.3: (0.80, 0.80, 0.80), 0.5: (0.5, 0.5, 0.5)}
    for measure, values in (("weighted_pagerank", ours), ("norm", theirs)):
        for amount, found in values.items():
            for seed, top1 in enumerate(found):
                yield record(top1, dense=1.0, measure=measure, amount=amount, calibration_seed=seed)


def test_wins_ties_losses_and_differences_of_a_known_grid():
    low, high, overall = compare(grid())
    assert (low.amount, high.amount, overall.amount) == (0.3, 0.5, None)
    assert (low.wins, low.ties, low.losses) == (1, 1, 1)
    assert (high.wins, high.ties, high.losses) == (3, 0, 0)
    assert (overall.wins, overall.ties, overall.losses) == (4, 1, 1)
    differences = [0.02, 0.0, -0.01]
    paired = stats.ttest_rel([0.82, 0.80, 0.79], [0.80, 0.80, 0.80]).confidence_interval(0.95)
    assert low.accuracy.mean == pytest.approx(np.mean(differences))
    assert (low.accuracy.low, low.accuracy.high) == pytest.approx((paired.low, paired.high))
    assert low.verdict == "undecided"
    per_seed = [(0.02 + 0.1) / 2, (0.0 + 0.2) / 2, (-0.01 + 0.3) / 2]
    assert overall.accuracy.mean == pytest.approx(np.mean(per_seed))
    assert overall.accuracy.half_width == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(per_seed))
    assert overall.accuracy.num == 3


def test_the_verdict_needs_an_interval_that_excludes_zero():
    better = [record(0.8 + seed / 1000, calibration_seed=seed) for seed in range(3)]
    worse = [record(0.5, measure="norm", calibration_seed=seed) for seed in range(3)]
    assert compare(better + worse)[0].verdict == "better"
    assert compare(better + worse, reference="norm")[0].verdict == "worse"
    assert compare([better[0], worse[0]])[0].verdict == "undecided"


@pytest.mark.parametrize(
    "other",
    [
        {"model": "Other"},
        {"dataset": "Other"},
        {"checkpoint_sha256": "1" * 64},
        {"method": "global"},
        {"method_args": {"normalise": "none"}},
        {"compensation": "zero"},
        {"graph": "dag"},
        {"protect_output": False},
        {"calibration_samples": 8},
        {"calibration_seed": 9},
        {"amount": 0.1},
    ],
)
def test_cells_that_differ_in_more_than_the_measure_are_no_pair(other):
    assert compare([record(0.8), record(0.5, measure="norm", **other)]) == ()


def test_one_checkpoint_in_two_places_is_still_a_pair():
    pair = [record(0.8), record(0.5, measure="norm", checkpoint="elsewhere.ckpt")]
    assert len(compare(pair)) == 2


def test_seeds_of_random_are_averaged_within_a_pair():
    cells = [record(0.8)] + [
        record(top1, measure="random", measure_args={"seed": seed}) for seed, top1 in enumerate((0.4, 0.6))
    ]
    comparison = compare(cells)[0]
    assert comparison.accuracy.mean == pytest.approx(0.3)
    assert comparison.wins == 1


def test_failed_cells_and_the_dense_baseline_are_left_out():
    cells = [record(0.8), record(None, measure="norm"), record(0.9, measure="dense", amount=0.5)]
    assert compare(cells) == ()
    assert retention_advantage(cells) is None


def test_without_the_reference_there_is_no_comparison():
    assert compare([record(0.5, measure="norm"), record(0.5, measure="random")]) == ()
    assert find_reference([record(0.5, measure="norm")]) is None


def test_the_reference_without_arguments_comes_first():
    cells = [record(0.5, measure_args={"gamma": 0.5}), record(0.5)]
    assert find_reference(cells) == "weighted_pagerank"
    assert find_reference(cells[:1]) == "weighted_pagerank(gamma=0.5)"


def test_the_advantage_is_the_mean_difference_of_retention_with_seeds_as_units():
    cells = []
    for seed, (ours, norm, wanda) in enumerate([(0.8, 0.6, 0.7), (0.7, 0.6, 0.5), (0.9, 0.6, 0.9)]):
        for measure, top1 in (("weighted_pagerank", ours), ("norm", norm), ("wanda", wanda)):
            cells.append(record(top1, dense=0.9, measure=measure, calibration_seed=seed))
    advantage = retention_advantage(cells)
    per_seed = np.array([(0.2 + 0.1) / 2, (0.1 + 0.2) / 2, (0.3 + 0.0) / 2]) / 0.9
    assert advantage.mean == pytest.approx(per_seed.mean())
    assert advantage.num == 3
    only_norm = retention_advantage(cells, baselines=["norm"])
    assert only_norm.mean == pytest.approx(0.2 / 0.9)


def test_a_baseline_that_was_not_run_is_named():
    with pytest.raises(ValueError, match=r"baselines \['wanda'\] have no finished cell; there are \['norm'\]"):
        retention_advantage([record(0.8), record(0.5, measure="norm")], baselines=["wanda"])


def test_methods_and_calibration_draws_of_one_trained_network_are_one_replicate():
    """Two trained networks, two methods and two draws each: the interval is that of two values, not of eight."""
    cells = []
    for checkpoint, lead in (("a" * 64, 0.1), ("b" * 64, 0.3)):
        for method in ("local", "global"):
            for seed in (0, 1):
                place = {"checkpoint_sha256": checkpoint, "method": method, "calibration_seed": seed}
                cells += [record(0.5 + lead, dense=1.0, **place), record(0.5, dense=1.0, measure="norm", **place)]
    low, high = stats.t.interval(0.95, 1, loc=0.2, scale=stats.sem([0.1, 0.3]))
    at_amount, overall = compare(cells)
    for interval in (at_amount.accuracy, overall.retention, retention_advantage(cells)):
        assert interval.num == 2
        assert (interval.low, interval.high) == pytest.approx((low, high))
    assert overall.wins == 8


def test_of_one_trained_network_the_calibration_draws_are_the_replicates():
    cells = [record(0.6, calibration_seed=seed, method=method) for seed in (0, 1) for method in ("local", "global")]
    other = record(0.6, model="Other", checkpoint_sha256="c" * 64)
    names = replicates([*cells, other])
    assert len(set(names)) == 3
    assert names[0] == names[1] != names[2] == names[3]
