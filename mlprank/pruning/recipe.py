"""How a network is pruned: every choice in one frozen record, checked once, and as plain types for a file."""

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from mlprank.compensation import COMPENSATIONS, Compensation
from mlprank.measures import MEASURES, Measure
from mlprank.methods import METHODS, Method
from mlprank.pruning.refine import Refinement, get_refinement
from mlprank.utils.errors import check_amount, check_choice, check_whole
from mlprank.utils.registry import Registry

_PARTS: Mapping[str, Registry[Any]] = {"measure": MEASURES, "method": METHODS, "compensation": COMPENSATIONS}
"""The fields that hold something callable, and where its names are looked up."""


@dataclass(frozen=True)
class Recipe:
    """How a network is pruned. Every way to prune takes these fields, with these defaults.

    Attributes:
        amount: The share of neurons to remove, in [0, 1), for all layers or by layer name (`*` and `[2-5]` match as in
            file names; layers that no name matches stay whole).
        measure: What scores neurons: weighted_pagerank, modified_pagerank, random, norm, activation, wanda,
            reconstruction; with parameters as in {name: norm, p: 2}; a dotted path; or an instance.
        method: What turns scores into masks: local, global, adaptive (a budget spent where it costs least; `{name:
            adaptive, count: parameters}` counts `amount` in parameters, flops, bytes or latency), a dotted path, or an
            instance.
        compensation: What a pruned neuron leaves behind: constant, zero, mean, least_squares, a dotted path, or an
            instance.
        graph: "dag", the true graph of neurons, or "chain", the published reading.
        protect_output: Keep every output neuron. Otherwise rows of the output layer are zeroed, not removed, as
            published.
        protect: Names of layers to keep whole, matched like those of `amount`.
        min_neurons: At least so many neurons stay in every layer.
        round_to: The number of kept neurons becomes a multiple of this, where the layer is wide enough.
        refine: So many steps of distillation towards the dense network's outputs on the calibration data, without
            labels, after the self-check; 0 for none; `{steps: 1000, loss: kl}` says more, see
            `mlprank.pruning.refine.Refinement`.
        num_samples: Number of calibration samples to read; None for all of them.
        seed: Seed of their draw, where a data module draws them.

    Raises:
        TypeError: If a measure, method or compensation is none.
        ValueError: If a field is out of range or a name unknown.

    Examples:
        >>> Recipe(amount=0.7, measure={"name": "norm", "p": 2}).measure
        Norm(p=2)
        >>> Recipe(round_to=8).plain()["round_to"]
        8
    """

    amount: float | Mapping[str, float] = 0.5
    measure: str | dict[str, Any] | Measure = "weighted_pagerank"
    method: str | dict[str, Any] | Method = "local"
    compensation: str | dict[str, Any] | Compensation = "least_squares"
    graph: Literal["dag", "chain"] = "dag"
    protect_output: bool = True
    protect: Sequence[str] = ()
    min_neurons: int = 1
    round_to: int = 1
    refine: int | dict[str, Any] | Refinement = 0
    num_samples: int | None = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_amount(self.amount)
        for name, registry in _PARTS.items():
            object.__setattr__(self, name, registry.find(getattr(self, name)))
        object.__setattr__(self, "refine", get_refinement(self.refine) or 0)
        check_choice("graph", self.graph, ("dag", "chain"))
        if isinstance(self.protect, str):
            raise ValueError(f'protect="{self.protect}" is one name; give a list of names')
        object.__setattr__(self, "protect", tuple(self.protect))
        num_samples = 1 if self.num_samples is None else self.num_samples
        check_whole(min_neurons=self.min_neurons, round_to=self.round_to, num_samples=num_samples)
        check_whole(least=0, seed=self.seed)

    @property
    def chain(self) -> bool:
        """Whether the network is read as a chain of linear layers, as published."""
        return self.graph == "chain"

    @property
    def scores_on_pruned(self) -> bool:
        """Whether a group is scored after the groups below it have been pruned."""
        reads = bool(getattr(self.measure, "reads_pruned", False))
        return reads and bool(getattr(self.method, "layer_by_layer", False)) and not self.chain

    @property
    def scores_by_amount(self) -> bool:
        """Whether scores depend on the amount; where a measure does not say, those of other packages may."""
        ours = type(self.measure).__module__.partition(".")[0] == "mlprank"
        return bool(getattr(self.measure, "reads_amount", not ours))

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain types; `Recipe(**plain)` is the same recipe."""
        plain: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        plain |= {name: registry.describe(plain[name]) for name, registry in _PARTS.items()}
        plain["amount"] = dict(self.amount) if isinstance(self.amount, Mapping) else self.amount
        plain["refine"] = asdict(self.refine) if isinstance(self.refine, Refinement) else self.refine
        return {**plain, "protect": list(self.protect)}


def make_recipe(recipe: Recipe | None, given: Mapping[str, Any]) -> Recipe:
    """Return a recipe, the default one where it is None, with some fields changed; a TypeError names what is none."""
    known = {field.name for field in fields(Recipe)}
    if unknown := sorted(set(given) - known):
        raise TypeError(f"{unknown[0]!r} is not a field of Recipe; the fields are {', '.join(sorted(known))}")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is a {type(recipe).__name__}; give a mlprank.Recipe, or its fields by name")
    return replace(recipe or Recipe(), **given)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_recipe(function: _Function) -> _Function:
    """Show the fields of `Recipe` in place of a function's `**fields`: in signature, annotations and docstring.

    Fields that the function names itself stay as they are.
    """
    hints, signature = typing.get_type_hints(Recipe), inspect.signature(function, eval_str=True)
    own = {name: each for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD}
    added = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Recipe)
        if field.name not in own
    ]

    function.__signature__ = signature.replace(parameters=[*own.values(), *added])  # type: ignore[attr-defined]
    function.__annotations__ = {**typing.get_type_hints(function), **{each.name: each.annotation for each in added}}
    function.__annotations__.pop("fields", None)
    function.__doc__ = document_fields(function.__doc__, skipped=own)
    return function


def document_fields(doc: str | None, *, skipped: Collection[str]) -> str | None:
    """Put the descriptions of the recipe's fields in place of a docstring's line on `**fields`."""
    line = re.search(r"^( *)\*\*fields:.*$", doc or "", flags=re.MULTILINE)
    if doc is None or line is None:
        return doc
    block = inspect.cleandoc(Recipe.__doc__ or "").split("Attributes:\n", 1)[1].split("\n\n", 1)[0]
    entries = re.split(r"\n(?=\S)", textwrap.dedent(block))  # lines that go on are indented
    shown = [entry for entry in entries if entry.partition(":")[0] not in skipped]
    return doc.replace(line[0], textwrap.indent("\n".join(shown), line[1]))
