"""Whether a pruned file and a dense network belong together, whatever wraps either of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from mlprank.artifact.pruned import Artifact


def matched(state: Mapping[str, Tensor], artifact: Artifact, dense: nn.Module) -> tuple[dict[str, Tensor], Artifact]:
    """Let a file of a wrapped network fit the bare one, and the other way round."""
    stored, own = set(artifact.shapes), set(dense.state_dict())
    if stored == own:
        return dict(state), artifact
    for prefix in sorted({name[: -len(end)] for name in stored for end in own if name.endswith("." + end)}):
        if {prefix + name for name in own} <= stored:
            return _renamed(state, artifact, {prefix + name: name for name in {*own, *_created(artifact, prefix)}})
    for prefix in sorted({name[: -len(end)] for name in own for end in stored if name.endswith("." + end)}):
        if {prefix + name for name in stored} == own:
            return _renamed(state, artifact, {name: prefix + name for name in {*stored, *_created(artifact, "")}})
    return dict(state), artifact


def _created(artifact: Artifact, prefix: str) -> set[str]:
    """The biases that the dense network did not have, without a prefix."""
    return {name.removeprefix(prefix) for name in artifact.biases}


def _renamed(
    state: Mapping[str, Tensor], artifact: Artifact, names: Mapping[str, str]
) -> tuple[dict[str, Tensor], Artifact]:
    changed = replace(
        artifact,
        slices={names[name]: dims for name, dims in artifact.slices.items() if name in names},
        shapes={names[name]: shape for name, shape in artifact.shapes.items() if name in names},
        biases=[names[name] for name in artifact.biases if name in names],
    )
    return {names[name]: tensor for name, tensor in state.items() if name in names}, changed


def check_shapes(artifact: Artifact, dense: nn.Module, path: str | Path) -> None:
    """Raise a ValueError that names the layer and the sizes if a dense network is not the one that was pruned."""
    own = {name: list(tensor.shape) for name, tensor in dense.state_dict().items()}
    for name, shape in artifact.shapes.items():
        layer = name.rpartition(".")[0] or name
        if name not in own:
            raise ValueError(
                f'{path}: layer "{layer}" of the pruned network is not in {type(dense).__name__}; give the class that was pruned,'
                f" {artifact.class_path}"
            )
        if own[name] != shape:
            raise ValueError(
                f'{path}: layer "{layer}": {name} has shape {tuple(shape)} in the network that was pruned, {tuple(own[name])} in this'
                f" {type(dense).__name__}; give one of the same sizes"
            )
