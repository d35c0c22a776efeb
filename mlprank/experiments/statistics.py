"""Estimates with intervals, paired comparisons of measures, and claims over several settings; needs no torch.

What is independent is a training: amounts, methods and calibration draws of one trained network share its luck, so they
are averaged before anything is said. Three rules hold everywhere: an interval and a verdict need at least
`MIN_TRAININGS` trainings; networks with different compensations (with and without repair) are never averaged; a
difference counts if it is at least `smallest_effect` and significant after Holm's correction over the comparisons that
are shown together.
"""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TypeVar

from mlprank.experiments.records import DENSE, CellMetrics, CellParameters, CellRecord

Item = TypeVar("Item")
Key = TypeVar("Key")
REFERENCE = "weighted_pagerank"
MIN_TRAININGS = 3
SMALLEST_EFFECT = 0.002
SIGNIFICANCE = 0.05
_VARIES_WITHIN = {"measure", "measure_args", "amount", "checkpoint", "checkpoint_sha256", "calibration_seed"}
_NAMED = {"model", "dataset", "method", "method_args", "compensation", "compensation_args", "recipe_args"}


@dataclass(frozen=True, order=True)
class Setting:
    """What the cells of one comparison share: network, data, method, compensation, with arguments, and conditions.

    These are all other parameters of a cell but measure, amount, training and calibration draw, as names and values.
    """

    model: str
    dataset: str
    method: str
    compensation: str
    conditions: tuple[tuple[str, str], ...]

    @property
    def network(self) -> str:
        """Model and data set, as one title."""
        return f"{self.model} on {self.dataset}"


@dataclass(frozen=True)
class Estimate:
    """A mean over trainings with its 95 % interval, None for fewer than `MIN_TRAININGS` or where nothing varies.

    `values` are one for every training (for a claim, of every network one after another).
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def num(self) -> int:
        """How many trainings there are."""
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """The reference measure against one baseline, paired: within one setting, or averaged over several (a claim)."""

    settings: tuple[Setting, ...]  # that, or those, every network with equal weight
    reference: str  # its label
    baseline: str  # label of the other one; empty for the average over all baselines, each with equal weight
    amount: float | None  # one amount, or None for the average over all of them
    wins: int  # pairs in which the reference is better
    ties: int
    losses: int
    accuracy: Estimate  # difference of top-1 accuracy, reference minus baseline, as a fraction (0.01 is one point)
    retention: Estimate  # the same over the dense network's accuracy
    p_value: float | None  # of the accuracy difference, after Holm's correction; None for too few trainings
    verdict: str  # "better", "worse", "undecided", or "" for too few trainings


def mean_interval(values: Iterable[float]) -> Estimate:
    """Mean and Student's t interval (95 %) of independent values.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Source:
        Student 1908.
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("interval: values must hold at least one number, got none")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"interval: values must be finite, got {numbers}")
    return _average([numbers])[0]


def accuracy_interval(values: Iterable[float]) -> Estimate:
    """Mean of accuracies and an interval within [0, 1]: Student's t on the logit of the mean, by the delta method.

    Raises:
        ValueError: As `mean_interval`, or if a value is outside [0, 1].

    Source:
        Agresti 2013, Categorical Data Analysis, sections 3.1.6 and 16.1: standard error of logit(m) is that of m over m
        (1 - m).
    """
    found = mean_interval(values)
    if not all(0.0 <= value <= 1.0 for value in found.values):
        raise ValueError(
            f"accuracy_interval: accuracies are fractions in [0, 1], got {list(found.values)}; divide percent by 100"
        )
    if found.low is None or found.high is None:
        return found
    from scipy.special import expit, logit

    half = (found.high - found.mean) / (found.mean * (1.0 - found.mean))
    center = logit(found.mean)
    return dataclasses.replace(found, low=float(expit(center - half)), high=float(expit(center + half)))


