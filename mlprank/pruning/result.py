"""What a pruning gives back: networks, scores, masks, numbers, and a table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlprank.artifact.hub import push_to_hub, save_pretrained
from mlprank.artifact.pruned import Artifact, describe_network, write_pruned
from mlprank.artifact.record import describe_inputs, record_of, remember
from mlprank.costs.metrics import ModelMetrics, measure_model
from mlprank.graph.program import Fill, Inputs
from mlprank.pruning.recipe import Recipe
from mlprank.surgery.narrow import Slices
from mlprank.utils.charts import Chart, ScoredLayer, compose, display_name, draw_scores

_MAX_LAYERS_DRAWN = 40


@dataclass(frozen=True)
class PruningMetrics:
    """The numbers of a pruning.

    Attributes:
        before: The dense network.
        after: The narrow network.
        requested: The amount that was asked for.
        achieved: Removed neurons as a share of the neurons of the prunable layers.
        max_difference: Largest difference between the outputs of the masked and the narrow network on a calibration batch.
    """

    before: ModelMetrics
    after: ModelMetrics
    requested: float | Mapping[str, float]
    achieved: float
    max_difference: float


@dataclass(frozen=True, eq=False)
class PruningResult:
    """A pruned network.

    Attributes:
        model: The narrow network, ready to run, train and export.
        masked: The network at its old shapes, rows of pruned neurons zeroed; it computes the same function.
        scores: For every layer, shape (n_out,), sum 1; larger means keep.
        masks: For every prunable layer, shape (n_out,), True for kept neurons.
        recipe: How it was pruned.
        whole: Why each other layer stays whole.
        held_back: For layers with neurons that were chosen but kept, because nothing can take what they would leave behind: how many.
        slices: For every tensor that became narrower, the kept indices by dimension.
        biases: Names of biases that the dense network did not have.
        parameter_masks: For every weight and bias with zeroed rows, and for the gains of normalisations over pruned neurons, shape
            (n_out,), True for the rows that stay.
        max_difference: Largest difference between the outputs of `masked` and `model` on a calibration batch.
        dense: The network that was given.
        example: One input, shape (1, ...), or one call where it is more than a tensor.
        widths: Neurons of every layer in the dense and in the narrow network.
        fills: What normalisations of the masked network read in place of pruned neurons, by module.
        units: What the neurons of a layer are called: "neurons" or "channels".
        notes: What else a report should say.
        losses: Loss on the calibration data before and after `refine`; None where nothing was refined. `max_difference` is then that of
            the networks before, which had the same weights.

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
    dense: nn.Module = field(repr=False)
    example: Tensor | Inputs = field(repr=False)
    widths: Mapping[str, tuple[int, int]] = field(repr=False)
    fills: Mapping[str, Fill] = field(default_factory=dict, repr=False)
    units: Mapping[str, str] = field(default_factory=dict, repr=False)
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
        """Neurons that every pruned layer of the narrow network still has although its mask is False there: their rows are zero.

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

        Returns:
            The path.
        """
        return write_pruned(self.model, self.record(**provenance), path)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the narrow network and a model card with the metrics to the Hugging Face Hub; see `mlprank.artifact.hub`.

        Args:
            name: "user/name".
            private: Whether only the user sees it.

        Returns:
            The address of the upload.
        """
        return push_to_hub(self.model, name, metrics=self._card(), private=private)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the narrow network and a model card with the metrics into a folder, which `from_pretrained` reads.

        Args:
            folder: The folder; it is made.

        Returns:
            The folder.
        """
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
        title = f"{type(self.model).__name__}, {display_name(measure)}, {amount}{more}"
        return compose([draw_scores(layers, title=title, width=460)])

    def __str__(self) -> str:
        from mlprank.pruning.table import render

        return render(self)
