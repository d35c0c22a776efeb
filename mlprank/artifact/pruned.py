"""`pruned.ckpt`: a narrow network in a file of tensors and plain types, with all that is needed to build it again.

It is also a Lightning checkpoint: under `mlprank` it holds an `Artifact`, under `mlprank_digest` a digest of that and
the weights. A file that would run code is refused, and everything is checked before anything is built.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import DIGEST, digest_of, read_checkpoint
from mlprank.artifact.record import FORMAT, Artifact, checked, is_plain, record_of, remember, versions
from mlprank.artifact.spec import build_model, construct, describe_model, resolve_class
from mlprank.surgery.narrow import follow_config, with_state
from mlprank.utils.errors import FAILURES, first_line, require
from mlprank.utils.files import whole_file, write_whole
from mlprank.utils.modules import tensors_of


def save_pruned(model: nn.Module, path: str | Path, **provenance: Any) -> Path:
    """Write a narrow network with its weights of today to a file, whole or not at all.

    Args:
        model: What `mlprank.prune` or `load_pruned` gave, trained and pruned again since, or a module around it.
        path: The file, `pruned.ckpt` by custom.
        **provenance: Further plain values that say where the network came from; other ones are a TypeError.

    Raises:
        ValueError: If the network was never pruned, or its layers have been changed since.
        OSError: If the file cannot be written; it is named.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> path = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.25).save("pruned.ckpt")
        >>> network = mlprank.load_pruned(path)
        >>> torch.nn.init.zeros_(network.fc1.bias) is network.fc1.bias  # train it
        True
        >>> float(mlprank.load_pruned(mlprank.save_pruned(network, path)).fc1.bias.sum())
        0.0
    """
    network = getattr(model, "_orig_mod", model)
    if (record := record_of(network)) is None:
        raise ValueError(
            f"model: {type(network).__name__} was never pruned, so there is no record to save; call mlprank.prune, or "
            "torch.save(model.state_dict(), path) for a dense network"
        )
    path, provenance = Path(path), {**record.provenance, **provenance}
    if not is_plain(provenance, tensors=True):
        raise TypeError(f"provenance of {path} must hold plain values only: numbers, texts, lists and dicts")
    record = replace(record, format=FORMAT, versions=dict(versions()), provenance=provenance)
    content: dict[str, Any] = {
        "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(network).items()},
        "mlprank": dict(vars(record)),
        "pytorch-lightning_version": versions()["lightning"],
        "epoch": 0,
        "global_step": 0,
    }
    if record.hyper_parameters is not None:
        content["hyper_parameters"] = dict(record.hyper_parameters)
    try:
        checked(content["mlprank"], content["state_dict"], path="model")
    except ValueError as error:
        raise ValueError(
            f"{type(network).__name__} does not fit the record of its pruning ({first_line(error)}); were its layers "
            "changed after it was pruned? prune it again, or save its state_dict"
        ) from error
    content[DIGEST] = digest_of(content)
    with whole_file(path) as temporary:
        torch.save(content, temporary)
    return path


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def describe_network(model: nn.Module, dense: nn.Module) -> dict[str, Any]:
    """Return the fields of a record that a narrow and its dense network fill: classes, arguments, shapes."""
    saved = getattr(model, "hparams", None)  # a LightningModule's constructor arguments
    arguments = {k: v for k, v in saved.items() if not k.startswith("_")} if isinstance(saved, Mapping) else None
    return {
        "format": FORMAT,
        "class_path": f"{type(model).__module__}.{type(model).__qualname__}",
        "model": describe_model(model),
        "hyper_parameters": arguments if is_plain(arguments) else None,
        "shapes": {name: list(tensor.shape) for name, tensor in _tensors(dense).items()},
        "versions": dict(versions()),
    }


def read_artifact(path: str | Path) -> Artifact:
    """Read what a pruned file says of itself; a ValueError says if it is damaged, foreign, newer or would run code."""
    return _read(path)[0]


def _read(path: str | Path) -> tuple[Artifact, Mapping[str, Tensor]]:
    checkpoint = read_checkpoint(path)
    own = checkpoint.get("mlprank")
    if not isinstance(own, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no pruned network: it has no mlprank entry; make one by mlprank prune")
    return checked(own, checkpoint["state_dict"], path=path), checkpoint["state_dict"]


def load_pruned(path: str | Path, model: nn.Module | type[nn.Module] | None = None) -> nn.Module:
    """Build a pruned network again.

    Args:
        path: A file that `PruningResult.save`, `mlprank.save_pruned` or `PruningCallback` wrote, or "hf://user/name" on
            the Hugging Face Hub, which needs the extra `mlprank[hub]`.
        model: A dense instance of the pruned class, which is copied, or a class whose constructor arguments the file
            holds. Networks of mlprank need neither.

    Returns:
        The narrow network, on the CPU, in evaluation mode. It can be trained, pruned again and saved by
        `mlprank.save_pruned`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read (see `read_artifact`), or is of another network; layer and sizes are named.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> path = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.25).save("pruned.ckpt")
        >>> mlprank.load_pruned(path).fc1.out_features
        12
    """
    if (address := str(path)).startswith("hf:"):
        parts = [part for part in address.removeprefix("hf:").split("/") if part]
        if len(parts) < 2:
            raise ValueError(f"{address} must name a user and a network, such as hf://me/net")
        hub = _hub()
        try:
            path = hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or "pruned.ckpt")
        except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
            raise FileNotFoundError(f"{address} cannot be fetched: {first_line(error)}") from error
    artifact, state = _read(path)
    if isinstance(model, nn.Module):
        return _filled(model, artifact, state, path)
    with torch.random.fork_rng(devices=[]):  # constructors draw weights
        with torch.device("meta"):
            dense = _constructed(artifact, path, model)
        if dense is not None:
            _fitted(dense, artifact, state, path)  # no file makes us allocate what it lacks
            if type(dense).__module__.startswith("mlprank."):
                network = _filled(dense, artifact, state, path)
                hanging = (value for module in network.modules() for value in vars(module).values())
                tensors = [value for value in (*tensors_of(network).values(), *hanging) if isinstance(value, Tensor)]
                if not any(tensor.is_meta for tensor in tensors):
                    return network
        with torch.device("cpu"):  # only a constructor can make what is not in the state dict
            dense = _constructed(artifact, path, model)
    assert dense is not None
    return _filled(dense, artifact, state, path)


def _constructed(artifact: Artifact, path: str | Path, cls: type[nn.Module] | None) -> nn.Module | None:
    """Call the constructor that the file names; None where it cannot run on the meta device."""
    named = artifact.class_path if artifact.model is None else artifact.model["class_path"]
    try:
        if cls is None and artifact.model is not None:
            return build_model(artifact.model)
        if cls is None and artifact.hyper_parameters is None:
            call = f"load_pruned({str(path)!r}, {named.split('.')[-1]}(...))"
            raise ValueError(f"it does not say how; give a dense instance: {call}")
        cls = resolve_class(named, nn.Module) if cls is None else cls
        arguments = artifact.hyper_parameters or {}
        return construct(cls, arguments, named=cls.__name__, remedy="; give a dense instance")
    except FAILURES as error:
        if isinstance(error, RuntimeError) and torch.get_default_device().type == "meta":
            return None  # it reads numbers out of tensors, say
        raise ValueError(f"{path}: {named} cannot be built from what the file says: {first_line(error)}") from error


def _filled(dense: nn.Module, artifact: Artifact, state: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Copy a dense network, or one that was pruned before, with the weights and the sizes of a file."""
    artifact, state = _fitted(dense, artifact, state, path)
    own = _tensors(dense)
    cast = dict(state)
    for name, tensor in state.items():
        like = own.get(name, own.get(f"{name.removesuffix('bias')}weight", tensor))  # a created bias is as its weight
        cast[name] = tensor if like.is_meta else tensor.to(like)
    try:
        network = with_state(dense, cast)
    except FAILURES as error:
        raise ValueError(f"{path} does not fit {type(dense).__name__}: {first_line(error)}") from error
    follow_config(network, {name: tuple(tensor.shape) for name, tensor in own.items()})
    remember(network, artifact)
    return network.eval()


