"""What a pruning gives back: networks, scores, masks, numbers, and a table that a person reads."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from mlprank.artifact.pruned import describe_network, push_to_hub, save_pretrained, save_pruned
from mlprank.artifact.record import Artifact, describe_inputs, record_of, remember
from mlprank.costs.metrics import ModelMetrics, measure_model
from mlprank.graph.program import Fill, Inputs
from mlprank.graph.records import describe_whole
from mlprank.pruning.recipe import Recipe
from mlprank.surgery.narrow import Slices
from mlprank.utils.charts import Chart, ScoredLayer, compose, display_name, draw_scores

_MAX_LAYERS_DRAWN = 40


class PruningMetrics(NamedTuple):
    """The numbers of the dense and of the narrow network."""

    before: ModelMetrics
    after: ModelMetrics


@dataclass(frozen=True, eq=False, repr=False)
class PruningResult:
    """A pruned network.

    `model` is the narrow network, ready to run, train and export; `masked` has the old shapes and computes the same
    function, within `max_difference` on a calibration batch. By layer there are `scores`, shape (n_out,), larger means
    keep; `masks`, shape (n_out,), True for kept neurons; `widths` before and after; and why others stay `whole`.

    Examples:
        >>> import mlprank, torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> result = mlprank.prune(network, torch.randn(64, 8), amount=0.25)
        >>> result.widths, result.achieved
        ({'0': (16, 12), '2': (2, 2)}, 0.25)
    """

    model: nn.Module  # the narrow network, ready to run, train and export
    masked: nn.Module  # the network at its old shapes, rows of pruned neurons zeroed; it computes the same function
    scores: Mapping[str, Tensor]  # for every layer, shape (n_out,), sum 1; larger means keep
    masks: Mapping[str, Tensor]  # for every prunable layer, shape (n_out,), True for kept neurons
    recipe: Recipe  # how it was pruned
    whole: Mapping[str, str]  # why each other layer stays whole
    held_back: Mapping[str, int]  # neurons of a layer that were chosen but kept: nothing can take what they would leave
    slices: Slices  # for every tensor that became narrower, the kept indices by dimension
    biases: tuple[str, ...]  # names of biases that the dense network did not have
    # shape (n_out,), True for rows that stay, of parameters with zeroed rows and gains of norms over pruned neurons
    parameter_masks: Mapping[str, Tensor]
    max_difference: float  # largest difference between the outputs of `masked` and `model` on a calibration batch
    dense: nn.Module  # the network that was given
    example: Tensor | Inputs  # one input, shape (1, ...), or one call where it is more than a tensor
    widths: Mapping[str, tuple[int, int]]  # neurons of every layer in the dense and in the narrow network
    fills: Mapping[str, Fill] = field(default_factory=dict)  # what norms of `masked` read for pruned neurons, by module
    units: Mapping[str, str] = field(default_factory=dict)  # what a layer's neurons are called: neurons or channels
    notes: tuple[str, ...] = ()  # what else a report should say
    # on the calibration data before and after `refine`; `max_difference` is then that of the networks before
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
        """Neurons of every layer that the narrow network has, as rows of zeros: outputs, or tied to kept neurons."""
        return {name: self.widths[name][1] - int(mask.sum()) for name, mask in self.masks.items()}

    @cached_property
    def metrics(self) -> PruningMetrics:
        """Parameters, FLOPs and bytes before and after; counted when first asked for."""
        return PruningMetrics(measure_model(self.dense, self.example), measure_model(self.model, self.example))

    def save(self, path: str | Path, **provenance: Any) -> Path:
        """Write the narrow network to a file that `mlprank.load_pruned` reads; the file is whole or absent.

        It is `pruned.ckpt` by custom; `provenance` are further plain values that say where the network came from.
        """
        return save_pruned(self.model, path, **provenance)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the narrow network and a model card to the Hugging Face Hub as "user/name"; return the address."""
        return push_to_hub(self.model, name, metrics=self._card(), private=private)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the narrow network and a model card with the metrics into a folder, which `from_pretrained` reads."""
        return save_pretrained(self.model, folder, metrics=self._card())

    def _card(self) -> dict[str, tuple[int, int]]:
        before, after = self.metrics
        return {
            "Parameters": (before.num_parameters, after.num_parameters),
            "FLOPs of one sample": (before.flops, after.flops),
            "Bytes": (before.size_bytes, after.size_bytes),
        }

    def record(self, **provenance: Any) -> Artifact:
        """Say how the narrow network came about, from its dense network on, as `pruned.ckpt` holds it."""
        if self.losses is not None:
            losses = dict(zip(("loss_before", "loss_after"), self.losses, strict=True))
            provenance["refined"] = {**losses, "max_difference": "of the networks before refinement"}
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

        A notebook shows the Altair chart; `mlprank.utils.charts.write_chart` writes it as PNG, SVG or PDF.
        """
        layers = tuple(
            ScoredLayer(name, tuple(self.scores[name].double().tolist()), tuple(mask.tolist()))
            for name, mask in islice(self.masks.items(), _MAX_LAYERS_DRAWN)
        )
        measure = display_name(self.recipe.plain()["measure"]["name"])
        more = f", {len(self.masks) - len(layers)} more layers not shown" if len(layers) < len(self.masks) else ""
        title = f"{network_name(self.model)}, {measure}, {100 * self.achieved:.0f} % pruned{more}"
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
        console.print(pruning_table(self, *self.metrics))
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
    """Lay out for a rich console what a pruning did: neurons of layers, totals, what stays whole, and the proof."""
    table = Table("", title=_title(result), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, (wide, narrow) in result.widths.items():
        zeroed, unit = result.zeroed.get(name, 0), result.units.get(name, "neurons")
        left = f"{narrow} {unit}" + (f" ({zeroed} zeroed)" if zeroed else "")
        table.add_row(name, f"{wide} {unit}", left, _percent(narrow, wide) if narrow != wide else "whole")
    table.add_section()
    for k in sorted(set(before.top_k) & set(after.top_k)):
        old, new = before.top_k[k], after.top_k[k]
        name = f"{split} top-{k}" if split else f"top-{k}"
        table.add_row(name, f"{old:.2%}", f"{new:.2%}", f"{100 * (new - old):+.2f} points")
    for name, wide, narrow, shown in (
        ("parameters", before.num_parameters, after.num_parameters, "{:,}".format),
        ("FLOPs per image", before.flops, after.flops, "{:,}".format),
        ("file size", before.size_bytes, after.size_bytes, format_bytes),
    ):
        table.add_row(name, shown(wide), shown(narrow), _percent(narrow, wide))
    if before.latency_s is not None and after.latency_s is not None:
        times = [f"{1e3 * seconds:.3f} ms" for seconds in (before.latency_s, after.latency_s)]
        table.add_row("latency of 64 images", *times, f"{before.latency_s / after.latency_s:.2f} times as fast")
    amount = result.recipe.amount
    asked = ", ".join(f"{k} {v:.0%}" for k, v in amount.items()) if isinstance(amount, Mapping) else f"{amount:.1%}"
    said = [
        f"Pruned {result.achieved:.1%} of the neurons of the prunable layers ({asked} requested).",
        f"Masked and removed network agree: their outputs differ by at most {result.max_difference:.1e}.",
    ]
    if result.losses is not None:
        kind, (first, last) = result.recipe.plain()["refine"], result.losses
        said.append(
            f"Refined without labels in {kind['steps']:,} steps: loss ({kind['loss']}) on the calibration data "
            f"{first:.3g} → {last:.3g}; the agreement above is that of the networks before."
        )
    if result.held_back:
        layers = ", ".join(f'"{name}" {count}' for name, count in result.held_back.items())
        said.append(f"Kept though chosen, as nothing can take the constants they would leave behind: {layers}.")
    said += result.notes
    said += [f"Whole: {describe_whole(result.whole)}."] if result.whole else []
    return Group(table, *map(Text, said))


def network_name(network: nn.Module) -> str:
    """Return the class of a network; where it is a module around a `model`, as classifiers are, that of the model."""
    inner = getattr(network, "model", None)
    return type(inner if isinstance(inner, nn.Module) else network).__name__


def _title(result: PruningResult) -> str:
    plain = result.recipe.plain()
    names = [plain["measure"]["name"], plain["method"]["name"], plain["compensation"]["name"], plain["graph"]]
    return f"{network_name(result.model)} pruned by {', '.join(names)}"


def _percent(after: float, before: float) -> str:
    return f"{(after - before) / before:+.1%}" if before else ""


def format_bytes(count: float) -> str:
    """Return a size as a person reads it, such as "1.23 MB"."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
