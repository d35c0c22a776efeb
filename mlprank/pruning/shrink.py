"""The smallest network that keeps a budget: a search over prunings of a network that is read once."""

import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlprank.calibration.data import own
from mlprank.costs.metrics import is_labelled, measure_latency, measure_model, top_k_accuracy
from mlprank.methods import get_method
from mlprank.methods.adaptive import Adaptive, Costs
from mlprank.methods.ranked import Local
from mlprank.pruning.front import COUNTS, BudgetError, Budgets, Front, FrontPoint, format_count
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.recipe import Recipe, make_recipe, takes_recipe
from mlprank.pruning.refine import Refinement
from mlprank.pruning.result import PruningResult
from mlprank.utils.modules import device_of, evaluating, sole_tensor

DEFAULTS: Mapping[str, Any] = {"measure": "reconstruction", "refine": 1000, "num_samples": 4096}
"""Where a search starts from other fields than `Recipe` does."""

Score = Callable[[nn.Module], float]
_Tried = tuple[FrontPoint, PruningResult]
_MOST_CANDIDATES = 14
_CLOSE_ENOUGH = 1.06
"""The search ends when the smallest network that keeps the budgets is within this factor of one that does not."""


@dataclass(frozen=True)
class Progress:
    """How far a search is."""

    done: float  # networks that have been tried, with the part of the one at work
    total: float  # about how many it will be
    text: str  # what is known so far


@takes_recipe
def shrink(
    model: nn.Module,
    calibration: Any,
    validation: Any = None,
    recipe: Recipe | None = None,
    *,
    max_drop: float | None = None,
    max_bytes: float | str | None = None,
    max_params: float | str | None = None,
    max_flops: float | str | None = None,
    max_latency: float | str | None = None,
    score: Literal["top1", "agreement"] | Score | None = None,
    batch_size: int = 64,
    progress: Callable[[Progress], None] | None = None,
    reduce: Callable[[Tensor], Tensor] = own,
    **fields: Any,
) -> Front:
    """Find the smallest network that keeps a budget.

    With `max_drop` it is the smallest network that loses no more, and that must keep the other budgets too; without, it
    is the one of the best score that size budgets leave room for, which is the largest. What counts as small is what
    the first size budget counts, else parameters. The network is traced and calibrated once, whatever is tried;
    candidates are not refined, only those that look right. After Ctrl-C the best so far is returned, where there is
    one.

    Args:
        model: As for `mlprank.prune`; left untouched.
        calibration: As for `mlprank.prune`; no labels are needed.
        validation: Data to choose by: batches of inputs and labels (classes), or of inputs alone; a DataLoader, an
            iterable that can be read again, a pair of tensors, or a LightningDataModule, whose `val_dataloader()` is
            read. None where `score` needs none.
        recipe: How to prune; fields that are given change it. The measure is reconstruction, refinement 1,000 steps and
            calibration 4,096 samples unless said otherwise; `method` may be adaptive (the default) or local.
        max_drop: The most that the score may fall: percentage points of top-1 accuracy or agreement, or in the unit of
            a score function.
        max_bytes: The largest file of weights, such as "1MB", or a share of the dense network's, such as 0.3.
        max_params: The most parameters, such as 50000, "50k" or 0.3.
        max_flops: The most FLOPs of a sample, such as "2M" or 0.3.
        max_latency: The longest time of a batch on the network's device, such as "2ms" or 0.5.
        score: "top1" accuracy (where there are labels, the default), "agreement" with the dense network's predictions
            (where there are none), or a function that takes the network and returns a number, larger being better.
        batch_size: Samples in the batch whose latency is measured.
        progress: Told how far the search is.
        reduce: Sums a tensor over processes, where each of them has its share of the data.
        **fields: The fields of `Recipe`, by name.

    Returns:
        The chosen network, and everything that was tried.

    Raises:
        BudgetError: If no network keeps the budgets; the nearest is named and in its `front`.
        TypeError: If the score function does not return a number, or the data are of a kind that cannot be used.
        ValueError: If a budget is none, or the dense network already keeps what was asked for.

    Examples:
        >>> import mlprank, torch
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> x = torch.randn(256, 8)
        >>> front = mlprank.shrink(network, x, x, max_drop=5, refine=50)  # keeps 95 % of its predictions
        >>> front.best_point.drop <= 5 and front.best.widths["0"][1] < 64
        True
    """
    budgets = Budgets(max_drop, max_bytes, max_params, max_flops, max_latency)
    if "amount" in fields:
        raise ValueError(
            f"amount={fields['amount']!r} and a budget ({budgets}) contradict each other: a budget says what must be "
            "kept, and the amount follows; give one of them (mlprank.prune takes amounts)"
        )
    counted = COUNTS[budgets.sizes[0]] if budgets.sizes else "parameters"
    recipe = make_recipe(recipe, {**({} if recipe is not None else DEFAULTS), **fields})
    if "method" not in fields and not isinstance(recipe.method, Adaptive):
        recipe = replace(recipe, method=Adaptive(count=counted, batch_size=batch_size))
    method = get_method(recipe.method)
    if not isinstance(method, Local):
        raise ValueError(
            f"method={method!r}: a search needs adaptive or local, which can say how wide a network becomes"
        )
    scoring = _Scoring(model, validation, score, reduce=reduce)
    if isinstance(recipe.refine, Refinement) and "refine" not in fields and scoring.function is None:
        recipe = replace(recipe, refine=replace(recipe.refine, loss="kl"))
    pruning = Pruning(model, calibration, recipe, reduce=reduce)
    return _Search(pruning, budgets, scoring, batch_size=batch_size, progress=progress).run()


