"""The smallest network that keeps a budget: a search over prunings of a network that is read once."""

import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlprank.calibration.data import own
from mlprank.costs.metrics import is_labelled, measure_latency, measure_model, top_k_accuracy
from mlprank.methods import Adaptive, Local, get_method
from mlprank.methods.adaptive import Counted
from mlprank.pruning.front import SIZES, BudgetError, Budgets, Front, FrontPoint, format_count
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
    counted = SIZES[budgets.sizes[0]].counted if budgets.sizes else "parameters"
    recipe = make_recipe(recipe, {**({} if recipe is not None else DEFAULTS), **fields})
    if "method" not in fields and not isinstance(recipe.method, Adaptive):
        recipe = replace(recipe, method=Adaptive(count=counted, batch_size=batch_size))
    method = get_method(recipe.method)
    if not isinstance(method, Local):
        raise ValueError(f"method={method!r}: a search needs adaptive or local, which say how wide a network becomes")
    scoring = _Scoring(model, validation, score, reduce=reduce)
    if isinstance(recipe.refine, Refinement) and "refine" not in fields and scoring.function is None:
        recipe = replace(recipe, refine=replace(recipe.refine, loss="kl"))
    pruning = Pruning(model, calibration, recipe, reduce=reduce)
    return _Search(pruning, budgets, scoring, batch_size, progress).run()


class _Scoring:
    """Scores networks on the validation data; `name` is what the score is called."""

    def __init__(self, model: nn.Module, validation: Any, score: Any, *, reduce: Callable[[Tensor], Tensor]) -> None:
        self.reduce, self.function = reduce, score if callable(score) else None
        self.name = getattr(score, "__name__", type(score).__name__)
        if self.function is not None:
            return
        if score not in (None, "top1", "agreement"):
            raise ValueError(f'score={score!r} is unknown; choose "top1", "agreement", or give a function of networks')
        if validation is None:
            raise ValueError("validation is missing; give data to choose by, or score=, a function of the network")
        if hasattr(validation, "val_dataloader"):
            validation.prepare_data()
            validation.setup("fit")
            validation = validation.val_dataloader()
        pair = validation if isinstance(validation, tuple) and len(validation) == 2 else (validation,)
        if all(isinstance(part, Tensor) for part in pair):
            validation = [validation]
        if not isinstance(validation, Iterable):
            name = type(validation).__name__
            raise TypeError(f"validation: a {name} is not batches, a DataLoader or a LightningDataModule; give one")
        self.batches: Any = list(validation) if isinstance(validation, Iterator) else validation
        first = next(iter(self.batches), None)
        if first is None:
            raise ValueError("validation: the set is empty; give at least one batch")
        labelled = is_labelled(first)
        if score == "top1" and not labelled:
            raise ValueError('validation: its batches have no labels of classes, shape (N,); use score="agreement"')
        if score is None and not labelled and isinstance(first, (tuple, list)) and len(first) > 1:
            raise ValueError("validation: its targets are not classes, integers (N,); give score=, a function")
        self.name = "top-1" if labelled and score != "agreement" else "agreement"
        self.predicted = list(self._predictions(model)) if self.name == "agreement" else []

    def __call__(self, network: nn.Module, *, which: str) -> float:
        if self.function is not None:
            with evaluating(network), torch.no_grad():
                value: Any = self.function(network)
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                returned = f"{type(value).__name__}{shape}"
                raise TypeError(f"score: {self.name} returned a {returned}; it must return one number")
        elif self.name == "top-1":
            value = top_k_accuracy(network, self.batches, (1,), reduce=self.reduce)[1]
        else:
            pairs = zip(self.predicted, self._predictions(network), strict=True)
            counts = [(float((before == now).sum()), now.numel()) for before, now in pairs]
            right, seen = self.reduce(torch.tensor(counts, dtype=torch.float64).sum(0)).tolist()
            value = right / seen
        if not math.isfinite(value):
            place = f"score: {self.name} is {value} for {which} network"
            raise ValueError(f"{place}, which no budget can be held against; give a number")
        return float(value)

    def _predictions(self, network: nn.Module) -> Iterator[Tensor]:
        device = device_of(network)
        with evaluating(network), torch.inference_mode():
            for batch in self.batches:
                inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
                logits = sole_tensor(network(inputs.to(device)), who="shrink")
                if logits.dim() < 2 or logits.shape[1] < 2:
                    shape = tuple(logits.shape)
                    raise ValueError(f"validation: outputs {shape} are no logits of classes; give score=, a function")
                yield logits.argmax(1 if logits.dim() != 3 else -1)


