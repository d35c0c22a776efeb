"""Made-up records for the tests of the report. No number here was measured; the curves are drawn from formulas."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlprank.experiments.records import CellMetrics, CellParameters, CellRecord, LayerWidth, RecordStore

MEASURES = ("weighted_pagerank", "modified_pagerank", "random", "norm", "activation", "wanda", "reconstruction")
WIDTHS = {"SyntheticTwo": (256, 10), "SyntheticFive": (512, 512, 256, 256, 10)}
BREAKS_AT = {
    "weighted_pagerank": 0.78,
    "modified_pagerank": 0.74,
    "random": 0.52,
    "norm": 0.62,
    "activation": 0.68,
    "wanda": 0.72,
    "reconstruction": 0.9,
}


def parameters(**changes: object) -> CellParameters:
    """One cell's parameters, with some changed."""
    plain = CellParameters(
        model="SyntheticTwo",
        dataset="SyntheticData",
        measure="weighted_pagerank",
        method="local",
        amount=0.5,
        compensation="constant",
        graph="chain",
        protect_output=True,
        calibration_samples=64,
        calibration_seed=0,
        checkpoint="checkpoints/synthetic.ckpt",
        checkpoint_sha256="0" * 64,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def metrics(top1: float, *, dense: float = 0.88, layers: Sequence[LayerWidth] = ()) -> CellMetrics:
    """Metrics with this accuracy; the rest follows from the layers."""
    layers = tuple(layers) or (LayerWidth(name="fc1", width=8, kept=4),)
    before, after = sum(layer.width for layer in layers), sum(layer.kept for layer in layers)
    return CellMetrics(
        top1=top1,
        top5=min(1.0, top1 + 0.1),
        dense_top1=dense,
        dense_top5=0.99,
        achieved_amount=1 - after / before,
        num_parameters_before=before * 400,
        num_parameters_after=after * 400,
        flops_before=before * 800,
        flops_after=after * 800,
        size_bytes_before=before * 1600,
        size_bytes_after=after * 1600,
        latency_s_before=1e-6 * before,
        latency_s_after=1e-6 * (after + 20),
        layers=layers,
    )


def record(top1: float | None = 0.8, *, error: str = "", dense: float = 0.88, **changes: object) -> CellRecord:
    """One record: finished with this accuracy, or failed with this error."""
    return CellRecord(
        parameters=parameters(**changes),
        status="failed" if top1 is None else "ok",
        metrics=None if top1 is None else metrics(top1, dense=dense),
        error=error or "made to fail" if top1 is None else None,
        timings={"evaluate_s": 0.25},
        versions={"python": "3.11.7", "torch": "2.14.1", "lightning": "2.6.6", "mlprank": "0.1.0"},
        machine={"device": "synthetic device"},
        timestamp="2026-01-02T03:04:05+00:00",
    )


def training(number: int, model: str = "SyntheticTwo") -> str:
    """The digest of a checkpoint of its own."""
    return hashlib.sha256(f"{model} {number}".encode()).hexdigest()


def write_experiment(
    directory: Path,
    *,
    models: Sequence[str] = ("SyntheticTwo", "SyntheticFive"),
    measures: Sequence[str] = MEASURES,
    methods: Sequence[str] = ("local", "global"),
    amounts: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9),
    seeds: Sequence[int] = (0, 1, 2),
    failures: int = 2,
) -> None:
    """Write a results directory with scores, a training for every seed, and `failures` failed cells."""
    with RecordStore(directory) as store:
        for number, model in enumerate(models):
            for measure in measures:
                for seed in seeds:
                    scores, kept_order = _scores(WIDTHS[model], measure, seed)
                    for method in methods:
                        for amount in amounts:
                            kept = _kept(scores, kept_order, method, amount)
                            layers = [
                                LayerWidth(name=name, width=mask.size, kept=int(mask.sum()))
                                for name, mask in kept.items()
                            ]
                            draw = np.random.default_rng([seed, number, int(100 * amount), len(measure), len(method)])
                            fallen = 1 / (
                                1 + math.exp(18 * (BREAKS_AT[measure] - 0.04 * (method == "global") - amount))
                            )
                            top1 = (0.97 - 0.09 * number) * (1 - 0.88 * fallen) + float(
                                draw.normal(0, 0.006 + 0.03 * fallen)
                            )
                            plain = record(
                                model=model,
                                measure=measure,
                                method=method,
                                amount=amount,
                                calibration_seed=seed,
                                checkpoint_sha256=training(seed, model),
                            )
                            made = metrics(min(max(top1, 0.05), 1.0), dense=0.97 - 0.09 * number, layers=layers)
                            store.append(dataclasses.replace(plain, metrics=made), scores=scores, kept=kept)
        for index in range(failures):
            store.append(
                record(
                    None,
                    error="ValueError: checkpoint <synthetic> & its model disagree: missing keys "
                    "['fc1.weight']\n  made up",
                    model=models[0],
                    measure="norm",
                    amount=0.5,
                    calibration_seed=100 + index,
                )
            )
    (directory / "config.yaml").write_text("# synthetic\nmodels: [SyntheticTwo]\namounts: [0.1, 0.3]\n")


def _scores(widths: Sequence[int], measure: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    draw = np.random.default_rng([seed, len(measure), widths[0]])
    scores = {}
    for index, width in enumerate(widths):
        values = (
            draw.random(width) if measure == "random" else draw.gamma(2 + index, size=width) + 0.3 * draw.random(width)
        )
        scores[f"fc{index + 1}"] = values / values.sum()
    return scores, draw.random(len(widths))


def _kept(scores: dict[str, np.ndarray], tilt: np.ndarray, method: str, amount: float) -> dict[str, np.ndarray]:
    kept = {}
    for index, (name, values) in enumerate(scores.items()):
        last = index == len(scores) - 1
        share = amount if method == "local" else min(max(amount + 0.3 * (tilt[index] - 0.5), 0.0), 0.97)
        gone = 0 if last else round(share * values.size)
        mask = np.ones(values.size, dtype=bool)
        mask[np.argsort(values)[:gone]] = False
        kept[name] = mask
    return kept