class _Scoring:
    """Scores networks on the validation data."""

    def __init__(self, model: nn.Module, validation: Any, score: Any, *, reduce: Callable[[Tensor], Tensor]) -> None:
        self.reduce, self.function = reduce, score if callable(score) else None
        if self.function is not None:
            self.name = getattr(score, "__name__", type(score).__name__)
            return
        if score not in (None, "top1", "agreement"):
            raise ValueError(
                f'score={score!r} is unknown; choose "top1", "agreement", or give a function of the network'
            )
        self.batches = _batches(validation)
        first = next(iter(self.batches))
        targets = first[1] if isinstance(first, (tuple, list)) and len(first) > 1 else None
        labelled = is_labelled(first)
        if score == "top1" and not labelled:
            raise ValueError(
                'validation: its batches have no labels of classes, shape (N,), which score="top1" needs; give batches'
                " of (inputs, labels),"
                ' or use score="agreement" with the dense network\'s predictions'
            )
        if score is None and targets is not None and not labelled:
            raise ValueError(
                "validation: its targets are not classes, integers of shape (N,), so there is no accuracy; give "
                "score=, a function of the"
                ' network that returns a number, or score="agreement"'
            )
        self.name = "top-1" if labelled and score != "agreement" else "agreement"
        self.predicted = [] if self.name == "top-1" else list(self._predictions(model))

    def __call__(self, network: nn.Module) -> float:
        if self.function is not None:
            return self._called(self.function, network)
        if self.name == "top-1":
            return top_k_accuracy(network, self.batches, (1,), reduce=self.reduce)[1]
        pairs = zip(self.predicted, self._predictions(network), strict=True)
        counts = [(float((before == now).sum()), now.numel()) for before, now in pairs]
        right, seen = self.reduce(torch.tensor(counts, dtype=torch.float64).sum(0)).tolist()
        return float(right / seen)

    def _called(self, function: Score, network: nn.Module) -> float:
        with evaluating(network), torch.no_grad():
            value: Any = function(network)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise TypeError(
                f"score: {self.name} returned a {type(value).__name__}{shape}; it must return one number, larger "
                "being better"
            )
        return float(value)

    def _predictions(self, network: nn.Module) -> Iterator[Tensor]:
        device = device_of(network)
        with evaluating(network), torch.inference_mode():
            for batch in self.batches:
                inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                logits = sole_tensor(network(inputs.to(device)), who="shrink")
                if logits.dim() < 2 or logits.shape[1] < 2:
                    raise ValueError(
                        "validation: agreement compares predicted classes, and outputs of shape "
                        f"{tuple(logits.shape)} are no logits of classes; give score=, a function of the network that "
                        "returns a number"
                    )
                yield logits.argmax(1 if logits.dim() != 3 else -1)


def _batches(validation: Any) -> Any:
    """Validation data as batches that can be read again."""
    if validation is None:
        raise ValueError("validation is missing; give data to choose by, or score=, a function of the network")
    if hasattr(validation, "val_dataloader"):
        validation.prepare_data()
        validation.setup("fit")
        validation = validation.val_dataloader()
    is_pair = isinstance(validation, tuple) and len(validation) == 2 and all(isinstance(x, Tensor) for x in validation)
    if isinstance(validation, Tensor) or is_pair:
        return [validation]
    if isinstance(validation, Iterator):
        validation = list(validation)
    if not isinstance(validation, Iterable):
        raise TypeError(
            f"validation: a {type(validation).__name__} is not batches, a DataLoader or a LightningDataModule; give one"
        )
    if next(iter(validation), None) is None:
        raise ValueError("validation: the set is empty; give at least one batch")
    return validation