@dataclass(eq=False)
class _Search:
    """Tries networks; lives for one search. What one keeps of what is counted is its share, 1 - a recipe's amount."""

    pruning: Pruning
    budgets: Budgets
    scoring: _Scoring
    batch_size: int
    progress: Callable[[Progress], None] | None

    def __post_init__(self) -> None:
        method, refinement = get_method(self.pruning.recipe.method), self.pruning.recipe.refine
        self.count: Counted = method.count if isinstance(method, Adaptive) else "neurons"
        self.refinement = refinement if isinstance(refinement, Refinement) else None
        self.max_drop = math.inf if self.budgets.max_drop is None else self.budgets.max_drop + 1e-9
        self.made: dict[tuple[int, ...], _Tried] = {}
        self.tried = self.made.values()
        self.expected, self.dense_s = 8.0, 0.0

    def run(self) -> Front:
        """Search; after Ctrl-C the best so far, where there is one."""
        self._tell("the dense network")
        self.dense = self._measured(self.pruning.model, 0.0, {}, started=time.perf_counter())
        self.limits = {name: self.budgets.limit(name, dense=self.dense.size(name)) for name in self.budgets.sizes}
        if self.budgets.max_drop is None and self._excess(self.dense) <= 1:
            raise ValueError(
                f"the dense network already keeps {self.budgets} ({self._sizes(self.dense)}); give smaller budgets, "
                "or max_drop to shrink it as far as its score allows"
            )
        recipe, graph = self.pruning.recipe, self.pruning.graph
        units = tuple(self.pruning.selection(self._recipe(1.0)).units)
        self.full = {unit: graph.groups[graph.group_by_name[unit]].width for unit in units}
        counts = {self.count, *(SIZES[name].counted for name in self.limits if name != "max_latency")}
        methods = {count: Adaptive(count=count, batch_size=self.batch_size) for count in counts}
        self.costs = {count: self.pruning.costs(method, units) for count, method in methods.items()}
        fewest = -(-recipe.min_neurons // recipe.round_to) * recipe.round_to
        narrowest = self.costs[self.count].total({unit: min(width, fewest) for unit, width in self.full.items()})
        self.least = min(1.0, narrowest / self.costs[self.count].total(self.full) * (1 + 1e-9) + 1e-12)
        try:
            if self.budgets.max_drop is not None:
                return self._by_drop()
            if found := self._largest_in_sizes():
                return self._front(*found)
        except KeyboardInterrupt:
            kept = [pair for pair in self.tried if pair[0].keeps]
            if not kept:
                raise
            return replace(self._front(*_smallest(kept)), interrupted=True)
        nearest = min(self.tried, key=lambda pair: self._excess(pair[0]))
        raise BudgetError(
            f"no network keeps {self.budgets}: the smallest has {self._sizes(nearest[0])}; allow that, or lower "
            "min_neurons and protect fewer layers",
            self._front(*nearest),
        )

    def _by_drop(self) -> Front:
        """Find a candidate by halving, and make it; how much it loses then says how much candidates may lose."""
        share, allowed, made = self._narrowest(), self.max_drop, list[float]()
        losing_little: list[_Tried] = []
        while share not in made and len(made) < (2 if losing_little else 6):
            made.append(share)
            tried = self._try(share, refined=self.refinement is not None)
            losing_little += [tried] if tried[0].drop <= self.max_drop and self._is_smaller(tried) else []
            allowed *= min(max(self.max_drop / tried[0].drop, 0.5), 2.0) if tried[0].drop > 0 else 2.0
            share = self._foretold(allowed) if self.refinement else share
        if not losing_little:
            nearest = min(filter(self._is_smaller, self.tried), key=lambda pair: pair[0].drop, default=tried)
            raise BudgetError(
                f"no smaller network keeps {self.budgets}: the nearest, with {nearest[0].num_parameters:,} of "
                f"{self.dense.num_parameters:,} parameters, loses {nearest[0].drop:.3g}; allow "
                f"max_drop={_up(nearest[0].drop):g}",
                self._front(*nearest),
            )
        point, result = _smallest(losing_little)
        if not point.keeps:
            offer = ", ".join(f"{name}={format_count(name, point.size(name))}" for name in self.limits)
            lost = ""
            if smaller := self._largest_in_sizes():
                lost = f", and one that is small enough loses {smaller[0].drop:.3g}"
                offer += f", or max_drop={_up(smaller[0].drop):g}"
            raise BudgetError(
                f"no network keeps {self.budgets}: the smallest that loses no more than {self.max_drop:g} has "
                f"{self._sizes(point)}{lost}; allow {offer}",
                self._front(point, result),
            )
        return self._front(point, result)

    def _is_smaller(self, tried: _Tried) -> bool:
        """Whether anything was removed: of a narrow layer a small amount takes no neuron."""
        return tried[0].num_parameters < self.dense.num_parameters

    def _narrowest(self) -> float:
        """The smallest candidate that loses little enough: halve until too much is lost, then close in."""
        self.drops: dict[float, float] = {}
        kept, lost, share = 1.0, 0.0, 0.5
        for _ in range(_MOST_CANDIDATES):
            self.drops[share] = self._try(share)[0].drop
            if self.drops[share] <= self.max_drop:
                kept = share
            else:
                lost = share
            if share <= self.least or (lost and kept / lost <= _CLOSE_ENOUGH):
                break
            share = math.sqrt(kept * lost) if lost else max(self.least, share / 2)
            halvings = math.log2(math.log(kept / lost) / math.log(_CLOSE_ENOUGH)) if lost else 5
            self.expected = len(self.tried) + max(0.0, math.ceil(halvings)) + 2 * (self.refinement is not None)
        return kept if kept < 1 else max(self.drops)

    def _foretold(self, allowed: float) -> float:
        """The share at which candidates would lose so much, if drops are a power of shares between two of them."""
        kept = min((share for share, drop in self.drops.items() if drop <= allowed), default=1.0)
        losing = max((share for share, drop in self.drops.items() if drop > allowed and share < kept), default=None)
        if losing is None:
            return kept
        low = max(self.drops.get(kept, 0.0), allowed / 10, 1e-9)
        part = math.log(allowed / low) / math.log(self.drops[losing] / low)
        return float(kept * (losing / kept) ** max(part, 0.0))

    def _largest_in_sizes(self) -> _Tried | None:
        """Try the largest network that costs tell to be small enough; a little less where measuring says otherwise."""
        low, high = self.least, 1.0
        for _ in range(12):
            share = (low + high) / 2
            widths = self._widths(share)
            fits = all(
                costs.total(widths) * self.dense.size(name) / (costs.total(self.full) or 1) <= limit
                for name, limit in self.limits.items()
                if (costs := self.costs.get(SIZES[name].counted))
            )
            low, high = (share, high) if fits else (low, share)
        share = low
        for attempt in range(1, 7):
            share = min(1.0, max(share, self.least))
            excess = self._excess(self._try(share)[0])
            if excess <= 1:
                return self._try(share, refined=self.refinement is not None)
            if share <= self.least:
                break
            share *= (0.99 / excess) ** attempt  # faster where the costs foretell too little
        return None

    def _excess(self, point: FrontPoint) -> float:
        """The largest of a network's sizes, each as a share of its limit."""
        return max((point.size(name) / limit for name, limit in self.limits.items()), default=0.0)

    def _recipe(self, share: float) -> Recipe:
        return replace(self.pruning.recipe, amount=min(max(0.0, 1 - share), 1 - 1e-9))

    def _widths(self, share: float) -> dict[str, int]:
        amounts = self.pruning.selection(self._recipe(share)).amounts
        return {unit: max(1, round((1 - amounts[unit]) * width)) for unit, width in self.full.items()}

    def _try(self, share: float, *, refined: bool = False) -> _Tried:
        """Prune and score a network; one of the same widths is not made twice in the same way."""
        key = (refined, *self._widths(share).values())
        if key in self.made:
            return self.made[key]
        candidate = self._try(share) if refined else None
        self._tell()
        started = time.perf_counter()
        if candidate is None:
            recipe = replace(self._recipe(share), refine=0)
            result = self.pruning.run(recipe)
            widths = {name: int(mask.sum()) for name, mask in result.masks.items()}
            point = self._measured(result.model, recipe.amount, widths, started=started)
        else:
            assert self.refinement is not None
            result = self.pruning.refined(candidate[1], self.refinement, self._on_step)
            score, seconds = self.scoring(result.model, which="a pruned"), candidate[0].seconds - started
            point = replace(candidate[0], score=score, refined=True, seconds=seconds + time.perf_counter())
        drop = (100 if self.scoring.function is None else 1) * (self.dense.score - point.score)
        keeps = self._excess(point) <= 1 and drop <= self.max_drop
        self.made[key] = replace(point, drop=drop, keeps=keeps), result
        self._tell()
        return self.made[key]

    def _measured(self, model: nn.Module, amount: Any, widths: dict[str, int], *, started: float) -> FrontPoint:
        """What a network costs; the dense one, which has no widths, keeps all budgets."""
        score, latency_s = self.scoring(model, which="a pruned" if widths else "the dense"), None
        example = self.pruning.calibration.example[:1]
        metrics = measure_model(model, example)
        if self.budgets.max_latency is not None:
            # As a share of the dense network's at the same moment, times what that took first.
            networks = {"dense": self.pruning.model, "narrow": model}
            timed = measure_latency(networks, example[[0] * self.batch_size])
            self.dense_s = self.dense_s or timed["dense"].median_s
            latency_s = timed["narrow"].median_s / timed["dense"].median_s * self.dense_s
            total, ranks = self.scoring.reduce(torch.tensor([latency_s, 1.0], dtype=torch.float64)).tolist()
            latency_s = total / ranks
        counted = (metrics.num_parameters, metrics.flops, metrics.size_bytes, latency_s)
        seconds = time.perf_counter() - started
        return FrontPoint(amount, *counted, score, 0.0, keeps=True, seconds=seconds, refined=False, widths=widths)

    def _sizes(self, point: FrontPoint) -> str:
        units = {"max_params": " parameters", "max_flops": " FLOPs"}
        names = self.budgets.sizes or ("max_params",)
        return ", ".join(format_count(name, point.size(name)) + units.get(name, "") for name in names)

    def _front(self, point: FrontPoint, result: PruningResult) -> Front:
        points = sorted((each for each, _ in self.tried), key=lambda each: each.amount)
        dense = replace(self.dense, widths={name: len(mask) for name, mask in result.masks.items()})
        return Front(result, point, tuple(points), dense, self.budgets, self.scoring.name, self.count)

    def _on_step(self, done: int, total: int) -> None:
        if done % 25 == 0 or done == total:
            self._tell(part=0.9 * done / total)

    def _tell(self, text: str = "", *, part: float = 0.0) -> None:
        if self.progress is None:
            return
        kept = [pair for pair in self.tried if pair[0].drop <= self.max_drop]
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
