"""What a pruning leaves in a run directory: the network, its scores, its numbers and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file

from mlprank.pruning.evaluation import LATENCY_BATCH, Evaluation
from mlprank.utils.charts import write_chart


def write_outputs(
    evaluation: Evaluation, directory: Path, *, several: bool, provenance: Mapping[str, Any]
) -> dict[str, Path]:
    """Write a pruning to files: all of them, or none where writing fails or is interrupted.

    Args:
        evaluation: The pruning with its numbers.
        directory: Where to write; made if it is not there.
        several: Whether the directory holds prunings of several amounts; file names then carry the amount.
        provenance: Plain values that say where the network came from.

    Returns:
        The files, by what they hold.

    Raises:
        OSError: If a file cannot be written; it is named.
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
    return {
        "recipe": result.recipe.plain(),
        "achieved": result.achieved,
        "max_difference": result.max_difference,
        "split": evaluation.split,
        "layers": {
            name: {
                "before": wide,
                "after": narrow,
                "pruned": int((~result.masks[name]).sum()) if name in result.masks else 0,
            }
            for name, (wide, narrow) in result.widths.items()
        },
        "whole": dict(result.whole),
        "before": asdict(evaluation.before),
        "after": asdict(evaluation.after),
        "latency_batch": LATENCY_BATCH,
        "provenance": dict(provenance),
    }


def scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of a pruning under the names that loggers get, such as `pruned/top1`."""
    values: dict[str, float] = {
        "pruned/achieved_amount": evaluation.result.achieved,
        "pruned/max_difference": evaluation.result.max_difference,
    }
    for prefix, metrics in (("dense", evaluation.before), ("pruned", evaluation.after)):
        values |= {f"{prefix}/top{k}": accuracy for k, accuracy in metrics.top_k.items()}
        values |= {f"{prefix}/num_parameters": metrics.num_parameters, f"{prefix}/flops": metrics.flops}
        values |= {f"{prefix}/size_bytes": metrics.size_bytes}
        if metrics.latency_s is not None:
            values[f"{prefix}/latency_s"] = metrics.latency_s
    return values
