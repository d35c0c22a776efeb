import numpy as np
import pytest
from scipy import stats

from mlprank.experiments.statistics import (
    accuracy_interval,
    by_training,
    claims,
    compare,
    holm,
    mean_interval,
    series_label,
    setting_of,
)
from tests.experiments.synthetic import parameters, record, training


def cell(top1, number=0, **changes):
    """A cell of the training with this number."""
    return record(top1, **({"checkpoint_sha256": training(number)} | changes))


def test_the_interval_of_1_2_3_is_that_of_the_textbook():
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.num == 3
    assert (interval.low, interval.high) == pytest.approx((2 - 2.48413771, 2 + 2.48413771))


@pytest.mark.parametrize("num", [3, 4, 5, 6, 30, 31, 1000])
def test_the_interval_equals_scipys(num):
    values = np.random.default_rng(num).normal(0.8, 0.02, num)
    low, high = stats.t.interval(0.95, num - 1, loc=values.mean(), scale=stats.sem(values))
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("values", [[0.5], [0.4, 0.6]])
def test_fewer_than_three_values_have_no_interval_and_are_kept(values):
    for interval in (mean_interval(values), accuracy_interval(values)):
        assert (interval.mean, interval.low, interval.high) == (0.5, None, None)
        assert interval.values == tuple(values)


def test_what_does_not_vary_has_no_interval():
    for interval in (
        mean_interval([0.5, 0.5, 0.5]),
        accuracy_interval([1.0, 1.0, 1.0]),
        mean_interval([0.1 + 0.2, 0.3, 0.3]),
    ):
        assert (interval.low, interval.high) == (None, None)


@pytest.mark.parametrize("values", [[0.99, 0.999, 1.0], [0.0, 0.02, 0.1], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0]])
def test_the_interval_of_accuracies_stays_between_0_and_100_percent(values):
    interval = accuracy_interval(values)
    assert 0.0 < interval.low < interval.mean < interval.high < 1.0
    assert interval.mean == pytest.approx(np.mean(values))


def test_the_interval_of_accuracies_is_students_where_they_hardly_vary():
    values = [0.801, 0.802, 0.8035, 0.8005]
    student, bounded = mean_interval(values), accuracy_interval(values)
    assert (bounded.low, bounded.high) == pytest.approx((student.low, student.high), abs=2e-5)


def test_the_interval_of_accuracies_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        found = accuracy_interval(draw.beta(97 * 4, 3 * 4, size=4))
        covered += found.low <= 0.97 <= found.high
    assert 0.92 < covered / 1000 < 0.98


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
@pytest.mark.parametrize("function", [mean_interval, accuracy_interval])
def test_no_values_and_values_that_are_not_finite_are_refused(function, values):
    with pytest.raises(ValueError, match=r"interval: values must"):
        function(values)


def test_percentages_are_refused():
    with pytest.raises(ValueError, match=r"accuracies are fractions in \[0, 1\], got \[97\.0\]; divide percent by 100"):
        accuracy_interval([97.0])


def test_holms_correction_is_that_of_the_paper():
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_seed_makes_replicates_and_other_arguments_make_curves():
    assert series_label(parameters(measure="random", measure_args={"seed": 3})) == "random"
    assert series_label(parameters(measure="norm", measure_args={"p": 2})) == "norm(p=2)"


def grid():
    """Weighted PageRank against norm: 3 trainings, 2 amounts; differences 0.02, 0.00, −0.01 and 0.1, 0.2, 0.3."""
    ours = {0.3: (0.82, 0.80, 0.79), 0.5: (0.6, 0.7, 0.8)}
    theirs = {0.3: (0.80, 0.80, 0.80), 0.5: (0.5, 0.5, 0.5)}
    for measure, values in (("weighted_pagerank", ours), ("norm", theirs)):
        for amount, found in values.items():
            for number, top1 in enumerate(found):
                yield cell(top1, number, dense=1.0, measure=measure, amount=amount)


