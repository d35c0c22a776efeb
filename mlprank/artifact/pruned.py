"""`pruned.ckpt`: a narrow network in a file of tensors and plain types, with all that is needed to build it again.

The file is also a Lightning checkpoint. Under the key `mlprank` it holds, besides what `Artifact` lists, nothing; it is read with
`torch.load(weights_only=True)`, so a file that would run code is refused.
"""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.artifact.matching import check_shapes, matched
from mlprank.artifact.spec import build_model, describe_model, resolve_class
from mlprank.surgery.narrow import narrow
from mlprank.utils.files import whole_file

if TYPE_CHECKING:
    from mlprank.pruning.result import PruningResult

FORMAT = 1
_PACKAGES = ("mlprank", "torch", "lightning")


@dataclass(frozen=True)
class Artifact:
    """What a pruned file says of itself.

    Attributes:
        format: Version of this layout.
        class_path: The class of the network.
        model: `{"class_path", "init_args"}` from which the dense network can be built, or None if it recorded nothing.
        hyper_parameters: Arguments of a LightningModule's constructor, or None.
        slices: For every tensor that became narrower, the kept indices by dimension.
        biases: Names of biases that the dense network did not have.
        shapes: The dense network's shapes, by name.
        kept: For every pruned layer the indices of the neurons that its mask keeps.
        whole: Why each other layer stays whole.
        recipe: How it was pruned: amount, measure, method, compensation and the rest.
        achieved: Share of neurons that were pruned.
        max_difference: Largest difference between masked and narrow network on a calibration batch.
        example_shape: Shape of one input, with a batch dimension of 1.
        example_dtype: Its dtype, such as "float32".
        provenance: Where the network came from: calibration, source checkpoint and whatever the caller added.
        versions: Versions of the packages that wrote the file.
    """

    format: int
    class_path: str
    model: Mapping[str, Any] | None
    hyper_parameters: Mapping[str, Any] | None
    slices: Mapping[str, Mapping[int, Tensor]]
    biases: list[str]
    shapes: Mapping[str, list[int]]
    kept: Mapping[str, Tensor]
    whole: Mapping[str, str]
    recipe: Mapping[str, Any]
    achieved: float
    max_difference: float
    example_shape: list[int]
    example_dtype: str
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]


