"""Networks from checkpoints, pruned or dense, ours or anyone's, for the commands that run them."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.pruned import load_pruned, read_artifact
from mlprank.artifact.spec import describe_model
from mlprank.models import fill, recognise, weights_of


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
