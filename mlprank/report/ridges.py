"""Distributions of centralities: a ridge a layer, the part taken out told from what was kept."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlprank.experiments.records import CellRecord
from mlprank.experiments.statistics import finished_cells, series_label
from mlprank.experiments.store import read_scores
from mlprank.report.palette import Style
from mlprank.report.svg import Scale, nice_ticks, polyline, tag, text

NUM_BINS = 40
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Ridge:
    """One layer: `kept` and `removed` count neurons a bin; without masks all are in `kept`. Shape (NUM_BINS,)."""

    layer: str
    kept: tuple[int, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Ridges:
    """One measure on one network; `edges` (NUM_BINS + 1,) in multiples of a layer's mean score."""

    network: str
    label: str
    record: CellRecord
    edges: tuple[float, ...]
    layers: tuple[Ridge, ...]


def ridges_of(sources: Iterable[tuple[Path, Sequence[CellRecord]]]) -> tuple[Ridges, ...]:
    """Histograms of one cell a network and measure: the local method and the amount nearest 0.5 where it can be.

    Args:
        sources: Results directories with their records. Cells without a file of scores are passed over.

    Raises:
        CorruptRecordError: If a file of scores is damaged.
    """
    chosen: dict[tuple[str, str], tuple[tuple[object, ...], Path, CellRecord]] = {}
    for directory, records in sources:
        for record in finished_cells(records):
            if not (directory / "scores" / f"{record.key}.safetensors").is_file():
                continue
            p = record.parameters
            rank = (p.method.lower() != "local", abs(p.amount - 0.5), p.calibration_seed, p.checkpoint, record.key)
            place = (f"{p.model} on {p.dataset}", series_label(p))
            if place not in chosen or rank < chosen[place][0]:
                chosen[place] = (rank, directory, record)
    loaded: dict[tuple[str, str], tuple[CellRecord, dict[str, Array], dict[str, Array]]] = {}
    for place, (_, directory, record) in chosen.items():
        found = read_scores(directory, record.key)
        assert found is not None
        loaded[place] = (record, {n: _relative(s) for n, s in found[0].items() if s.size}, found[1])
    limits: dict[str, float] = {}
    for (network, _), (_, scores, _) in loaded.items():
        reach = max((float(np.quantile(values, 0.995)) for values in scores.values()), default=1.0)
        limits[network] = min(max(limits.get(network, 1.5), reach), 5.0)
    return tuple(
        _ridges(network, label, *loaded[network, label], limit=limits[network]) for network, label in sorted(loaded)
    )


def ridges_svg(ridges: Ridges, style: Style, *, title: str) -> str:
    """Draw one measure's distributions as inline SVG, the first layer on top."""
    step, left, width = 46, 8.0, 310.0
    across = Scale(0.0, ridges.edges[-1], left, width - 8)
    height = 14 + step * len(ridges.layers)
    parts = []
    for tick in sorted({1.0, *nice_ticks(0.0, ridges.edges[-1], target=3)}):
        if tick <= ridges.edges[-1] + 1e-9:
            kind = "mean-line" if tick == 1.0 else "grid"
            parts.append(tag("line", class_=kind, x1=across(tick), x2=across(tick), y1=8, y2=height))
            parts.append(text(across(tick), height + 15, f"{tick:g}", class_="tick mid"))
    for row, ridge in enumerate(ridges.layers):
        base = 14.0 + step * (row + 1)
        tallest = max(max(k + r for k, r in zip(ridge.kept, ridge.removed, strict=True)), 1)
        up = Scale(0.0, tallest, base, base - step * 0.88)
        total = [k + r for k, r in zip(ridge.kept, ridge.removed, strict=True)]
        num = sum(total)
        whole = f"{ridge.layer}|{num} neurons" + (f", {sum(ridge.removed)} taken out" if any(ridge.removed) else "")
        inner = tag(
            "path", d=_outline(total, ridges.edges, across, up), class_="ridge", style=f"fill:var(--c{style.index})"
        )
        gone = tag(
            "path",
            d=_outline(ridge.removed, ridges.edges, across, up),
            class_="ridge-gone",
            style=f"--own:var(--c{style.index})",
        )
        line = tag("line", class_="axis", x1=left, x2=width - 8, y1=base, y2=base)
        parts.append(tag("g", inner, gone if any(ridge.removed) else "", line, class_="point", data_tip=whole))
        parts.append(text(width - 8, base - step * 0.42, ridge.layer, class_="layer end"))
    parts.append(text((left + width) / 2, height + 33, "centrality ÷ layer mean", class_="name mid"))
    return tag("svg", *parts, class_="ridges", viewBox=f"0 0 {width:g} {height + 40:g}", role="img", aria_label=title)


def layer_order(name: str) -> tuple[object, ...]:
    """Sort key that puts `fc2` before `fc10`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def _relative(scores: Array) -> Array:
    values = np.asarray(scores, dtype=np.float64).ravel()
    mean = float(values.mean())
    return values / mean if mean > 0.0 else values


def _ridges(
    network: str,
    label: str,
    record: CellRecord,
    scores: Mapping[str, Array],
    kept: Mapping[str, Array],
    *,
    limit: float,
) -> Ridges:
    edges = np.linspace(0.0, limit, NUM_BINS + 1)
    order = {layer.name: number for number, layer in enumerate(record.metrics.layers)} if record.metrics else {}
    layers = []
    for name in sorted(scores, key=lambda name: (order.get(name, len(order)), layer_order(name))):
        values = np.clip(scores[name], 0.0, limit)
        mask = kept.get(name, np.ones(values.size, dtype=np.bool_)).ravel()
        mask = mask if mask.size == values.size else np.ones(values.size, dtype=np.bool_)
        held, gone = np.histogram(values[mask], edges)[0], np.histogram(values[~mask], edges)[0]
        layers.append(Ridge(name, tuple(map(int, held)), tuple(map(int, gone))))
    return Ridges(network, label, record, tuple(map(float, edges)), tuple(layers))


def _outline(counts: Sequence[int], edges: Sequence[float], across: Scale, up: Scale) -> str:
    corners = [(across(edges[0]), up(0))]
    for index, count in enumerate(counts):
        corners += [(across(edges[index]), up(count)), (across(edges[index + 1]), up(count))]
    return polyline([*corners, (across(edges[-1]), up(0))]) + "Z"
