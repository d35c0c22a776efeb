"""What a pruning gives back: networks, scores, masks, numbers, and a table that a person reads."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from mlprank.artifact.pruned import describe_network, push_to_hub, save_pretrained, write_pruned
from mlprank.artifact.record import Artifact, describe_inputs, record_of, remember
from mlprank.costs.metrics import ModelMetrics, measure_model
from mlprank.graph.program import Fill, Inputs
from mlprank.graph.records import describe_whole
from mlprank.pruning.recipe import Recipe
from mlprank.surgery.narrow import Slices
from mlprank.utils.charts import Chart, ScoredLayer, compose, display_name, draw_scores

_MAX_LAYERS_DRAWN = 40


@dataclass(frozen=True)
class PruningMetrics:
    """The numbers of a pruning."""

    before: ModelMetrics  # the dense network
    after: ModelMetrics  # the narrow network
    requested: float | Mapping[str, float]  # the amount that was asked for
    achieved: float  # removed neurons as a share of the neurons of the prunable layers
    # largest difference between the outputs of the masked and the narrow network on a calibration batch
    max_difference: float


@dataclass(frozen=True, eq=False, repr=False)
class PruningResult:
    """A pruned network.

    Attributes:
        model: The narrow network, ready to run, train and export.
        masked: The network at its old shapes, rows of pruned neurons zeroed; it computes the same function.
        scores: For every layer, shape (n_out,), sum 1; larger means keep.
        masks: For every prunable layer, shape (n_out,), True for kept neurons.
        recipe: How it was pruned.
        whole: Why each other layer stays whole.
        held_back: For layers with neurons that were chosen but kept, because nothing can take what they would leave
            behind: how many.
        slices: For every tensor that became narrower, the kept indices by dimension.
        biases: Names of biases that the dense network did not have.
        parameter_masks: For every weight and bias with zeroed rows, and for the gains of normalisations over pruned
            neurons, shape (n_out,), True for the rows that stay.
        max_difference: Largest difference between the outputs of `masked` and `model` on a calibration batch.
        dense: The network that was given.
        example: One input, shape (1, ...), or one call where it is more than a tensor.
        widths: Neurons of every layer in the dense and in the narrow network.
        fills: What normalisations of the masked network read in place of pruned neurons, by module.
        units: What the neurons of a layer are called: "neurons" or "channels".
        notes: What else a report should say.
        losses: Loss on the calibration data before and after `refine`; None where nothing was refined. `max_difference`
            is then that of the networks before, which had the same weights.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> result = mlprank.prune(network, torch.randn(64, 8), amount=0.25)
        >>> result.widths, result.achieved
        ({'0': (16, 12), '2': (2, 2)}, 0.25)
    """

    model: nn.Module
    masked: nn.Module
    scores: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    recipe: Recipe
    whole: Mapping[str, str]
    held_back: Mapping[str, int]
    slices: Slices
    biases: tuple[str, ...]
    parameter_masks: Mapping[str, Tensor]
    max_difference: float
    dense: nn.Module
    example: Tensor | Inputs
    widths: Mapping[str, tuple[int, int]]
    fills: Mapping[str, Fill] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    losses: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        remember(self.model, self.record())  # so that it can be trained, pruned again and saved

    @property
    def achieved(self) -> float:
        """Pruned neurons as a share of the neurons of the prunable layers, unitless."""
        total = sum(len(mask) for mask in self.masks.values())
        return sum(int((~mask).sum()) for mask in self.masks.values()) / total

    @property
    def zeroed(self) -> dict[str, int]:
        """Neurons that every layer of the narrow network has although its mask is False there: their rows are zero.

        They are outputs, or tied to neurons of another layer that are kept (`graph="chain"`).
        """
        return {name: self.widths[name][1] - int(mask.sum()) for name, mask in self.masks.items()}

    @cached_property
    def metrics(self) -> PruningMetrics:
        """Parameters, FLOPs and bytes before and after; counted when first asked for."""
        return PruningMetrics(
            before=measure_model(self.dense, self.example),
            after=measure_model(self.model, self.example),
            requested=self.recipe.amount,
            achieved=self.achieved,
            max_difference=self.max_difference,
        )

    def save(self, path: str | Path, **provenance: Any) -> Path:
        """Write the narrow network to a file that `mlprank.load_pruned` reads; the file is whole or absent.

        Args:
            path: The file, `pruned.ckpt` by custom.
            **provenance: Further plain values that say where the network came from.
        """
        return write_pruned(self.model, self.record(**provenance), path)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the narrow network and a model card to the Hugging Face Hub as "user/name"; return the address."""
        return push_to_hub(self.model, name, metrics=self._card(), private=private)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the narrow network and a model card with the metrics into a folder, which `from_pretrained` reads."""
        return save_pretrained(self.model, folder, metrics=self._card())

    def _card(self) -> dict[str, tuple[int, int]]:
        before, after = self.metrics.before, self.metrics.after
        return {
            "Parameters": (before.num_parameters, after.num_parameters),
            "FLOPs of one sample": (before.flops, after.flops),
            "Bytes": (before.size_bytes, after.size_bytes),
        }

    def record(self, **provenance: Any) -> Artifact:
        """Say how the narrow network came about, from its dense network on, as `pruned.ckpt` holds it.

        Args:
            **provenance: Plain values that say where the network came from.
        """
        if self.losses is not None:
            before, after = self.losses
            provenance["refined"] = {
                "loss_before": before,
                "loss_after": after,
                "max_difference": "of the networks before refinement",
            }
        args, kwargs = getattr(self.example, "args", (self.example,)), getattr(self.example, "kwargs", {})
        inputs = describe_inputs(args, kwargs)
        own = Artifact(
            **describe_network(self.model, self.dense),
            slices={name: {dim: index.cpu() for dim, index in dims.items()} for name, dims in self.slices.items()},
            biases=list(self.biases),
            kept={name: mask.nonzero().flatten().cpu() for name, mask in self.masks.items()},
            whole=dict(self.whole),
            recipe=self.recipe.plain(),
            achieved=self.achieved,
            max_difference=self.max_difference,
            example_shape=list(inputs[0]["shape"]),
            example_dtype=inputs[0]["dtype"],
            provenance=provenance,
            inputs=inputs,
        )
        earlier = record_of(self.dense)
        return own if earlier is None else own.after(earlier)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for every layer, which `pandas.DataFrame` and `csv.DictWriter` take: neurons, and those kept."""
        return [{"layer": name, "neurons": wide, "kept": left} for name, (wide, left) in self.widths.items()]

    def plot(self) -> Chart:
        """Draw every pruned layer's scores from the most central neuron to the least, and which of them were pruned.

        Returns:
            An Altair chart, which a notebook shows; `mlprank.utils.charts.write_chart` writes it as PNG, SVG or PDF.
        """
        shown = list(self.masks)[:_MAX_LAYERS_DRAWN]
        measure, amount = self.recipe.plain()["measure"]["name"], f"{self.achieved:.0%} pruned".replace("%", " %")
        more = f", {len(self.masks) - len(shown)} more layers not shown" if len(shown) < len(self.masks) else ""
        layers = tuple(
            ScoredLayer(name, tuple(self.scores[name].double().tolist()), tuple(self.masks[name].tolist()))
            for name in shown
        )
        title = f"{network_name(self.model)}, {display_name(measure)}, {amount}{more}"
        return compose([draw_scores(layers, title=title, width=460)])

    def __str__(self) -> str:
        return self._console().export_text().rstrip()

    def _repr_html_(self) -> str:
        return self._console().export_html(inline_styles=True, code_format='<pre style="line-height:1.2">{code}</pre>')

    def _console(self) -> Console:
        # A console that knows of a notebook shows what is printed there, whatever its file.
        console = Console(
            file=io.StringIO(), record=True, width=110, color_system=None, highlight=False, force_jupyter=False
        )
        console.print(pruning_table(self, self.metrics.before, self.metrics.after))
        return console

    def __repr__(self) -> str:
        layers = [f"{name} {wide} → {left}" for name, (wide, left) in self.widths.items() if left != wide]
        more = f" and {len(layers) - 4} more" if len(layers) > 4 else ""
        before, after = (sum(each.numel() for each in network.parameters()) for network in (self.dense, self.model))
        lines = (
            _title(self),
            f"pruned      {self.achieved:.1%} of the neurons of the prunable layers",
            f"parameters  {before:,} → {after:,} ({_percent(after, before)})",
            f"layers      {', '.join(layers[:4]) or 'none became narrower'}{more}",
            f"agreement   the outputs of masked and removed network differ by at most {self.max_difference:.1e}",
        )
        return "\n  ".join(lines)


