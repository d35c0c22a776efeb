"""What a pruned file says of itself, and the checks that it passes before anything is built from it."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

FORMAT = 2
FORMATS = (1, 2)
"""The layouts that are read: 1 was written by version 0.1.0, and has no `inputs`."""

_MOST_VALUES = 100_000
"""More plain values than this in one field are refused."""
_DEEPEST = 30
_RECORD = "_pruned_record"
_DOTTED = re.compile(r"[^\W\d]\w*(\.([^\W\d]\w*|<locals>))+")


def is_plain(value: object, *, tensors: bool = False) -> bool:
    """Say whether a value holds numbers, texts, None, lists and dicts only, and not too many of them."""
    seen = itertools.count()

    def fits(item: object, depth: int) -> bool:
        if next(seen) > _MOST_VALUES or depth > _DEEPEST:
            return False
        if isinstance(item, Mapping):
            named = all(key is None or isinstance(key, str | int | float) for key in item)
            return named and all(fits(each, depth + 1) for each in item.values())
        if isinstance(item, list | tuple):
            return all(fits(each, depth + 1) for each in item)
        return item is None or isinstance(item, str | int | float) or (tensors and isinstance(item, Tensor))

    return fits(value, 0)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)[:6]}"
    return f"{value!r:.60}" if isinstance(value, (int, float, str)) or value is None else f"a {type(value).__name__}"


def _fits(value: Any, rule: Any) -> bool:
    """Whether a value is of a type, passes a test or all of a tuple, or is a list or a mapping of what does.

    `{str: …}` is a mapping by names; a list stands for one of any length.
    """
    if isinstance(rule, tuple):
        return all(_fits(value, each) for each in rule)
    if isinstance(rule, list):
        return isinstance(value, list) and all(_fits(each, rule[0]) for each in value)
    if isinstance(rule, dict):
        if not isinstance(value, Mapping):
            return False
        kind = next(iter(rule))
        if isinstance(kind, type):
            return all(type(name) is kind and _fits(each, rule[kind]) for name, each in value.items())
        return value.keys() == rule.keys() and all(_fits(value[name], each) for name, each in rule.items())
    return isinstance(value, rule) if isinstance(rule, type) else bool(rule(value))


_WHOLE = (  # a tensor with its own numbers, each one once: a shape of a million that repeats one number is refused
    Tensor,
    lambda tensor: tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu",
    lambda tensor: tensor.is_contiguous() and tensor.nbytes <= tensor.untyped_storage().nbytes(),
)
_INDEX = (
    *_WHOLE,
    lambda index: index.dtype == torch.int64 and index.dim() == 1,
    lambda index: not len(index) or (int(index[0]) >= 0 and bool((index[1:] > index[:-1]).all())),
)
_SIZES = ([lambda size: type(size) is int and 0 <= size < 2**40], lambda sizes: len(sizes) <= 16)
_DTYPE = (str, lambda name: isinstance(getattr(torch, name, None), torch.dtype))
_NUMBER = (lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,)
_ARGUMENTS = ({str: object}, is_plain)
_SPEC = ({"class_path": str, "init_args": Mapping}, is_plain)
_INPUT = {"place": str, "shape": _SIZES, "dtype": _DTYPE, "min": float, "max": float}


def _holds(*rule: Any, **options: Any) -> Any:
    """A field of a record with the rules that its value passes (see `_fits`)."""
    return field(metadata={"rule": rule}, **options)


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a pruned file says of itself. Kept indices are one-dimensional int64 tensors, ascending."""

    format: int = _holds(int)  # of this layout
    class_path: str = _holds(str, _DOTTED.fullmatch)  # of the network
    # class_path and init_args that build the dense network, if it recorded them
    model: Mapping[str, Any] | None = _holds(lambda value: value is None or _fits(value, _SPEC))
    # arguments of a LightningModule's constructor
    hyper_parameters: Mapping[str, Any] | None = _holds(lambda value: value is None or _fits(value, _ARGUMENTS))
    # of every tensor cut, indices by dimension
    slices: Mapping[str, Mapping[int, Tensor]] = _holds(
        {str: ({int: (_INDEX, len)}, lambda dims: all(0 <= dim < 16 for dim in dims))}
    )
    # names of those that the dense network did not have
    biases: Sequence[str] = _holds([str], lambda names: len(set(names)) == len(names))
    shapes: Mapping[str, Sequence[int]] = _holds({str: _SIZES})  # the dense network's, by name
    kept: Mapping[str, Tensor] = _holds({str: _INDEX})  # by pruned layer, indices that its last mask keeps
    whole: Mapping[str, str] = _holds({str: str})  # why each other layer stays whole
    recipe: Mapping[str, Any] = _holds(_ARGUMENTS)  # the fields of `mlprank.Recipe` as plain types
    achieved: float = _holds(_NUMBER, lambda share: share <= 1)  # share of neurons that were pruned
    max_difference: float = _holds(_NUMBER)  # the largest between masked and narrow network on a calibration batch
    example_shape: Sequence[int] = _holds(_SIZES, len)  # of the first input, with a batch dimension of 1
    example_dtype: str = _holds(_DTYPE)  # such as "float32"
    # calibration, source checkpoint and whatever the caller added
    provenance: Mapping[str, Any] = _holds(Mapping, functools.partial(is_plain, tensors=True))
    versions: Mapping[str, str] = _holds({str: str})  # of the packages that wrote the file
    # what `describe_inputs` gave
    inputs: Sequence[Mapping[str, Any]] = _holds([_INPUT], lambda each: len(each) < 1000, default_factory=list)

    def after(self, earlier: Artifact) -> Artifact:
        """Describe the pruning of a network that was narrow already from its dense network on."""
        slices = {name: dict(dims) for name, dims in earlier.slices.items()}
        for name, dims in self.slices.items():
            for dim, index in dims.items():
                before = slices.setdefault(name, {}).get(dim)
                slices[name][dim] = index if before is None else before[index]
        created = set(earlier.biases)
        return replace(
            self,
            slices={name: dims for name, dims in slices.items() if name not in created},
            biases=[*earlier.biases, *self.biases],
            shapes=dict(earlier.shapes),
        )

    def renamed(self, names: Mapping[str, str]) -> Artifact:
        """Return the record with other names for tensors; those without one are left out."""
        return replace(
            self,
            slices={names[name]: dims for name, dims in self.slices.items() if name in names},
            shapes={names[name]: shape for name, shape in self.shapes.items() if name in names},
            biases=[names[name] for name in self.biases if name in names],
        )


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Say what a call looks like: shape, dtype, and least and greatest value of every tensor, also in lists and dicts.

    Its place is "0", "1", … for positional arguments, else the keyword.
    """
    described: list[Mapping[str, Any]] = []
    for place, value in {**{str(number): value for number, value in enumerate(args)}, **kwargs}.items():
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for number, leaf in enumerate(leaves):
            low, high = (float(end) for end in leaf.detach().double().aminmax()) if leaf.numel() else (0.0, 0.0)
            dtype, where = str(leaf.dtype).removeprefix("torch."), place if leaf is value else f"{place}.{number}"
            described.append({"place": where, "shape": list(leaf.shape), "dtype": dtype, "min": low, "max": high})
    return described


def record_of(model: nn.Module) -> Artifact | None:
    """Return what a narrow network knows of its pruning, or None for a network that was not pruned.

    A narrow network inside another one counts: the record is then of the whole, by the names that tensors have there.
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = module.__dict__.get(_RECORD)
        if own is None and isinstance(plain := module.__dict__.get("pruning"), Mapping) and "slices" in plain:
            own = Artifact(**plain)
        if isinstance(own, Artifact) and not prefix:
            return own
        if isinstance(own, Artifact):
            inner = own.renamed({name: f"{prefix}.{name}" for name in (*own.shapes, *own.biases)})
            state, created = model.state_dict(), set(inner.biases)
            others = {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
            shapes = {name: inner.shapes.get(name, shape) for name, shape in others.items() if name not in created}
            path = f"{type(model).__module__}.{type(model).__qualname__}"
            return replace(inner, shapes=shapes, class_path=path, model=None)
    return None


def remember(model: nn.Module, record: Artifact) -> None:
    """Let a narrow network know what it was made by, so that it can be saved and pruned again."""
    model.__dict__[_RECORD] = record
    if "pruning" in model.__dict__ and type(model).__module__.startswith("mlprank."):
        model.__dict__["pruning"] = dict(vars(record))  # what our LightningModule writes into its checkpoints


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that matter to a file."""
    packages = {name: importlib.metadata.version(name) for name in ("mlprank", "torch", "lightning")}
    return {"python": platform.python_version(), **packages}


def checked(own: Mapping[str, Any], state: Any, *, path: object) -> Artifact:
    """Check every field of a record by itself and against the weights beside it, and return it."""
    written = own.get("format")
    if type(written) is not int or written not in FORMATS:
        raise ValueError(
            f"{path} has format {_shown(written)}, this version of mlprank reads {FORMAT}; install a matching mlprank"
        )
    for problem in _problems(own, state):
        raise ValueError(f"{path} is damaged: {problem}; write it again")
    return Artifact(**own)


def _problems(own: Mapping[str, Any], state: Any) -> Iterator[str]:
    """What is wrong with a record and the weights beside it; only the first holds, as the others rely on it."""
    rules = {each.name: each.metadata for each in fields(Artifact) if each.name != "inputs" or own["format"] > 1}
    if set(own) != set(rules):
        lacking, besides = sorted(set(rules) - set(own)), sorted(map(str, set(own) - set(rules)))
        yield f"its mlprank entry lacks {lacking} or has {besides} besides"
    for name, rule in rules.items():
        if not _fits(own[name], rule["rule"]):
            yield f"{name} of its mlprank entry is {_shown(own[name])}, which it cannot be"
    if not isinstance(state, Mapping):
        yield f"its state_dict is a {type(state).__name__}"
    for name, tensor in state.items():
        if not isinstance(name, str) or not _fits(tensor, _WHOLE):
            yield f"{str(name)[:80]} of its state_dict is not a whole tensor"
    # the sizes of the dense network, the kept indices and the weights may contradict each other
    shapes, slices, created = own["shapes"], own["slices"], set(own["biases"])
    if strange := sorted(created & set(shapes)) + sorted(set(slices) - set(shapes)):
        yield f"{strange[0]} is a bias that was created in the dense network, or was cut and is not in it"
    if (expected := created | set(shapes)) != set(state):
        lacking, besides = sorted(expected - set(state))[:3], sorted(set(state) - expected)[:3]
        yield f"its weights lack {lacking} and have {besides} besides"
    for name, shape in shapes.items():
        narrow, place = list(shape), f'layer "{name.rpartition(".")[0] or name}": {name}'
        for dim, index in slices.get(name, {}).items():
            if dim >= len(shape) or int(index[-1]) >= shape[dim]:
                yield (
                    f"{place} has shape {tuple(shape)} in the dense network, and the file keeps index {int(index[-1])} "
                    f"of dimension {dim}"
                )
            narrow[dim] = len(index)
        if narrow != list(state[name].shape):
            yield f"{place} has shape {tuple(state[name].shape)}, and should have {tuple(narrow)}"
    for name in created:
        if state[name].dim() != 1:
            yield f"{name} has {state[name].dim()} dimensions"