def _fitted(
    dense: nn.Module, artifact: Artifact, state: Mapping[str, Tensor], path: str | Path
) -> tuple[Artifact, Mapping[str, Tensor]]:
    """Give record and weights the names of a network; a ValueError says where it is not the one that was pruned."""
    own, what = _tensors(dense), type(dense).__name__
    names = _matching_names(set(artifact.shapes), set(own), set(artifact.biases))
    if names is not None:
        state = {names[name]: tensor for name, tensor in state.items() if name in names}
        artifact = artifact.renamed(names)
    shapes: Mapping[str, Sequence[int]] = {name: list(tensor.shape) for name, tensor in own.items()}
    earlier = record_of(dense)
    if earlier is not None and earlier.shapes == artifact.shapes:
        shapes = earlier.shapes
    for name, shape in artifact.shapes.items():
        place = f'{path}: layer "{name.rpartition(".")[0] or name}"'
        if name not in own:
            raise ValueError(
                f"{place} of the pruned network is not in {what}; give the class that was pruned, {artifact.class_path}"
            )
        if shapes[name] != shape:
            raise ValueError(
                f"{place}: {name} has shape {tuple(shape)} in the network that was pruned, {tuple(shapes[name])} in "
                f"this {what}; give one of the same sizes"
            )
        if state[name].is_floating_point() != own[name].is_floating_point():
            raise ValueError(
                f"{place}: {name} is {state[name].dtype} in the file, {own[name].dtype} in this {what}; the file is "
                "damaged or of another network"
            )
    if missing := [name for name in own if name not in state and not name.endswith("_extra_state")]:
        raise ValueError(f"{path}: {what} is not the pruned class: the file lacks {missing}")
    return artifact, state