def pruning_table(
    result: PruningResult, before: ModelMetrics, after: ModelMetrics, *, split: str | None = None
) -> RenderableType:
    """Lay out what a pruning did.

    Args:
        result: The pruning.
        before: The dense network's numbers, with accuracies and latency where they were measured.
        after: The narrow network's.
        split: The data that accuracies were measured on.

    Returns:
        Something for a rich console: neurons per layer, then the totals, then what stays whole and the proof.
    """
    table = Table(title=_title(result), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, (wide, narrow) in result.widths.items():
        zeroed = result.zeroed.get(name, 0)
        note = f" ({zeroed} zeroed)" if zeroed else ""
        unit = result.units.get(name, "neurons")
        table.add_row(
            name, f"{wide} {unit}", f"{narrow} {unit}{note}", _percent(narrow, wide) if narrow != wide else "whole"
        )
    table.add_section()
    for row in _totals(before, after, split):
        table.add_row(*row)
    lines: list[RenderableType] = [table]
    requested = result.recipe.amount
    asked = (
        f"{requested:.1%}"
        if isinstance(requested, float | int)
        else ", ".join(f"{k} {v:.0%}" for k, v in requested.items())
    )
    lines.append(Text(f"Pruned {result.achieved:.1%} of the neurons of the prunable layers ({asked} requested)."))
    lines.append(
        Text(f"Masked and removed network agree: their outputs differ by at most {result.max_difference:.1e}.")
    )
    if result.losses is not None:
        kind, (first, last) = result.recipe.plain()["refine"], result.losses
        lines.append(
            Text(
                f"Refined without labels in {kind['steps']:,} steps: loss ({kind['loss']}) on the calibration data "
                f"{first:.3g} → {last:.3g}; the agreement above is that of the networks before."
            )
        )
    if result.held_back:
        layers = ", ".join(f'"{name}" {count}' for name, count in result.held_back.items())
        lines.append(Text(f"Kept though chosen, as nothing can take the constants they would leave behind: {layers}."))
    lines += [Text(note) for note in result.notes]
    if result.whole:
        lines.append(Text(f"Whole: {describe_whole(result.whole)}."))
    return Group(*lines)


def network_name(network: nn.Module) -> str:
    """Return the class of a network; where it is a module around a `model`, as classifiers are, that of the model."""
    inner = getattr(network, "model", None)
    return type(inner if isinstance(inner, nn.Module) else network).__name__


def _title(result: PruningResult) -> str:
    plain = result.recipe.plain()
    names = [plain["measure"]["name"], plain["method"]["name"], plain["compensation"]["name"], plain["graph"]]
    return f"{network_name(result.model)} pruned by {', '.join(names)}"


def _totals(before: ModelMetrics, after: ModelMetrics, split: str | None) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            f"{split} top-{k}" if split else f"top-{k}",
            f"{before.top_k[k]:.2%}",
            f"{after.top_k[k]:.2%}",
            f"{100 * (after.top_k[k] - before.top_k[k]):+.2f} points",
        )
        for k in sorted(set(before.top_k) & set(after.top_k))
    ]
    for name, wide, narrow, shown in (
        ("parameters", before.num_parameters, after.num_parameters, "{:,}".format),
        ("FLOPs per image", before.flops, after.flops, "{:,}".format),
        ("file size", before.size_bytes, after.size_bytes, format_bytes),
    ):
        rows.append((name, shown(wide), shown(narrow), _percent(narrow, wide)))
    if before.latency_s is not None and after.latency_s is not None:
        wide_ms, narrow_ms = (f"{1e3 * seconds:.3f} ms" for seconds in (before.latency_s, after.latency_s))
        faster = f"{before.latency_s / after.latency_s:.2f} times as fast"
        rows.append(("latency of 64 images", wide_ms, narrow_ms, faster))
    return rows


def _percent(after: float, before: float) -> str:
    return f"{(after - before) / before:+.1%}" if before else ""


def format_bytes(count: float) -> str:
    """Return a size as a person reads it, such as "1.23 MB"."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