def test_wins_ties_losses_and_differences_of_a_known_grid():
    low, high, overall = compare(grid())
    assert (low.amount, high.amount, overall.amount) == (0.3, 0.5, None)
    assert (low.wins, low.ties, low.losses) == (1, 1, 1)
    assert (high.wins, high.ties, high.losses) == (3, 0, 0)
    assert (overall.wins, overall.ties, overall.losses) == (4, 1, 1)
    differences = [0.02, 0.0, -0.01]
    test = stats.ttest_rel([0.82, 0.80, 0.79], [0.80, 0.80, 0.80])
    paired = test.confidence_interval(0.95)
    assert low.accuracy.mean == pytest.approx(np.mean(differences))
    assert (low.accuracy.low, low.accuracy.high) == pytest.approx((paired.low, paired.high))
    assert low.verdict == "undecided"
    per_training = [(0.02 + 0.1) / 2, (0.0 + 0.2) / 2, (-0.01 + 0.3) / 2]
    assert overall.accuracy.mean == pytest.approx(np.mean(per_training))
    half_width = stats.t.ppf(0.975, 2) * stats.sem(per_training)
    assert overall.accuracy.high - overall.accuracy.mean == pytest.approx(half_width)
    assert overall.accuracy.num == 3
    p_values = [test.pvalue, stats.ttest_1samp([0.1, 0.2, 0.3], 0).pvalue, stats.ttest_1samp(per_training, 0).pvalue]
    assert [c.p_value for c in (low, high, overall)] == pytest.approx(holm(p_values))


def test_the_verdict_needs_three_trainings_a_relevant_difference_and_significance():
    def pair(lead, trainings, noise=1e-4):
        ours = [cell(0.5 + lead + noise * number, number) for number in range(trainings)]
        return [*ours, *(cell(0.5, number, measure="norm") for number in range(trainings))]

    assert compare(pair(0.3, 3))[0].verdict == "better"
    assert compare(pair(-0.3, 3))[0].verdict == "worse"
    assert compare(pair(0.3, 2))[0].verdict == ""
    assert compare(pair(0.3, 2))[0].p_value is None
    assert compare(pair(0.001, 3))[0].verdict == "undecided", "significant, but less than 0.2 points"
    assert compare(pair(0.001, 3), smallest_effect=0.0005)[0].verdict == "better"
    assert compare(pair(0.01, 3, noise=0.02))[0].verdict == "undecided", "large, but it may be chance"


def test_more_comparisons_ask_for_more():
    """A p-value of 0.02 counts alone, not among five."""
    leads = [0.01, 0.013, 0.02]
    assert 0.01 < stats.ttest_1samp(leads, 0).pvalue < 0.05
    cells = [cell(0.5 + lead, number) for number, lead in enumerate(leads)]
    for baseline in ("norm", "wanda", "activation", "random", "modified_pagerank"):
        cells += [cell(0.5, number, measure=baseline) for number in range(3)]
    assert {c.verdict for c in compare(cells, baselines=["norm"])} == {"better"}
    assert {c.verdict for c in compare(cells)} == {"undecided"}


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
    assert claims([record(0.8), record(0.5, measure="norm", **other)]) == ()


def test_one_checkpoint_in_two_places_is_still_a_pair():
    pair = [record(0.8), record(0.5, measure="norm", checkpoint="elsewhere.ckpt")]
    (comparison,) = compare(pair)
    assert comparison.wins == 1


def test_amount_0_and_a_single_measure_win_nothing():
    assert compare([record(0.8, amount=0.0), record(0.5, measure="norm", amount=0.0)]) == ()
    assert compare([record(0.8)]) == claims([record(0.8)]) == ()


def test_seeds_of_random_are_averaged_within_a_pair():
    cells = [record(0.8)] + [
        record(top1, measure="random", measure_args={"seed": seed}) for seed, top1 in enumerate((0.4, 0.6))
    ]
    comparison = compare(cells)[0]
    assert comparison.accuracy.mean == pytest.approx(0.3)
    assert comparison.wins == 1


def test_failed_cells_and_the_dense_baseline_are_left_out():
    cells = [record(0.8), record(None, measure="norm"), record(0.9, measure="dense", amount=0.5)]
    assert compare(cells) == claims(cells) == ()


def test_without_the_reference_there_is_no_comparison():
    assert compare([record(0.5, measure="norm"), record(0.5, measure="random")]) == ()


def test_the_reference_without_arguments_comes_first():
    cells = [record(0.5, measure_args={"gamma": 0.5}), record(0.5)]
    norm = record(0.4, measure="norm")
    assert {found.reference for found in compare([*cells, norm])} == {"weighted_pagerank"}
    assert {found.reference for found in compare([cells[0], norm])} == {"weighted_pagerank(gamma=0.5)"}


def test_a_claim_is_the_mean_difference_of_retention_with_trainings_as_units():
    cells = []
    for number, (ours, norm, wanda) in enumerate([(0.8, 0.6, 0.7), (0.7, 0.6, 0.5), (0.9, 0.6, 0.9)]):
        for measure, top1 in (("weighted_pagerank", ours), ("norm", norm), ("wanda", wanda)):
            cells.append(cell(top1, number, dense=0.9, measure=measure))
    (average, norm, wanda), *rest = claims(cells)
    assert not rest
    per_training = np.array([(0.2 + 0.1) / 2, (0.1 + 0.2) / 2, (0.3 + 0.0) / 2]) / 0.9
    assert average.retention.mean == pytest.approx(per_training.mean())
    assert average.retention.num == 3
    assert (norm.baseline, wanda.baseline) == ("norm", "wanda")
    ((only_norm,),) = claims(cells, baselines=["norm"])
    assert only_norm.retention.mean == pytest.approx(0.2 / 0.9)