def _matching_names(stored: set[str], own: set[str], created: set[str]) -> dict[str, str] | None:
    """Names in a network by those in a file, where one of them is wrapped and the other bare; None where they agree."""
    if stored == own:
        return None
    for prefix in sorted({name[: -len(end)] for name in own for end in stored if name.endswith("." + end)}):
        if {prefix + name for name in stored} == own:
            return {name: prefix + name for name in stored | created}
    for prefix in sorted({name[: -len(end)] for name in stored for end in own if name.endswith("." + end)}):
        if {prefix + name for name in own} <= stored:
            return {prefix + name: name for name in own | {name.removeprefix(prefix) for name in created}}
    return None


def _hub() -> Any:
    require("hub", "huggingface_hub")
    import huggingface_hub.errors

    return huggingface_hub


def save_pretrained(
    model: nn.Module, folder: str | Path, *, metrics: Mapping[str, tuple[Any, Any]] | None = None
) -> Path:
    """Write a narrow network and its model card into a folder, which is made, as the Hub lays them out.

    The card shows the `metrics`: by name the numbers of the dense and of the pruned network. Errors are those of
    `save_pruned`.
    """
    path = save_pruned(model, Path(folder) / "pruned.ckpt")
    record = read_artifact(path)
    name = record.class_path.rpartition(".")[2]
    removed, call = f"{100 * record.achieved:.0f} %", "" if record.model is not None else f", {name}(...)"
    table = ["| | dense | pruned |", "|---|---:|---:|"] if metrics else []
    for key, pair in (metrics or {}).items():
        table.append(f"| {key} | {' | '.join(f'{v:,}' if isinstance(v, int) else f'{v:.4g}' for v in pair)} |")
    card = [
        f"---\nlibrary_name: mlprank\ntags: [pruning]\n---\n\n# {name}, pruned\n",
        f"{removed} of the neurons of its prunable layers were removed; the network is narrow and dense.\n",
        *table,
        *[""] * bool(table),
        "## How it was pruned\n",
        *(f"- `{key}`: `{value}`" for key, value in record.recipe.items()),
        "\n## Use\n\n```python\nimport mlprank\n",
        f'network = mlprank.load_pruned("hf://user/name"{call})  # inputs of shape {tuple(record.example_shape)}',
        "```\n",
    ]
    write_whole(path.with_name("README.md"), "\n".join(card))
    return path.parent


def from_pretrained(source: str | Path, model: nn.Module | type[nn.Module] | None = None) -> nn.Module:
    """Load a narrow network from a folder that `save_pretrained` wrote, or from "hf://user/name" on the Hub.

    The latter needs the extra `mlprank[hub]`; `model`, errors and what is returned are those of `mlprank.load_pruned`.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> folder = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.5).save_pretrained("net")
        >>> mlprank.from_pretrained(folder).fc1.out_features
        8
    """
    return load_pruned(source if str(source).startswith("hf:") else Path(source) / "pruned.ckpt", model)


def push_to_hub(
    model: nn.Module, name: str, *, metrics: Mapping[str, tuple[Any, Any]] | None = None, private: bool = False
) -> str:
    """Upload what `save_pretrained` writes to the Hub as "user/name", and return the address.

    Needs the extra `mlprank[hub]` (an ImportError says so) and a log-in there.
    """
    api = _hub().HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, metrics=metrics)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
