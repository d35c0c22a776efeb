"""Means, 95 % intervals and paired comparisons of the measures of an experiment; needs no torch."""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlprank.experiments.records import DENSE, CellParameters, CellRecord

REFERENCE = "weighted_pagerank"


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval; None where a single value gives none."""

    mean: float
    half_width: float | None
    num: int

    @property
    def low(self) -> float:
        """Lower end; the mean itself where there is no interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end; the mean itself where there is no interval."""
        return self.mean + (self.half_width or 0.0)


@dataclass(frozen=True)
class Comparison:
    """Weighted PageRank against one baseline at one amount, paired. `amount` None means over all amounts.

    `accuracy` and `retention` are mean differences, reference minus baseline, as fractions (0.01 is one point):
    top-1 accuracy, and top-1 accuracy over the dense network's.
    """

    reference: str
    baseline: str
    amount: float | None
    wins: int
    ties: int
    losses: int
    accuracy: Interval
    retention: Interval

    @property
    def verdict(self) -> str:
        """One of "better" and "worse" where the interval of the accuracy difference excludes 0, else "undecided"."""
        if self.accuracy.half_width is None or self.accuracy.low <= 0.0 <= self.accuracy.high:
            return "undecided"
        return "better" if self.accuracy.mean > 0.0 else "worse"


def mean_interval(values: Iterable[float], *, confidence: float = 0.95) -> Interval:
    """Mean and Student's t interval of independent values.

    Args:
        values: At least one finite number.
        confidence: Coverage in (0, 1).

    Raises:
        ValueError: If there is no value, one is not finite, or the confidence is out of range.

    Source:
        Student 1908; half width = t(1/2 + confidence/2, n - 1) · s / sqrt(n), s with n - 1 in the denominator.
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("mean_interval: values must hold at least one number, got none")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"mean_interval: values must be finite, got {numbers}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"mean_interval: confidence must be in (0, 1), got {confidence!r}; 0.95 is usual")
    num = len(numbers)
    mean = math.fsum(numbers) / num
    if num == 1:
        return Interval(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (num - 1)
    quantile = _student_t(num - 1, confidence)
    return Interval(mean, quantile * math.sqrt(variance / num), num)


@functools.cache
def _student_t(freedom: int, confidence: float) -> float:
    """The t with P(|T| < t) = confidence, for an integer number of degrees of freedom, by bisection.

    Source:
        Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, with theta = atan(t / sqrt(freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if _inside(theta, freedom) < confidence else (low, theta)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _inside(theta: float, freedom: int) -> float:
    square, odd = math.cos(theta) ** 2, freedom % 2
    term = total = math.cos(theta) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if not odd:
        return math.sin(theta) * total
    return 2 / math.pi * (theta + (math.sin(theta) * total if freedom > 1 else 0.0))


def replicates(cells: Iterable[CellRecord]) -> list[str]:
    """Name what every cell is a replicate of: its trained network, or its calibration draw where only one network was trained.

    Methods, amounts and calibration draws of one trained network share its luck and are no independent values; an interval is taken
    over the means of replicates.

    Args:
        cells: Cells of any networks and data sets.

    Returns:
        One name a cell; cells of the same name belong together.
    """
    cells = list(cells)
    trained: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in cells:
        trained[cell.parameters.model, cell.parameters.dataset].add(cell.parameters.checkpoint_sha256)
    names = []
    for cell in cells:
        p = cell.parameters
        several = len(trained[p.model, p.dataset]) > 1
        names.append(p.checkpoint_sha256 if several else f"{p.checkpoint_sha256}, seed {p.calibration_seed}")
    return names


def interval_over_replicates(names: Sequence[str], values: Sequence[float]) -> Interval:
    """Average the values of each replicate, then return the interval of these means.

    Args:
        names: Which replicate a value belongs to, as `replicates` returns.
        values: As many finite numbers, at least one.

    Raises:
        ValueError: As `mean_interval`.
    """
    grouped: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        grouped[name].append(value)
    return mean_interval(math.fsum(found) / len(found) for found in grouped.values())


def series_label(parameters: CellParameters) -> str:
    """The measure and its arguments, as one curve of a plot: `norm(p=2)`. A `seed` makes replicates, not a curve."""
    arguments = {name: value for name, value in sorted(parameters.measure_args.items()) if name != "seed"}
    if not arguments:
        return parameters.measure
    return f"{parameters.measure}({', '.join(f'{name}={json.dumps(value)}' for name, value in arguments.items())})"


def finished_cells(records: Iterable[CellRecord]) -> tuple[CellRecord, ...]:
    """The cells that ended well, the dense baseline left out."""
    return tuple(r for r in records if r.status == "ok" and r.parameters.measure != DENSE)


def find_reference(records: Iterable[CellRecord], *, measure: str = REFERENCE) -> str | None:
    """Label of the reference measure among the finished cells, the one without arguments first; None if absent."""
    labels = {series_label(r.parameters) for r in finished_cells(records) if r.parameters.measure == measure}
    return min(labels, key=lambda label: (len(label), label), default=None)


def compare(records: Iterable[CellRecord], *, reference: str | None = None) -> tuple[Comparison, ...]:
    """Compare the reference with every other measure, at every amount and over all amounts.

    Two cells are a pair if they agree in everything but the measure: network, data, checkpoint, calibration, method,
    compensation, graph. Replicates of a measure within one pair (seeds of `random`) are averaged first. A difference
    of exactly 0 is a tie. The differences of one replicate (see `replicates`) are averaged before the interval is
    taken; wins, ties and losses count every pair.

    Args:
        records: Cells, failed ones are ignored.
        reference: Label of a measure; by default that of weighted PageRank.

    Returns:
        Sorted by baseline; per baseline the amounts ascending, then the one over all amounts (None). Empty if there
        is no reference among the cells or nothing to pair it with.
    """
    cells = finished_cells(records)
    label = reference if reference is not None else find_reference(cells)
    values = _by_series(cells)
    if label is None or label not in values:
        return ()
    ours, units = values.pop(label), _replicate_of_pair(cells)
    comparisons: list[Comparison] = []
    for baseline, theirs in sorted(values.items()):
        pairs = sorted(ours.keys() & theirs.keys())
        amounts = sorted({amount for _, amount in pairs})
        for amount in [*amounts, None] if pairs else []:
            chosen = [pair for pair in pairs if amount is None or pair[1] == amount]
            accuracy = [ours[pair][0] - theirs[pair][0] for pair in chosen]
            retention = [ours[pair][1] - theirs[pair][1] for pair in chosen]
            chosen_units = [units[pair] for pair, _ in chosen]
            comparisons.append(
                Comparison(
                    reference=label,
                    baseline=baseline,
                    amount=amount,
                    wins=sum(difference > 0 for difference in accuracy),
                    ties=sum(difference == 0 for difference in accuracy),
                    losses=sum(difference < 0 for difference in accuracy),
                    accuracy=interval_over_replicates(chosen_units, accuracy),
                    retention=interval_over_replicates(chosen_units, retention),
                )
            )
    return tuple(comparisons)


def retention_advantage(
    records: Iterable[CellRecord], *, reference: str | None = None, baselines: Sequence[str] | None = None
) -> Interval | None:
    """Average lead of the reference in accuracy retention (top-1 over dense top-1), over baselines and amounts.

    Every replicate (see `replicates`) gives one number, its mean over pairs, amounts and baselines; the interval is over these.
    The published figure is 6.09 % over three baselines.

    Args:
        records: Cells, failed ones are ignored.
        reference: Label of a measure; by default that of weighted PageRank.
        baselines: Labels to average over; by default every other measure.

    Returns:
        The interval, as a fraction (0.01 is one point); None if nothing could be paired.

    Raises:
        ValueError: If a baseline is not among the finished cells.
    """
    cells = finished_cells(records)
    label = reference if reference is not None else find_reference(cells)
    values = _by_series(cells)
    if label is None or label not in values:
        return None
    ours = values.pop(label)
    missing = sorted(set(baselines or ()) - values.keys())
    if missing:
        raise ValueError(f"baselines {missing} have no finished cell; there are {sorted(values)}")
    replicate_of, units, differences = _replicate_of_pair(cells), list[str](), list[float]()
    for baseline in baselines if baselines is not None else values:
        for pair in ours.keys() & values[baseline].keys():
            units.append(replicate_of[pair[0]])
            differences.append(ours[pair][1] - values[baseline][pair][1])
    return interval_over_replicates(units, differences) if differences else None


def _by_series(cells: Iterable[CellRecord]) -> dict[str, dict[tuple[str, float], tuple[float, float]]]:
    """Per series and (pair, amount): mean top-1 and mean retention."""
    gathered: dict[str, dict[tuple[str, float], list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        assert cell.metrics is not None
        p = cell.parameters
        place = (p.pair, round(p.amount, 9))
        gathered[series_label(p)][place].append((cell.metrics.top1, cell.metrics.retention))
    return {
        series: {
            place: (math.fsum(t for t, _ in found) / len(found), math.fsum(r for _, r in found) / len(found))
            for place, found in places.items()
        }
        for series, places in gathered.items()
    }


def _replicate_of_pair(cells: Sequence[CellRecord]) -> dict[str, str]:
    """Per pair, the replicate that it belongs to."""
    return dict(zip((cell.parameters.pair for cell in cells), replicates(cells), strict=True))
