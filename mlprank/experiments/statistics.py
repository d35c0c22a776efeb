"""Estimates with intervals, paired comparisons of measures, and claims over several settings; needs no torch.

docs/records.md states the rules: what is independent is a training, and a difference counts if it is at least
`smallest_effect` and significant after Holm's correction over the comparisons that are shown together.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import NamedTuple, TypeVar

import numpy as np

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
    """Mean and Student's t interval (95 %; Student 1908) of independent values, which are finite and at least one."""
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"interval: values must be finite and at least one, got {numbers}")
    return _average([numbers])[0]


def accuracy_interval(values: Iterable[float]) -> Estimate:
    """Mean of accuracies, fractions, and an interval within [0, 1]: Student's t on the logit of the mean, delta method.

    Source: Agresti 2013, Categorical Data Analysis, sections 3.1.6 and 16.1: se(logit(m)) = se(m) / (m (1 - m)).
    """
    found = mean_interval(values)
    if not all(0.0 <= value <= 1.0 for value in found.values):
        given = list(found.values)
        raise ValueError(f"accuracy_interval: accuracies are fractions in [0, 1], got {given}; divide percent by 100")
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
    """Adjust p-values for the number of comparisons, in their order (Holm 1979).

    >>> holm([0.25, 0.5, 0.125])
    [0.5, 0.5, 0.375]
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    adjusted: list[float] = np.minimum(raised, 1.0)[np.argsort(order)].tolist()
    return adjusted


def setting_of(parameters: CellParameters) -> Setting:
    """The setting that a cell belongs to."""
    p = parameters

    def plain(given: Mapping[str, object]) -> list[tuple[str, str]]:
        return [(name, v if isinstance(v, str) else json.dumps(v, sort_keys=True)) for name, v in given.items()]

    def called(name: str, arguments: Mapping[str, object]) -> str:
        return ", ".join([name, *(f"{key}={value}" for key, value in plain(dict(sorted(arguments.items()))))])

    names = [item.name for item in dataclasses.fields(p) if item.name not in _VARIES_WITHIN | _NAMED]
    conditions = plain({name: getattr(p, name) for name in names} | dict(sorted(p.recipe_args.items())))
    method, compensation = called(p.method, p.method_args), called(p.compensation, p.compensation_args)
    return Setting(p.model, p.dataset, method, compensation, tuple(conditions))


def series_label(parameters: CellParameters) -> str:
    """The measure and its arguments, as one curve of a plot: `norm(p=2)`. A `seed` makes replicates, not a curve."""
    given = [f"{name}={json.dumps(v)}" for name, v in sorted(parameters.measure_args.items()) if name != "seed"]
    return f"{parameters.measure}({', '.join(given)})" if given else parameters.measure


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


class _Lead(NamedTuple):
    """The lead of the reference over a baseline at one amount, in one calibration draw of one training."""

    baseline: str
    amount: float
    training: str
    differences: tuple[float, float]  # of accuracy and of retention


_Row = tuple[Sequence[tuple[Setting, Sequence[_Lead]]], str, float | None]
"""Of a table: settings with their leads, the baseline's label, and the amount."""


def compare(
    records: Iterable[CellRecord], *, baselines: Sequence[str] | None = None, smallest_effect: float = SMALLEST_EFFECT
) -> tuple[Comparison, ...]:
    """Compare weighted PageRank with every other measure within every setting, at every amount and over all amounts.

    Two cells are a pair if they agree in everything but the measure. Seeds of a measure are averaged first; amount 0
    prunes nothing and is left out. Holm's correction runs over the comparisons of one setting, which is one table of
    the report. Returned is, sorted by setting and baseline, every amount where there are several, then the average.
    One of the `baselines` (labels; by default every other measure) without a finished cell is a ValueError.
    """
    label, settings = _settings(records, baselines)
    found: list[Comparison] = []
    for setting, leads in settings:
        rows: list[_Row] = []
        for baseline, own in grouped(leads, lambda lead: lead.baseline).items():
            amounts = sorted({lead.amount for lead in own})
            rows += [
                ([(setting, [lead for lead in own if amount in (None, lead.amount)])], baseline, amount)
                for amount in ([*amounts, None] if len(amounts) > 1 else [None])
            ]
        found += _table(rows, label, smallest_effect)
    return tuple(found)


