"""Image classifiers by name, and their weights out of anyone's files: Lightning's, the thesis's, bare state dicts."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned, read_artifact
from mlprank.artifact.spec import build_model as build_model
from mlprank.artifact.spec import describe_model as describe_model
from mlprank.models.cnn import FourLayerCNN as FourLayerCNN
from mlprank.models.cnn import ResNet18 as ResNet18
from mlprank.models.mlp import MLP as MLP
from mlprank.models.mlp import SixLayerMLP as SixLayerMLP
from mlprank.models.mlp import ThreeLayerMLP as ThreeLayerMLP
from mlprank.models.mlp import TwelveLayerMLP as TwelveLayerMLP
from mlprank.models.mlp import TwoLayerMLP as TwoLayerMLP
from mlprank.utils.registry import Registry

_FIXED = (TwoLayerMLP, ThreeLayerMLP, SixLayerMLP, TwelveLayerMLP, FourLayerCNN, ResNet18)
"""The networks that need no argument: their weights can be told by names and sizes."""

MODELS: Registry[nn.Module] = Registry("model", nn.Module, {cls.__name__: cls for cls in (MLP, *_FIXED)})
"""The network classes by name."""

register_model = MODELS.register
"""Make a network known by a name wherever a model is named: in `prune_mlp`, configs, experiments."""

get_model = MODELS.find_class
"""Return the network class of a name such as "TwoLayerMLP" or of a dotted path."""


def load_weights(path: str | os.PathLike[str], model: str | nn.Module) -> nn.Module:
    """Load a trained network's weights out of a file, and return it in evaluation mode.

    The file is what `mlprank fit` or another Lightning run wrote (the network being its module's `model`); a `.pth` as
    the thesis's script writes, also below `artifacts/models/<name>/model_<epoch>.pth`, whose entry "model" is the state
    dict; or a bare state dict. `model` is a network's name, e.g. "TwoLayerMLP", which is built on the CPU, or a network
    to load into, which is changed in place.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, would run code, holds no weights or those of another network.
    """
    network = get_model(model)() if isinstance(model, str) else model
    return fill(network, weights_of(read_checkpoint(path), path), path).eval()


load_published = load_weights
"""The name that version 0.1.0 had for it."""


def weights_of(content: Mapping[str, Any], source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights that a file's content holds, by the names that they have there.

    Lightning's `state_dict`, a published `model`, or all that there is counts.
    """
    for state in (content.get("state_dict"), content.get("model"), content):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return {str(name): value for name, value in state.items()}
    raise ValueError(
        f"{source} holds no weights: neither a `state_dict`, as Lightning writes it, nor a `model`, as published ones "
        f"have it, nor tensors by name; it holds {sorted(map(str, content))[:8]}"
    )


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike[str]) -> nn.Module:
    """Load weights into a network, also those of a module around it, whose names have a prefix."""
    own = model.state_dict()
    prefix = _prefix(own, state)
    inner = dict(state) if prefix is None else {name: state[prefix + name] for name in own}
    check_state(own, inner, source=os.fspath(source))
    model.load_state_dict(inner)
    return model


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """Return what stands before all names of a network in a state dict, the shortest; None where one is missing."""
    prefixes = {name[: -len(end)] for name in state for end in own if name == end or name.endswith(f".{end}")}
    return next((p for p in sorted(prefixes, key=len) if all(p + name in state for name in own)), None)


def recognise(state: Mapping[str, Tensor]) -> type[nn.Module] | None:
    """Return the class whose default network has weights of these names, behind a prefix or none, and these sizes.

    Examples:
        >>> recognise(TwoLayerMLP().state_dict()).__name__
        'TwoLayerMLP'
    """
    for cls in _FIXED:
        with torch.device("meta"):
            own = cls().state_dict()
        prefix = _prefix(own, state)
        alone = prefix is not None and sum(name.startswith(prefix) for name in state) == len(own)
        if alone and all(state[f"{prefix}{name}"].shape == tensor.shape for name, tensor in own.items()):
            return cls
    return None


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse a state dict that belongs to another network, by the first layer that differs."""
    sizes, own_sizes = ({n: "×".join(map(str, t.shape)) or "a scalar" for n, t in e.items()} for e in (found, expected))
    problems = [
        f"{name} is {sizes[name]} there and {size} here"
        for name, size in own_sizes.items()
        if name in found and sizes[name] != size
    ][:1]
    if not problems:
        lacking, surplus = [n for n in expected if n not in found], [n for n in found if n not in expected]
        for names, text in ((lacking, "it lacks {}"), (surplus, "it has {}, which the network has not")):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems += [text.format(", ".join(names[:3]) + more)] if names else []
    if problems:
        cls = recognise(found)
        guess = "" if cls is None else f"; these are the weights of a {cls.__name__}"
        raise ValueError(f"{source} belongs to another network: {'; '.join(problems)}{guess}")


class LoadedNetwork(NamedTuple):
    """A network out of a checkpoint."""

    model: nn.Module
    input_shape: tuple[int, ...]
    metadata: Mapping[str, Any]


def load_network(
    path: str | os.PathLike[str], *, input_shape: Sequence[int] | None = None, model: nn.Module | None = None
) -> LoadedNetwork:
    """Load the network of a pruned file, of a checkpoint of `mlprank fit`, or of any other with a network given.

    `input_shape`, that of one sample, wins over what the checkpoint says; `model` is a dense instance, which a
    checkpoint of ImageClassifier and its pruned files do not need.
    """
    content = read_checkpoint(path)
    own, arguments = content.get("mlprank"), content.get("hyper_parameters")
    shape, about = input_shape, {}
    if isinstance(own, Mapping) and "format" in own:
        artifact = read_artifact(os.fspath(path))
        network = load_pruned(os.fspath(path), model)
        shape = input_shape or artifact.example_shape[1:]
        calibration = artifact.provenance.get("calibration")
        about = {
            "model": artifact.model or {"class_path": artifact.class_path, "init_args": artifact.hyper_parameters},
            "kept": {name: index.tolist() for name, index in artifact.kept.items()},
            "shapes_before": dict(artifact.shapes),
            "pruning": dict(artifact.recipe),
            "versions": dict(artifact.versions),
            "data": calibration.get("data") if isinstance(calibration, Mapping) else None,
        }
    elif model is not None:
        network = fill(copy.deepcopy(model), weights_of(content, path), path)
    elif isinstance(arguments, Mapping) and isinstance(arguments.get("model"), Mapping):
        from mlprank.models.classifier import ImageClassifier  # Lightning takes seconds to import

        network = ImageClassifier.load_from_checkpoint(str(path), map_location="cpu", weights_only=True)
    else:
        weights = weights_of(content, path)
        known = recognise(weights)
        if known is None:
            raise ValueError(
                f"{path} is neither a pruned file nor a checkpoint of mlprank's ImageClassifier, nor are its weights "
                "those of one of mlprank's networks; name its network, as in --model my_package.Net --model.width 64"
            )
        network = fill(known(), weights, path)
    network = network.model if type(network).__name__ == "ImageClassifier" else network  # type: ignore[assignment]
    features = getattr(network, "in_features", None)
    shape = shape or ((features,) if isinstance(features, int) else None)
    if not shape:
        raise ValueError(f"{path} does not say the shape of its inputs; give it, such as --input_shape=[3,32,32]")
    return LoadedNetwork(network.eval(), tuple(shape), about or {"model": describe_model(network)})