@dataclass
class _Search:
    """Tries networks; lives for one search."""

    pruning: Pruning
    budgets: Budgets
    scoring: _Scoring
    batch_size: int
    progress: Callable[[Progress], None] | None
    made: dict[tuple[int, ...], _Tried] = field(default_factory=dict)
    expected: float = 8.0
    dense_s: float = 0.0

    @property
    def tried(self) -> list[_Tried]:
        """Every network so far."""
        return list(self.made.values())

    def run(self) -> Front:
        self.method = get_method(self.pruning.recipe.method)
        self.count = self.method.count if isinstance(self.method, Adaptive) else "neurons"
        by = self.pruning.recipe.refine
        self.refinement = by if isinstance(by, Refinement) else None
        self.refines = self.refinement is not None
        self.candidates: dict[float, FrontPoint] = {}
        self._tell("the dense network")
        self.dense = self._point(self.pruning.model, 0.0, time.perf_counter(), widths={})
        self.limits = {name: self.budgets.limit(name, dense=self.dense.size(name)) for name in self.budgets.sizes}
        if self.budgets.max_drop is None and all(self.dense.size(name) <= limit for name, limit in self.limits.items()):
            raise ValueError(
                f"the dense network already keeps {self.budgets} ({self._sizes(self.dense)}); give smaller budgets, "
                "or max_drop to shrink it as far as its score allows"
            )
        self.least = self._least_share()
        try:
            return self._by_sizes() if self.budgets.max_drop is None else self._by_drop()
        except KeyboardInterrupt:
            kept = [pair for pair in self.tried if pair[0].keeps]
            if not kept:
                raise
            return replace(self._front(*_smallest(kept)), interrupted=True)

    def _by_drop(self) -> Front:
        """Find a candidate by halving, and make it; how much it loses then says how much candidates may lose."""
        share, allowed, made = self._narrowest(), self._max_drop, list[float]()
        losing_little: list[_Tried] = []
        while share not in made and len(made) < (2 if losing_little else 6):
            made.append(share)
            tried = self._try(share, refined=self.refines)
            losing_little += [tried] if tried[0].drop <= self._max_drop and self._is_smaller(tried) else []
            allowed *= min(max(self._max_drop / tried[0].drop, 0.5), 2.0) if tried[0].drop > 0 else 2.0
            share = self._foretold(allowed) if self.refines else share
        if not losing_little:
            nearest = min(filter(self._is_smaller, self.tried), key=lambda pair: pair[0].drop, default=self.tried[-1])
            raise BudgetError(
                f"no smaller network keeps {self.budgets}: the nearest, with {nearest[0].num_parameters:,} of "
                f"{self.dense.num_parameters:,} parameters, loses {nearest[0].drop:.3g}; allow "
                f"max_drop={_up(nearest[0].drop):g}",
                self._front(*nearest),
            )
        point, result = _smallest(losing_little)
        if point.keeps:
            return self._front(point, result)
        smaller = self._largest_in_sizes()
        offer = ", ".join(f"{name}={format_count(name, point.size(name))}" for name in self.limits)
        raise BudgetError(
            f"no network keeps {self.budgets}: the smallest that loses no more than {self._max_drop:g} has "
            f"{self._sizes(point)}"
            + (f", and one that is small enough loses {smaller[0].drop:.3g}" if smaller else "")
            + f"; allow {offer}"
            + (f", or max_drop={_up(smaller[0].drop):g}" if smaller else ""),
            self._front(point, result),
        )

    def _is_smaller(self, tried: _Tried) -> bool:
        """Whether anything was removed: of a narrow layer a small amount takes no neuron."""
        return tried[0].num_parameters < self.dense.num_parameters

    def _narrowest(self) -> float:
        """The smallest candidate that loses little enough: halve until too much is lost, then close in."""
        kept, lost, share = 1.0, 0.0, 0.5
        for _ in range(_MOST_CANDIDATES):
            self.candidates[share], _ = self._try(share, refined=False)
            if self.candidates[share].drop <= self._max_drop:
                kept = share
            else:
                lost = share
            if share <= self.least or (lost and kept / lost <= _CLOSE_ENOUGH):
                break
            share = math.sqrt(kept * lost) if lost else max(self.least, share / 2)
            halvings = math.log2(math.log(kept / lost) / math.log(_CLOSE_ENOUGH)) if lost else 5
            self.expected = len(self.tried) + max(0.0, math.ceil(halvings)) + 2 * self.refines
        return kept if kept < 1 else max(self.candidates)

    def _foretold(self, allowed: float) -> float:
        """The share at which candidates would lose so much, if drops are a power of shares between two of them."""
        kept = min((share for share, point in self.candidates.items() if point.drop <= allowed), default=1.0)
        losing = [share for share, point in self.candidates.items() if point.drop > allowed and share < kept]
        if not losing:
            return kept
        low = max(self.candidates[kept].drop if kept in self.candidates else 0.0, allowed / 10, 1e-9)
        part = math.log(allowed / low) / math.log(self.candidates[max(losing)].drop / low)
        return float(kept * (max(losing) / kept) ** max(part, 0.0))

    @property
    def _max_drop(self) -> float:
        return math.inf if self.budgets.max_drop is None else self.budgets.max_drop + 1e-9

    def _by_sizes(self) -> Front:
        found = self._largest_in_sizes()
        if found is None:
            nearest = min(
                self.tried, key=lambda pair: max(pair[0].size(name) / limit for name, limit in self.limits.items())
            )
            raise BudgetError(
                f"no network keeps {self.budgets}: the smallest has {self._sizes(nearest[0])}; allow that, or lower "
                "min_neurons and protect fewer layers",
                self._front(*nearest),
            )
        return self._front(*found)

    def _largest_in_sizes(self) -> _Tried | None:
        """Try the largest network that costs tell to be small enough; a little less where measuring says otherwise."""
        share = self._share_in_sizes()
        for attempt in range(1, 7):
            share = min(1.0, max(share, self.least))
            point, _ = self._try(share)
            over = max(point.size(name) / limit for name, limit in self.limits.items())
            if over <= 1:
                return self._try(share, refined=self.refines)
            if share <= self.least:
                return None
            share *= (0.99 / over) ** attempt  # faster where the costs foretell too little
        return None

    def _share_in_sizes(self) -> float:
        """The largest share whose predicted widths keep the size budgets."""
        known = {
            name: self._costs(COUNTS[name]) for name in self.limits if name != "max_latency" or self.count == "latency"
        }

        def fits(share: float) -> bool:
            widths = self._widths(share)
            return all(
                costs.total(widths) * self.dense.size(name) / costs.total(self._full) <= self.limits[name]
                for name, costs in known.items()
            )

        low, high = self.least, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _costs(self, count: Any) -> Costs:
        return self.pruning.costs(Adaptive(count=count, batch_size=self.batch_size), self._units)

    def _least_share(self) -> float:
        """The smallest share of what is counted that the guards let a network reach."""
        selection = self.pruning.selection(self._recipe(1.0))
        graph = self.pruning.graph
        self._units = {unit: graph.groups[graph.group_by_name[unit]] for unit in selection.units}
        self._full = {unit: group.width for unit, group in self._units.items()}
        recipe = self.pruning.recipe
        least = -(-recipe.min_neurons // recipe.round_to) * recipe.round_to
        fewest = {unit: min(width, least) for unit, width in self._full.items()}
        costs = self._costs(self.count)
        return min(1.0, costs.total(fewest) / costs.total(self._full) * (1 + 1e-9) + 1e-12)

    @staticmethod
    def _amount(share: float) -> float:
        return min(max(0.0, 1 - share), 1 - 1e-9)

    def _recipe(self, share: float) -> Recipe:
        return replace(self.pruning.recipe, amount=self._amount(share))

    def _widths(self, share: float) -> dict[str, int]:
        amounts = self.pruning.selection(self._recipe(share)).amounts
        return {unit: max(1, round((1 - amounts[unit]) * width)) for unit, width in self._full.items()}

    def _try(self, share: float, *, refined: bool = False) -> _Tried:
        """Prune and score a network; one of the same widths is not made twice in the same way."""
        key = (refined, *self._widths(share).values())
        if key not in self.made:
            candidate = self._try(share) if refined else None
            self._tell(part=0.0)
            self.made[key] = self._prune(share) if candidate is None else self._refine(*candidate)
            self._tell()
        return self.made[key]

    def _prune(self, share: float) -> _Tried:
        started, recipe = time.perf_counter(), replace(self._recipe(share), refine=0)
        result = self.pruning.run(recipe)
        widths = {name: int(mask.sum()) for name, mask in result.masks.items()}
        return self._point(result.model, self._amount(share), started, widths=widths), result

    def _refine(self, point: FrontPoint, candidate: PruningResult) -> _Tried:
        def on_step(done: int, total: int) -> None:
            if done % 25 == 0 or done == total:
                self._tell(part=0.9 * done / total)

        assert self.refinement is not None
        started = time.perf_counter()
        result = self.pruning.refined(candidate, self.refinement, on_step)
        score = self._score(result.model, "a pruned")
        seconds = point.seconds + time.perf_counter() - started
        return self._judged(replace(point, score=score, refined=True, seconds=seconds)), result

    def _score(self, network: nn.Module, which: str) -> float:
        score = self.scoring(network)
        if not math.isfinite(score):
            raise ValueError(
                f"score: {self.scoring.name} is {score} for {which} network, which no budget can be held against; "
                "it must be a finite number"
            )
        return score

    def _point(self, model: nn.Module, amount: float, started: float, *, widths: Mapping[str, int]) -> FrontPoint:
        """What a network costs; the dense one, which has no widths, keeps all budgets."""
        score = self._score(model, "a pruned" if widths else "the dense")
        metrics = measure_model(model, self.pruning.calibration.example.first(1))
        point = FrontPoint(
            amount=amount,
            widths=dict(widths),
            refined=False,
            num_parameters=metrics.num_parameters,
            flops=metrics.flops,
            size_bytes=metrics.size_bytes,
            latency_s=self._latency(model) if self.budgets.max_latency is not None else None,
            score=score,
            drop=0.0,
            keeps=True,
            seconds=time.perf_counter() - started,
        )
        return self._judged(point) if widths else point

    def _judged(self, point: FrontPoint) -> FrontPoint:
        """The point with what it loses, and whether it keeps the budgets."""
        drop = (100 if self.scoring.function is None else 1) * (self.dense.score - point.score)
        fits = all(point.size(name) <= limit for name, limit in self.limits.items())
        return replace(point, drop=drop, keeps=fits and drop <= self._max_drop)

    def _latency(self, model: nn.Module) -> float:
        """Seconds of a batch, as a share of the dense network's at the same moment times what that took first."""
        example = self.pruning.calibration.example
        repeated = example.first(1).repeated(self.batch_size)
        timed = measure_latency({"dense": self.pruning.model, "narrow": model}, repeated)
        ratio = timed["narrow"].median_s / timed["dense"].median_s
        self.dense_s = self.dense_s or timed["dense"].median_s
        total, ranks = self.scoring.reduce(torch.tensor([ratio * self.dense_s, 1.0], dtype=torch.float64)).tolist()
        return float(total / ranks)

    def _sizes(self, point: FrontPoint) -> str:
        names = {"max_params": "parameters", "max_flops": "FLOPs", "max_bytes": "", "max_latency": ""}
        return ", ".join(
            f"{format_count(name, point.size(name))} {names[name]}".strip()
            for name in self.budgets.sizes or ("max_params",)
        )

    def _front(self, point: FrontPoint, result: PruningResult) -> Front:
        points = sorted((each for each, _ in self.tried), key=lambda each: each.amount)
        full = {name: len(mask) for name, mask in result.masks.items()}
        return Front(
            best=result,
            best_point=point,
            points=tuple(points),
            dense=replace(self.dense, widths=full),
            budgets=self.budgets,
            score=self.scoring.name,
            count=self.count,
        )

    def _tell(self, text: str = "", *, part: float = 0.0) -> None:
        if self.progress is None:
            return
        kept = [pair for pair in self.tried if pair[0].drop <= self._max_drop]
        if not text and kept:
            best = _smallest(kept)[0]
            share = best.num_parameters / self.dense.num_parameters
            text = f"best so far {share:.1%} of the parameters, drop {best.drop:.2f}"
        done = len(self.tried) + part
        self.progress(Progress(done, max(self.expected, math.ceil(done)), text or "trying"))


def _smallest(pairs: list[_Tried]) -> _Tried:
    return max(pairs, key=lambda pair: (pair[0].refined, pair[0].amount))


def _up(drop: float) -> float:
    """A little more than a drop, in two digits."""
    digits = 2 - math.floor(math.log10(abs(drop))) if drop else 2
    return math.ceil(drop * 10.0**digits) / 10.0**digits