def _average(groups: Sequence[Sequence[float]]) -> tuple[Estimate, float | None]:
    """Mean of the groups' means (equal weight), its interval, and the two-sided p-value of a mean of 0."""
    # One group gives Student's interval. Several independent ones (networks with trainings of their own) add their
    # variances; the degrees of freedom are Satterthwaite's (1946).
    from scipy.special import stdtr, stdtrit  # Student's distribution and its inverse; scipy.stats takes a second

    everything = tuple(value for group in groups for value in group)
    mean = fmean(map(fmean, groups))
    if min(map(len, groups)) < MIN_TRAININGS:
        return Estimate(mean, None, None, everything), None
    parts = [variance(group) / len(group) / len(groups) ** 2 for group in groups]
    if math.fsum(parts) <= (1e-12 * max(map(abs, everything))) ** 2:  # nothing varies but by rounding
        return Estimate(mean, None, None, everything), 1.0 if abs(mean) < 1e-12 else 0.0
    freedom = math.fsum(parts) ** 2 / math.fsum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
    error = math.sqrt(math.fsum(parts))
    half = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2)) * error
    return Estimate(mean, mean - half, mean + half, everything), float(2 * stdtr(freedom, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of comparisons.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return adjusted


def setting_of(parameters: CellParameters) -> Setting:
    """The setting that a cell belongs to."""
    conditions = tuple(
        (field.name, _plain(getattr(parameters, field.name)))
        for field in dataclasses.fields(parameters)
        if field.name not in _VARIES_WITHIN | _NAMED
    )
    p = parameters
    conditions += tuple((name, _plain(value)) for name, value in sorted(p.recipe_args.items()))
    compensation = _with_arguments(p.compensation, p.compensation_args)
    return Setting(p.model, p.dataset, _with_arguments(p.method, p.method_args), compensation, conditions)


def _with_arguments(name: str, arguments: Mapping[str, object]) -> str:
    return ", ".join([name, *(f"{key}={_plain(value)}" for key, value in sorted(arguments.items()))])


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def series_label(parameters: CellParameters) -> str:
    """The measure and its arguments, as one curve of a plot: `norm(p=2)`. A `seed` makes replicates, not a curve."""
    arguments = {name: value for name, value in sorted(parameters.measure_args.items()) if name != "seed"}
    if not arguments:
        return parameters.measure
    return f"{parameters.measure}({', '.join(f'{name}={json.dumps(value)}' for name, value in arguments.items())})"


def finished_cells(records: Iterable[CellRecord]) -> tuple[CellRecord, ...]:
    """The cells that ended well, the dense baseline left out."""
    return tuple(r for r in records if r.status == "ok" and r.parameters.measure != DENSE)


def metrics_of(record: CellRecord) -> CellMetrics:
    """The metrics of a finished cell."""
    assert record.metrics is not None
    return record.metrics


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by a key, in order of first appearance."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def by_training(cells: Iterable[CellRecord], values: Iterable[float]) -> list[float]:
    """Average what belongs to one training (calibration draws, seeds of a measure), in order of first appearance."""
    pairs = grouped(zip(cells, values, strict=True), lambda pair: pair[0].parameters.checkpoint_sha256)
    return [fmean(value for _, value in found) for found in pairs.values()]


def find_reference(records: Iterable[CellRecord]) -> str | None:
    """Label of weighted PageRank among the finished cells, the one without arguments first; None if absent."""
    labels = {series_label(r.parameters) for r in finished_cells(records) if r.parameters.measure == REFERENCE}
    return min(labels, key=lambda label: (len(label), label), default=None)


# Differences of accuracy and retention: [baseline][amount][training] -> one pair for every calibration draw.
_Leads = dict[str, dict[float, dict[str, list[tuple[float, float]]]]]


def compare(
    records: Iterable[CellRecord],
    *,
    baselines: Sequence[str] | None = None,
    smallest_effect: float = SMALLEST_EFFECT,
) -> tuple[Comparison, ...]:
    """Compare weighted PageRank with every other measure within every setting, at every amount and over all amounts.

    Two cells are a pair if they agree in everything but the measure. Seeds of a measure are averaged first; amount 0
    prunes nothing and is left out. Holm's correction runs over the comparisons of one setting, which is one table of
    the report. Returned is, sorted by setting and baseline, every amount where there are several, then the average.

    Raises:
        ValueError: If one of the `baselines` (labels; by default every other measure) is not among the finished cells.
    """
    label, settings = _settings(records, baselines)
    found: list[Comparison] = []
    for setting, leads in settings:
        compared = []
        for baseline, by_amount in leads.items():
            for amount in [*sorted(by_amount), None] if len(by_amount) > 1 else [None]:
                chosen = {baseline: by_amount if amount is None else {amount: by_amount[amount]}}
                compared.append(_comparison([(setting, chosen)], label, baseline, amount))
        found += _judged(compared, smallest_effect)
    return tuple(found)


def claims(
    records: Iterable[CellRecord],
    *,
    baselines: Sequence[str] | None = None,
    smallest_effect: float = SMALLEST_EFFECT,
) -> tuple[tuple[Comparison, ...], ...]:
    """Average the comparisons over networks, methods and amounts, for each compensation and its conditions.

    A training gives one number, its mean over amounts and settings; every setting of a network and every network has
    equal weight. Only amounts and settings that all trainings of a network have are averaged. The published figure is a
    lead of 6.09 points of retention over three baselines. Arguments and errors are those of `compare`.

    Returned is, for each compensation and its conditions, the average over the baselines first, then each baseline.
    """
    label, settings = _settings(records, baselines)
    groups = grouped(settings, lambda each: (each[0].compensation, each[0].conditions))
    found = []
    for conditions in sorted(groups):
        common = sorted(set.intersection(*(set(leads) for _, leads in groups[conditions])))
        compared = []
        for names in ([common] if len(common) > 1 else []) + [[name] for name in common]:
            chosen = [(setting, {name: leads[name] for name in names}) for setting, leads in groups[conditions]]
            compared.append(_comparison(chosen, label, names[0] if len(names) == 1 else "", None))
        if judged := _judged(compared, smallest_effect):
            found.append(tuple(judged))
    return tuple(found)


def _settings(
    records: Iterable[CellRecord], baselines: Sequence[str] | None
) -> tuple[str, list[tuple[Setting, _Leads]]]:
    """The reference's label, and the leads of every setting in which there is something to pair."""
    cells = finished_cells(records)
    label = find_reference(cells)
    others = {series_label(cell.parameters) for cell in cells} - {label}
    missing = sorted(set(baselines or ()) - others)
    if missing:
        raise ValueError(f"baselines {missing} have no finished cell; there are {sorted(others)}")
    if label is None:
        return "", []
    groups = grouped((c for c in cells if c.parameters.amount > 0.0), lambda cell: setting_of(cell.parameters))
    found = ((setting, _leads(groups[setting], label, baselines)) for setting in sorted(groups))
    return label, [entry for entry in found if entry[1]]


def _leads(cells: Sequence[CellRecord], reference: str, baselines: Sequence[str] | None) -> _Leads:
    gathered: dict[str, dict[tuple[float, str, int], list[CellMetrics]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        p = cell.parameters
        place = (round(p.amount, 9), p.checkpoint_sha256, p.calibration_seed)
        gathered[series_label(p)][place].append(metrics_of(cell))
    ours = gathered.pop(reference, {})
    leads: _Leads = {}
    for baseline in sorted(gathered) if baselines is None else [name for name in baselines if name in gathered]:
        for place in sorted(ours.keys() & gathered[baseline].keys()):
            amount, training, _ = place
            top1, retention = (
                fmean(getattr(m, name) for m in ours[place])
                - fmean(getattr(m, name) for m in gathered[baseline][place])
                for name in ("top1", "retention")
            )
            at_amount = leads.setdefault(baseline, {}).setdefault(amount, {})
            at_amount.setdefault(training, []).append((top1, retention))
    return leads


def _means(settings: Sequence[_Leads]) -> list[tuple[float, float]]:
    """One (accuracy, retention) for every training of a network; settings, baselines and amounts have equal weight."""
    # Only trainings that every setting and baseline has count, and of these only amounts that all of them have.
    sides = [by_amount for leads in settings for by_amount in leads.values()]
    trainings = sorted(set.intersection(*({t for found in by_amount.values() for t in found} for by_amount in sides)))
    complete = [
        [[found for found in by_amount.values() if found.keys() >= set(trainings)] for by_amount in leads.values()]
        for leads in settings
    ]
    if not trainings or not all(amounts for setting in complete for amounts in setting):
        return []

    def lead(training: str, part: int) -> float:
        return fmean(
            fmean(fmean(fmean(pair[part] for pair in found[training]) for found in amounts) for amounts in setting)
            for setting in complete
        )

    return [(lead(training, 0), lead(training, 1)) for training in trainings]


def _comparison(
    settings: Sequence[tuple[Setting, _Leads]], reference: str, baseline: str, amount: float | None
) -> Comparison | None:
    """A comparison before Holm's correction; None where no training has all of the settings."""
    values = [_means([leads for _, leads in found]) for found in grouped(settings, lambda e: e[0].network).values()]
    if not all(values):
        return None
    accuracy, p_value = _average([[pair[0] for pair in network] for network in values])
    retention, _ = _average([[pair[1] for pair in network] for network in values])
    amounts = (found for _, leads in settings for by_amount in leads.values() for found in by_amount.values())
    pairs = [pair[0] for found in amounts for drawn in found.values() for pair in drawn]
    wins, losses = sum(difference > 0 for difference in pairs), sum(difference < 0 for difference in pairs)
    ties, averaged = len(pairs) - wins - losses, tuple(setting for setting, _ in settings)
    return Comparison(averaged, reference, baseline, amount, wins, ties, losses, accuracy, retention, p_value, "")


def _judged(compared: Sequence[Comparison | None], smallest_effect: float) -> list[Comparison]:
    """The comparisons with corrected p-values and verdicts."""
    comparisons = [comparison for comparison in compared if comparison is not None]
    adjusted = iter(holm([c.p_value for c in comparisons if c.p_value is not None]))
    judged = []
    for comparison in comparisons:
        if comparison.p_value is not None:
            p_value, mean = next(adjusted), comparison.accuracy.mean
            counts = p_value < SIGNIFICANCE and abs(mean) >= smallest_effect
            verdict = "undecided" if not counts else "better" if mean > 0 else "worse"
            comparison = dataclasses.replace(comparison, p_value=p_value, verdict=verdict)
        judged.append(comparison)
    return judged