def test_a_baseline_that_was_not_run_is_named():
    for function in (compare, claims):
        with pytest.raises(ValueError, match=r"baselines \['wanda'\] have no finished cell; there are \['norm'\]"):
            function([record(0.8), record(0.5, measure="norm")], baselines=["wanda"])


def test_methods_and_calibration_draws_of_one_trained_network_are_one_value():
    """Three trained networks, two methods and two draws each: the interval is that of three values, not of twelve."""
    cells = []
    leads = (0.1, 0.3, 0.15)
    for number, lead in enumerate(leads):
        for method in ("local", "global"):
            for seed in (0, 1):
                place = {"method": method, "calibration_seed": seed}
                cells += [cell(0.5 + lead, number, dense=1.0, **place)]
                cells += [cell(0.5, number, dense=1.0, measure="norm", **place)]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(leads), scale=stats.sem(leads))
    ((claim,),) = claims(cells)
    for interval in (*(c.accuracy for c in compare(cells)), claim.accuracy, claim.retention):
        assert interval.num == 3
        assert (interval.low, interval.high) == pytest.approx((low, high))
    assert claim.wins == 12


def test_calibration_draws_of_one_trained_network_are_no_trainings():
    cells = [record(0.6 + seed / 100, calibration_seed=seed) for seed in range(9)]
    assert by_training(cells, [c.metrics.top1 for c in cells]) == [pytest.approx(0.64)]
    cells += [record(0.5, measure="norm", calibration_seed=seed) for seed in range(9)]
    assert compare(cells)[0].verdict == ""


def test_repair_and_no_repair_are_never_averaged():
    cells = []
    for number in range(3):
        for compensation, lead in (("constant", 0.1), ("least_squares", -0.2)):
            lead += number / 1000
            cells += [cell(0.5 + lead, number, compensation=compensation)]
            cells += [cell(0.5, number, compensation=compensation, measure="norm")]
    (constant,), (repaired,) = claims(cells)
    assert [s.compensation for s in constant.settings + repaired.settings] == ["constant", "least_squares"]
    assert (constant.verdict, repaired.verdict) == ("better", "worse")


def test_networks_and_settings_have_equal_weight_and_variances_add():
    """One network has two methods, the other one; the mean is over networks, and so are the degrees of freedom."""
    leads = {
        "One": {"local": (0.10, 0.12, 0.11), "global": (0.20, 0.22, 0.24)},
        "Two": {"local": (0.3, 0.31, 0.36, 0.33)},
    }
    cells = []
    for model, methods in leads.items():
        for method, found in methods.items():
            for number, lead in enumerate(found):
                place = {"model": model, "method": method, "checkpoint_sha256": training(number, model)}
                cells += [record(0.5 + lead, **place), record(0.5, measure="norm", **place)]
    ((claim,),) = claims(cells)
    one = np.mean([leads["One"]["local"], leads["One"]["global"]], axis=0)
    two = np.array(leads["Two"]["local"])
    assert claim.accuracy.mean == pytest.approx((one.mean() + two.mean()) / 2)
    # The average of two independent means is half their sum: Welch's test of one against minus the other.
    welch = stats.ttest_ind(one / 2, -two / 2, equal_var=False).confidence_interval(0.95)
    assert (claim.accuracy.low, claim.accuracy.high) == pytest.approx((welch.low, welch.high))


def test_a_training_or_an_amount_that_others_lack_does_not_tilt_an_average():
    complete = list(grid())
    more = [cell(0.9, 7, dense=1.0, amount=0.3), cell(0.1, 7, dense=1.0, amount=0.3, measure="norm")]
    *_, overall = compare([*complete, *more])
    assert overall.accuracy.num == 4
    at_03 = [0.02, 0.0, -0.01, 0.8]
    assert sorted(overall.accuracy.values) == pytest.approx(sorted(at_03))


def test_a_setting_holds_every_parameter_but_measure_amount_training_and_draw():
    one = parameters(method_args={"normalise": "none"})
    assert setting_of(one) == setting_of(
        parameters(method_args={"normalise": "none"}, amount=0.1, measure="norm", calibration_seed=5)
    )
    assert setting_of(one).method == "local, normalise=none"
    assert dict(setting_of(one).conditions) == {"graph": "chain", "protect_output": "true", "calibration_samples": "64"}
