"""Prune by one or several amounts, measure what that costs and gives, and show and write what came out."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from mlprank.calibration.data import own
from mlprank.costs.metrics import ModelMetrics, measure_latency_for, top_k_accuracy
from mlprank.graph.program import as_inputs
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.recipe import Recipe
from mlprank.pruning.result import PruningResult, pruning_table
from mlprank.utils.charts import write_chart

LATENCY_BATCH = 64
_LATENCY_BUDGET_S = 1.0


@dataclass(frozen=True)
class Evaluation:
    """A pruning and what was measured of it."""

    result: PruningResult
    before: ModelMetrics
    after: ModelMetrics
    split: str | None  # the data that accuracies were measured on, such as "test"; None where there were no labels


def evaluate(
    result: PruningResult,
    batches: Iterable[Sequence[Tensor]] | None,
    *,
    split: str | None,
    dense_top_k: Mapping[int, float] | None = None,
    reduce: Callable[[Tensor], Tensor] = own,
) -> Evaluation:
    """Measure accuracy and latency of the dense and the narrow network.

    Batches are pairs of inputs, shape (N, ...), and labels, shape (N,), that can be read twice; None measures no
    accuracy. Latency is of a batch of 64, interleaved. `reduce` sums a tensor over processes.
    """
    example = as_inputs(result.example)[[0] * LATENCY_BATCH]
    networks = {"before": result.dense, "after": result.model}
    latency = measure_latency_for(networks, example, seconds=_LATENCY_BUDGET_S, least=1, most=200)
    before = replace(result.metrics.before, latency_s=latency["before"].median_s)
    after = replace(result.metrics.after, latency_s=latency["after"].median_s)
    if batches is None:
        return Evaluation(result, before, after, None)
    before = replace(before, top_k=dense_top_k or top_k_accuracy(result.dense, batches, reduce=reduce))
    return Evaluation(result, before, replace(after, top_k=top_k_accuracy(result.model, batches, reduce=reduce)), split)


def prune_amounts(
    network: nn.Module,
    calibration: Any,
    *,
    amounts: Sequence[float | Mapping[str, float]],
    recipe: Recipe,
    labelled: Iterable[Sequence[Tensor]] | None,
    split: str | None,
    dense: nn.Module | None = None,
    reduce: Callable[[Tensor], Tensor] = own,
) -> list[Evaluation]:
    """Prune a network by several amounts; it is traced once, and its dense accuracy measured once.

    `labelled` are pairs of inputs and labels to measure accuracy on; `dense` is the network before any pruning, where
    `network` has been pruned and trained on already.
    """
    pruning = Pruning(network, calibration, recipe, reduce=reduce)
    dense_top_k = None if labelled is None else top_k_accuracy(dense or network, labelled, reduce=reduce)
    results = [pruning.run(amount=amount) for amount in amounts]
    return [evaluate(result, labelled, split=split, dense_top_k=dense_top_k, reduce=reduce) for result in results]


def write_outputs(
    evaluation: Evaluation, directory: Path, *, several: bool, provenance: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a pruning to files: all of them, or none where writing fails or is interrupted.

    Where there are several amounts, file names carry theirs. Returned are the files by what they hold.
    """
    result = evaluation.result
    amount = result.recipe.amount
    suffix = "" if not several else f"-{amount:g}" if isinstance(amount, int | float) else f"-{result.achieved:.3f}"
    files = {
        "pruned network": directory / f"pruned{suffix}.ckpt",
        "scores": directory / f"scores{suffix}.safetensors",
        "metrics": directory / f"metrics{suffix}.json",
        "picture": directory / f"pruning{suffix}.png",
    }
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory, prefix=".pruning-") as temporary:
        drafts = {what: Path(temporary) / path.name for what, path in files.items()}
        result.save(drafts["pruned network"], **provenance)
        save_file({name: score.contiguous().cpu() for name, score in result.scores.items()}, drafts["scores"])
        drafts["metrics"].write_text(json.dumps(metrics_record(evaluation, provenance), indent=2) + "\n")
        write_chart(result.plot(), drafts["picture"])
        for what, draft in drafts.items():
            os.replace(draft, files[what])
    return files


def metrics_record(evaluation: Evaluation, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that was measured as plain types, for `metrics.json`."""
    result = evaluation.result
    pruned = {name: int((~mask).sum()) for name, mask in result.masks.items()}
    widths = result.widths.items()
    return {
        "recipe": result.recipe.plain(),
        "achieved": result.achieved,
        "max_difference": result.max_difference,
        "split": evaluation.split,
        "layers": {name: {"before": n, "after": left, "pruned": pruned.get(name, 0)} for name, (n, left) in widths},
        "whole": dict(result.whole),
        "before": asdict(evaluation.before),
        "after": asdict(evaluation.after),
        "latency_batch": LATENCY_BATCH,
        "provenance": dict(provenance),
    }


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of a pruning under the names that loggers get, such as `pruned/top1`."""
    result = evaluation.result
    values = {"pruned/achieved_amount": result.achieved, "pruned/max_difference": result.max_difference}
    for prefix, metrics in (("dense", evaluation.before), ("pruned", evaluation.after)):
        values |= {f"{prefix}/top{k}": accuracy for k, accuracy in metrics.top_k.items()}
        sizes = {name: getattr(metrics, name) for name in ("num_parameters", "flops", "size_bytes", "latency_s")}
        values |= {f"{prefix}/{name}": value for name, value in sizes.items() if value is not None}
    return values


def print_pruning(
    evaluations: Sequence[Evaluation], files: Sequence[Mapping[str, Path]], *, dense: Path | None, config: Path
) -> None:
    """Print the table of every pruning, the files that hold it, and a command to try next."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for evaluation in evaluations:
        console.print(pruning_table(evaluation.result, evaluation.before, evaluation.after, split=evaluation.split))
    if not files:
        return
    rows = [("dense network", dense), *(pair for written in files for pair in written.items())]
    rows += [("config", config if config.is_file() else None)]
    console.print("\nWritten:")
    for what, path in ((what, path) for what, path in rows if path is not None):
        console.print(f"  {what:<15} {from_here(path)}", soft_wrap=True)
    if config.is_file() and dense is not None:
        amount = max((evaluation.result.achieved for evaluation in evaluations), default=0.0)
        further = round(1 - (1 - amount) / 2, 2)  # half of what is left
        hint = f"mlprank prune --config {from_here(config)} --ckpt_path {from_here(dense)} --amount {further:g}"
    else:
        pruned = from_here(files[-1]["pruned network"])
        hint = f"python -c \"import mlprank; print(mlprank.load_pruned('{pruned}', YourNetwork()))\""
    console.print(f"Next: {hint}", soft_wrap=True)


def from_here(path: Path) -> Path:
    """A path below the current directory as a relative one; Lightning makes its paths absolute."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