def claims(
    records: Iterable[CellRecord], *, baselines: Sequence[str] | None = None, smallest_effect: float = SMALLEST_EFFECT
) -> tuple[tuple[Comparison, ...], ...]:
    """Average the comparisons over networks, methods and amounts, for each compensation and its conditions.

    A training gives one number, its mean over amounts and settings; every setting of a network and every network has
    equal weight. Only amounts and settings that all trainings of a network have are averaged. Arguments and errors are
    those of `compare`. Of each compensation and its conditions the average over the baselines comes first.
    """
    label, settings = _settings(records, baselines)
    found = []
    for _, group in sorted(grouped(settings, lambda each: (each[0].compensation, each[0].conditions)).items()):
        common = sorted(set.intersection(*({lead.baseline for lead in leads} for _, leads in group)))
        rows: list[_Row] = []
        for names in ([common] if len(common) > 1 else []) + [[name] for name in common]:
            chosen = [(setting, [lead for lead in leads if lead.baseline in names]) for setting, leads in group]
            rows.append((chosen, names[0] if len(names) == 1 else "", None))
        found.append(tuple(_table(rows, label, smallest_effect)))
    return tuple(filter(None, found))


def _settings(
    records: Iterable[CellRecord], baselines: Sequence[str] | None
) -> tuple[str, list[tuple[Setting, list[_Lead]]]]:
    """The reference's label, and the leads in every setting in which there is something to pair, sorted."""
    cells = finished_cells(records)
    labels = {series_label(cell.parameters) for cell in cells if cell.parameters.measure == REFERENCE}
    label = min(labels, key=lambda label: (len(label), label), default="")  # the one without arguments first
    others = {series_label(cell.parameters) for cell in cells} - {label}
    if missing := sorted(set(baselines or ()) - others):
        raise ValueError(f"baselines {missing} have no finished cell; there are {sorted(others)}")
    wanted = others if baselines is None else set(baselines)
    groups = grouped((cell for cell in cells if cell.parameters.amount > 0.0), lambda cell: setting_of(cell.parameters))

    def place_of(cell: CellRecord) -> tuple[str, float, str, int]:  # but for the label it is shared by a pair
        p = cell.parameters
        return series_label(p), round(p.amount, 9), p.checkpoint_sha256, p.calibration_seed

    found = []
    for setting, own in sorted(groups.items()):
        means = {
            place: tuple(fmean(getattr(metrics_of(cell), name) for cell in seeds) for name in ("top1", "retention"))
            for place, seeds in grouped(own, place_of).items()
        }
        leads = [
            _Lead(*place[:3], (ours[0] - theirs[0], ours[1] - theirs[1]))
            for place, theirs in sorted(means.items())
            if place[0] in wanted and (ours := means.get((label, *place[1:])))
        ]
        if leads:
            found.append((setting, leads))
    return label, found


def _means(settings: Sequence[Sequence[_Lead]]) -> list[tuple[float, float]]:
    """One (accuracy, retention) for every training of a network; settings, baselines and amounts have equal weight."""
    # Only trainings that every setting and baseline has count, and of these only amounts that all of them have.
    sides = [list(grouped(leads, lambda lead: lead.baseline).values()) for leads in settings]
    trainings = sorted(set.intersection(*({lead.training for lead in own} for found in sides for own in found)))
    found = []
    for side in sides:
        means = []
        for own in side:
            drawn = grouped(own, lambda lead: (lead.amount, lead.training))
            amounts = sorted({a for a, _ in drawn if all((a, training) in drawn for training in trainings)})
            if not trainings or not amounts:
                return []
            table = [[np.mean([x.differences for x in drawn[a, t]], axis=0) for t in trainings] for a in amounts]
            means.append(np.mean(table, axis=0))
        found.append(np.mean(means, axis=0))
    return [(float(accuracy), float(retention)) for accuracy, retention in np.mean(found, axis=0)]


def _table(rows: Iterable[_Row], reference: str, smallest_effect: float) -> list[Comparison]:
    """The comparisons of one table; those are left out where no training has all of the settings."""
    found = []
    for settings, baseline, amount in rows:
        networks = grouped(settings, lambda each: each[0].network).values()
        values = [_means([leads for _, leads in network]) for network in networks]
        if all(values):
            accuracy, p_value = _average([[pair[0] for pair in network] for network in values])
            retention, _ = _average([[pair[1] for pair in network] for network in values])
            pairs = [lead.differences[0] for _, leads in settings for lead in leads]
            wins, losses = sum(difference > 0 for difference in pairs), sum(difference < 0 for difference in pairs)
            counts = (wins, len(pairs) - wins - losses, losses)
            averaged = tuple(setting for setting, _ in settings)
            found.append(Comparison(averaged, reference, baseline, amount, *counts, accuracy, retention, p_value, ""))
    adjusted = iter(holm([each.p_value for each in found if each.p_value is not None]))
    for index, each in enumerate(found):
        if each.p_value is not None:
            p_value, mean = next(adjusted), each.accuracy.mean
            counts_for = p_value < SIGNIFICANCE and abs(mean) >= smallest_effect
            verdict = "undecided" if not counts_for else "better" if mean > 0 else "worse"
            found[index] = dataclasses.replace(each, p_value=p_value, verdict=verdict)
    return found
