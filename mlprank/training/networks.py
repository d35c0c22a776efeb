"""Networks from checkpoints, pruned or dense, for the commands that run them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned, read_artifact
from mlprank.artifact.spec import describe_model
from mlprank.models.registry import check_state, load_weights, recognise, state_of


@dataclass(frozen=True)
class Network:
    """A network out of a checkpoint.

    Attributes:
        model: The plain network, on the CPU, in evaluation mode.
        input_shape: Shape of one sample, without the batch axis.
        metadata: How it is built, plain types.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    metadata: Mapping[str, Any]


def load_network(
    path: str | Path, *, input_shape: Sequence[int] | None = None, model: nn.Module | None = None
) -> Network:
    """Load the network of a pruned file, of a checkpoint that `mlprank fit` wrote, or of any other with a network given.

    Args:
        path: `pruned.ckpt`, a checkpoint of Lightning, or a bare state dict.
        input_shape: Shape of one sample where the checkpoint does not say it; wins over what it says.
        model: A dense instance of the network; a checkpoint of mlprank's ImageClassifier and its pruned files need none.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, would run code, or is another model's checkpoint, or where the input's shape is
            not known.
    """
    checkpoint = read_checkpoint(path)
    own = checkpoint.get("mlprank")
    if isinstance(own, Mapping) and "format" in own:
        return _pruned(path, input_shape, model)
    if model is not None:
        filled = fill(copy.deepcopy(model), weights_of(checkpoint, path), path).eval()
        return Network(filled, _shape(path, input_shape, filled), {"model": describe_model(filled)})
    return _dense(path, checkpoint, input_shape)


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the weights that a checkpoint holds: Lightning's `state_dict`, a published `model`, or all that there is.

    Raises:
        ValueError: If it holds none.
    """
    for state in (content.get("state_dict"), content.get("model"), content):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return {str(name): value for name, value in state.items()}
    raise ValueError(
        f"{path} holds no weights: neither a `state_dict`, as `mlprank fit` and Lightning write it, nor tensors by name"
    )


def fill(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Load weights into a network, also those of a module around it, whose names have a prefix.

    Args:
        model: The network; changed in place.
        state: The weights by name.
        path: Where they are from, for the message.

    Raises:
        ValueError: If they are of another network; layer and sizes are named.
    """
    own = model.state_dict()
    prefixes = {name[: -len(end)] for name in state for end in own if name == end or name.endswith(f".{end}")}
    prefix = next((p for p in sorted(prefixes, key=len) if all(p + name in state for name in own)), None)
    inner = dict(state) if prefix is None else {name: state[prefix + name] for name in own}
    check_state(own, inner, source=str(path))
    model.load_state_dict(inner)
    return model


def _pruned(path: str | Path, input_shape: Sequence[int] | None, model: nn.Module | None) -> Network:
    artifact = read_artifact(path)
    metadata = {
        "model": artifact.model or {"class_path": artifact.class_path, "init_args": artifact.hyper_parameters},
        "kept": {name: index.tolist() for name, index in artifact.kept.items()},
        "shapes_before": dict(artifact.shapes),
        "pruning": dict(artifact.recipe),
        "versions": dict(artifact.versions),
        "data": _data_of(artifact.provenance),
    }
    return Network(_inner(load_pruned(path, model)), tuple(input_shape or artifact.example_shape[1:]), metadata)


def _data_of(provenance: Mapping[str, Any]) -> str | None:
    """The name of the data module that a network was calibrated on, where its file says so."""
    calibration = provenance.get("calibration")
    name = calibration.get("data") if isinstance(calibration, Mapping) else None
    return name if isinstance(name, str) else None


def _dense(path: str | Path, checkpoint: Mapping[str, Any], input_shape: Sequence[int] | None) -> Network:
    arguments = checkpoint.get("hyper_parameters")
    if isinstance(arguments, Mapping) and isinstance(arguments.get("model"), Mapping):
        from mlprank.models.classifier import ImageClassifier  # Lightning takes seconds to import

        model = _inner(ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)).eval()
    else:
        known = recognise(state_of(checkpoint, source=str(path)))
        if known is None:
            raise ValueError(
                f"{path} is neither a pruned file nor a checkpoint of mlprank's ImageClassifier, nor are its weights those of one"
                " of mlprank's networks; name its network, as in --model my_package.Net --model.width 64"
            )
        model = load_weights(path, known())
    return Network(model, _shape(path, input_shape, model), {"model": describe_model(model)})


def _shape(path: str | Path, given: Sequence[int] | None, model: nn.Module) -> tuple[int, ...]:
    shape = given or _flat_shape(model)
    if not shape:
        raise ValueError(f"{path} does not say the shape of its inputs; give it, such as --input_shape=[3,32,32]")
    return tuple(shape)


def _inner(model: nn.Module) -> nn.Module:
    """Take the plain network out of our LightningModule."""
    inner = getattr(model, "model", None)
    return inner if type(model).__name__ == "ImageClassifier" and isinstance(inner, nn.Module) else model


def _flat_shape(model: nn.Module) -> tuple[int, ...] | None:
    in_features = getattr(model, "in_features", None)
    return (in_features,) if isinstance(in_features, int) else None