def save_pruned(result: PruningResult, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a pruned network to a file, whole or not at all.

    Args:
        result: What `mlprank.prune` returned.
        path: The file.
        provenance: Plain values that say where the network came from.

    Returns:
        The path.

    Raises:
        OSError: If the file cannot be written; it is named.
    """
    model, path = result.model, Path(path)
    record = artifact_record(result, provenance=provenance)
    content: dict[str, Any] = {
        "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        "mlprank": record,
        "pytorch-lightning_version": _version("lightning"),
        "epoch": 0,
        "global_step": 0,
    }
    if record["hyper_parameters"] is not None:
        content["hyper_parameters"] = dict(record["hyper_parameters"])
    with whole_file(path) as temporary:
        torch.save(content, temporary)
    return path


def artifact_record(result: PruningResult, *, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a checkpoint of a pruned network says of it under the key `mlprank`: an `Artifact` as plain types and tensors."""
    model, dense = result.model, result.dense.state_dict()
    artifact = Artifact(
        format=FORMAT,
        class_path=f"{type(model).__module__}.{type(model).__qualname__}",
        model=describe_model(model),
        hyper_parameters=_plain_hyper_parameters(model),
        slices={name: {dim: index.cpu() for dim, index in dims.items()} for name, dims in result.slices.items()},
        biases=list(result.biases),
        shapes={name: list(tensor.shape) for name, tensor in dense.items()},
        kept={name: mask.nonzero().flatten().cpu() for name, mask in result.masks.items()},
        whole=dict(result.whole),
        recipe=result.recipe.plain(),
        achieved=result.achieved,
        max_difference=result.max_difference,
        example_shape=list(result.example.shape),
        example_dtype=str(result.example.dtype).removeprefix("torch."),
        provenance=dict(provenance or {}),
        versions={package: _version(package) for package in _PACKAGES} | {"python": platform.python_version()},
    )
    earlier = getattr(model, "pruning", None)
    if isinstance(earlier, Mapping):
        artifact = _after(earlier, artifact)
    return {field.name: getattr(artifact, field.name) for field in fields(artifact)}


def _after(earlier: Mapping[str, Any], artifact: Artifact) -> Artifact:
    """Describe the pruning of a network that was narrow already from the dense network on."""
    slices = {name: dict(dims) for name, dims in earlier["slices"].items()}
    for name, dims in artifact.slices.items():
        for dim, index in dims.items():
            before = slices.setdefault(name, {}).get(dim)
            slices[name][dim] = index if before is None else before[index]
    created = set(earlier["biases"])
    return replace(
        artifact,
        slices={name: dims for name, dims in slices.items() if name not in created},
        biases=[*earlier["biases"], *artifact.biases],
        shapes=earlier["shapes"],
    )


def read_artifact(path: str | Path) -> Artifact:
    """Read what a pruned file says of itself, without building the network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, foreign, written by a newer version, or would run code.
    """
    return _artifact(read_checkpoint(path), path)


def load_pruned(path: str | Path, model: nn.Module | type[nn.Module] | None = None) -> nn.Module:
    """Build a pruned network again.

    Args:
        path: A file that `PruningResult.save` or `PruningCallback` wrote.
        model: A dense instance of the pruned class, which is copied, or a class whose constructor arguments the file holds. Networks of
            mlprank need neither.

    Returns:
        The narrow network, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read (see `read_artifact`), or is of another network; layer and sizes are named.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> path = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.25).save("pruned.ckpt")
        >>> mlprank.load_pruned(path).fc1.out_features
        12
    """
    checkpoint = read_checkpoint(path)
    artifact = _artifact(checkpoint, path)
    dense = _dense(artifact, path, model)
    state, artifact = matched(checkpoint["state_dict"], artifact, dense)
    check_shapes(artifact, dense, path)
    narrowed = narrow(dense, artifact.slices, biases=tuple(artifact.biases))
    try:
        missing, unexpected = narrowed.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged, its weights do not fit what it says of them: {error}") from error
    if missing or unexpected:
        raise ValueError(
            f"{path}: {type(dense).__name__} is not the pruned class: the file lacks {missing}, and has {unexpected} besides"
        )
    return narrowed.eval()


def _artifact(checkpoint: dict[str, Any], path: str | Path) -> Artifact:
    own = checkpoint.get("mlprank")
    if not isinstance(own, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no pruned network: it has no mlprank entry; make one by mlprank prune")
    if own.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {own.get('format')}, this version of mlprank reads {FORMAT}; install a matching mlprank"
        )
    names = {field.name for field in fields(Artifact)}
    if set(own) != names:
        raise ValueError(
            f"{path} is damaged: its mlprank entry lacks {sorted(names - set(own))} or has {sorted(set(own) - names)} besides"
        )
    return Artifact(**own)


def _dense(artifact: Artifact, path: str | Path, model: nn.Module | type[nn.Module] | None) -> nn.Module:
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    if model is None and artifact.model is not None:
        return build_model(artifact.model)
    if model is None and artifact.hyper_parameters is not None:
        model = resolve_class(artifact.class_path, nn.Module)
    if model is None:
        raise ValueError(
            f"{path} does not say how {artifact.class_path} is built; give a dense instance:"
            f" load_pruned({str(path)!r}, {artifact.class_path.split('.')[-1]}(...))"
        )
    arguments = dict(artifact.hyper_parameters or {})
    try:
        inspect.signature(model).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{path}: {model.__name__} cannot be built from {arguments} ({error}); give a dense instance"
        ) from error
    return model(**arguments)


def _plain_hyper_parameters(model: nn.Module) -> dict[str, Any] | None:
    """A LightningModule's saved constructor arguments, if a file may hold them."""
    saved = getattr(model, "hparams", None)
    if not isinstance(saved, Mapping):
        return None
    arguments = {key: value for key, value in saved.items() if not key.startswith("_")}
    return arguments if _is_plain(arguments) else None


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
