"""`pruned.ckpt`: a narrow network in a file of tensors and plain types, with all that is needed to build it again.

The file is also a Lightning checkpoint. Under the key `mlprank` it holds an `Artifact`, and under `mlprank_digest` a
digest over weights and record. It is read with `torch.load(weights_only=True)`, so a file that would run code is
refused, and everything in it is checked before anything is built.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mlprank.artifact.checkpoint import DIGEST, digest_of, read_checkpoint
from mlprank.artifact.record import FORMAT, Artifact, checked, is_plain, record_of, remember, versions
from mlprank.artifact.spec import build_model, construct, describe_model, resolve_class
from mlprank.surgery.narrow import narrow, with_state
from mlprank.utils.errors import FAILURES, first_line, require
from mlprank.utils.files import whole_file, write_whole


def save_pruned(model: nn.Module, path: str | Path, **provenance: Any) -> Path:
    """Write a narrow network with its weights of today to a file, whole or not at all.

    It may have been pruned by `mlprank.prune` or loaded by `mlprank.load_pruned`, and trained and pruned again since.

    Args:
        model: A narrow network, or a module around one.
        path: The file, `pruned.ckpt` by custom.
        **provenance: Further plain values that say where the network came from.

    Raises:
        ValueError: If the network was never pruned, or its layers have been changed since.
        TypeError: If the provenance holds anything but plain values.
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
    record = record_of(network)
    if record is None:
        raise ValueError(
            f"model: {type(network).__name__} was never pruned, so there is no record to save; call mlprank.prune, or "
            "torch.save(model.state_dict(), path) for a dense network"
        )
    return write_pruned(network, replace(record, provenance={**record.provenance, **provenance}), path)


def write_pruned(model: nn.Module, record: Artifact, path: str | Path) -> Path:
    """Write a narrow network and the record of its pruning to a file; as `save_pruned`, which looks the record up."""
    path = Path(path)
    if not is_plain(record.provenance, tensors=True):
        raise TypeError(f"provenance of {path} must hold plain values only: numbers, texts, lists and dicts")
    record = replace(record, format=FORMAT, versions=dict(versions()))
    content: dict[str, Any] = {
        "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()},
        "mlprank": record.plain(),
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
            f"{type(model).__name__} does not fit the record of its pruning ({first_line(error)}); were its layers "
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
        The narrow network, on the CPU, in evaluation mode. It can be trained, pruned again and saved
        (`mlprank.save_pruned`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read (see `read_artifact`), or is of another network; layer and sizes are
            named.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> path = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.25).save("pruned.ckpt")
        >>> mlprank.load_pruned(path).fc1.out_features
        12
    """
    path = located(path)
    artifact, state = _read(path)
    if isinstance(model, nn.Module):
        narrowed = with_state(model, {})
        state, artifact = _matched(state, artifact, narrowed)
        narrowed = _narrowed(narrowed, state, artifact, path)
    else:
        narrowed, state, artifact = _built(artifact, state, path, model)
    try:
        missing, unexpected = narrowed.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is damaged, its weights do not fit what it says of them: {first_line(error)}"
        ) from error
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise ValueError(
            f"{path}: {type(narrowed).__name__} is not the pruned class: the file lacks {missing}, and has "
            f"{unexpected} besides"
        )
    remember(narrowed, artifact)
    return narrowed.eval()


def _narrowed(network: nn.Module, state: Mapping[str, Tensor], artifact: Artifact, path: str | Path) -> nn.Module:
    """Cut an instance to the sizes of the file; it may be dense, or narrow from an earlier pruning."""
    earlier = record_of(network)
    if earlier is None or earlier.shapes != artifact.shapes:
        _check_shapes(artifact, state, network, path)
        return narrow(network, artifact.slices, biases=tuple(artifact.biases))
    try:
        rest = artifact.since(earlier, _tensors(network))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give a dense instance") from error
    network = narrow(network, rest.slices, biases=tuple(rest.biases))
    for name in earlier.biases:  # they were created by the earlier pruning, and go with their rows
        owner = network.get_submodule(name.rpartition(".")[0])
        if name in state and owner.bias is not None and owner.bias.shape != state[name].shape:
            owner.bias = nn.Parameter(state[name].clone())
    return network


# -- building from what the file says --------------------------------------------------------------------------------


def _built(
    artifact: Artifact, state: Mapping[str, Tensor], path: str | Path, cls: type[nn.Module] | None
) -> tuple[nn.Module, Mapping[str, Tensor], Artifact]:
    """Build the narrow network, on the meta device until shapes agree: no file makes us allocate what it lacks."""
    with torch.random.fork_rng(devices=[]):  # constructors draw weights
        with torch.device("meta"):
            network = _constructed(artifact, path, cls)
        if network is not None:
            state, artifact = _matched(state, artifact, network)
            _check_shapes(artifact, state, network, path)
            if _is_all_state(network):
                network = narrow(network, artifact.slices, biases=tuple(artifact.biases))
                return _filled(network, state), state, artifact
        # What is not in the state dict (buffers that are not saved, tensors on modules) only a constructor can make.
        real = _constructed(artifact, path, cls)
        assert real is not None
    if network is None:
        state, artifact = _matched(state, artifact, real)
        _check_shapes(artifact, state, real, path)
    return narrow(real, artifact.slices, biases=tuple(artifact.biases)), state, artifact


def _constructed(artifact: Artifact, path: str | Path, cls: type[nn.Module] | None) -> nn.Module | None:
    """Call the constructor that the file names; None where a foreign one cannot run on the meta device."""
    on_meta = torch.get_default_device().type == "meta"
    try:
        if cls is None and artifact.model is not None:
            return build_model(artifact.model)
        if cls is None and artifact.hyper_parameters is not None:
            cls = resolve_class(artifact.class_path, nn.Module)
        if cls is None:
            raise ValueError(
                f"{path} does not say how {artifact.class_path} is built; give a dense instance: "
                f"load_pruned({str(path)!r}, {artifact.class_path.split('.')[-1]}(...))"
            )
        named = f"{path}: {cls.__name__}"
        return construct(cls, artifact.hyper_parameters or {}, named=named, remedy="; give a dense instance")
    except FAILURES as error:
        named = (artifact.model or {}).get("class_path", artifact.class_path) if cls is None else cls.__module__
        if on_meta and isinstance(error, RuntimeError) and not str(named).startswith("mlprank."):
            return None  # its constructor reads numbers out of tensors, say
        if isinstance(error, ValueError) and (str(path) in str(error) or "class_path" in str(error)):
            raise
        raise ValueError(f"{path}: {named} cannot be built from what the file says: {first_line(error)}") from error


def _is_all_state(network: nn.Module) -> bool:
    """Whether the state dict holds every tensor of a network of ours, so that no constructor has to fill one."""
    if not type(network).__module__.startswith("mlprank."):
        return False
    tensors = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    hanging = (value for module in network.modules() for value in vars(module).values())
    saved = network.state_dict()
    return all(name in saved for name, _ in tensors) and not any(isinstance(value, Tensor) for value in hanging)


def _filled(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a network on the meta device tensors on the CPU, of the file's dtypes; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for holder in holders:
            for key, tensor in holder.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if id(tensor) not in made:
                    name = f"{prefix}.{key}" if prefix else key
                    dtype = state[name].dtype if name in state else tensor.dtype
                    new = torch.empty(tensor.shape, dtype=dtype)
                    parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if parameter else new
                holder[key] = made[id(tensor)]
    return network


# -- whether file and dense network belong together ------------------------------------------------------------------


def _matched(
    state: Mapping[str, Tensor], artifact: Artifact, dense: nn.Module
) -> tuple[Mapping[str, Tensor], Artifact]:
    """Let a file of a wrapped network fit the bare one, and the other way round."""
    stored, own, created = set(artifact.shapes), set(_tensors(dense)), set(artifact.biases)
    names: dict[str, str] = {}
    if stored != own:
        for prefix in sorted({name[: -len(end)] for name in own for end in stored if name.endswith("." + end)})[::-1]:
            if {prefix + name for name in stored} == own:
                names = {name: prefix + name for name in stored | created}
        for prefix in sorted({name[: -len(end)] for name in stored for end in own if name.endswith("." + end)})[::-1]:
            if {prefix + name for name in own} <= stored:
                inner = own | {name.removeprefix(prefix) for name in created}
                names = {prefix + name: name for name in inner}
    if not names:
        return state, artifact
    return {names[name]: tensor for name, tensor in state.items() if name in names}, artifact.renamed(names)


def _check_shapes(artifact: Artifact, state: Mapping[str, Tensor], dense: nn.Module, path: str | Path) -> None:
    """Raise a ValueError that names the layer and the sizes if a dense network is not the one that was pruned."""
    tensors = _tensors(dense)
    own = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name, shape in artifact.shapes.items():
        layer = name.rpartition(".")[0] or name
        if name not in own:
            raise ValueError(
                f'{path}: layer "{layer}" of the pruned network is not in {type(dense).__name__}; give the class that'
                f" was pruned, {artifact.class_path}"
            )
        if own[name] != shape:
            raise ValueError(
                f'{path}: layer "{layer}": {name} has shape {tuple(shape)} in the network that was pruned,'
                f" {tuple(own[name])} in this {type(dense).__name__}; give one of the same sizes"
            )
        if name in state and state[name].is_floating_point() != tensors[name].is_floating_point():
            raise ValueError(
                f'{path}: layer "{layer}": {name} is {state[name].dtype} in the file, {tensors[name].dtype} in this'
                f" {type(dense).__name__}; the file is damaged or of another network"
            )


# -- folders and the Hugging Face Hub ---------------------------------------------------------------------------------


def located(path: str | os.PathLike[str]) -> Path:
    """Return where a file is, after fetching it where its address is `hf://user/name` or `hf://user/name/file`."""
    address = str(path)
    if not address.startswith("hf:"):
        return Path(path)
    parts = [part for part in address.removeprefix("hf:").split("/") if part]
    if len(parts) < 2:
        raise ValueError(f"{address} must name a user and a network, such as hf://me/net")
    hub = _hub()
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or "pruned.ckpt"))
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise FileNotFoundError(f"{address} cannot be fetched: {first_line(error)}") from error


def _hub() -> Any:
    require("hub", "huggingface_hub")
    import huggingface_hub.errors

    return huggingface_hub


def save_pretrained(
    model: nn.Module, folder: str | Path, *, metrics: Mapping[str, tuple[Any, Any]] | None = None
) -> Path:
    """Write a narrow network and its model card into a folder, which is made, as the Hub lays them out.

    `metrics` are shown in the card: by name the numbers of the dense and of the pruned network. Errors are those of
    `save_pruned`.
    """
    folder = Path(folder)
    save_pruned(model, folder / "pruned.ckpt")
    record = record_of(getattr(model, "_orig_mod", model))
    assert record is not None
    write_whole(folder / "README.md", model_card(record, metrics or {}))
    return folder


def from_pretrained(source: str | Path, model: nn.Module | type[nn.Module] | None = None) -> nn.Module:
    """Load a narrow network from a folder, or from the Hub.

    Args:
        source: A folder that `save_pretrained` wrote, or "hf://user/name", which needs the extra `mlprank[hub]`.
        model: As for `mlprank.load_pruned`.

    Raises:
        ImportError: If the extra is missing; other errors, and what is returned, are those of `mlprank.load_pruned`.

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
    """Upload a narrow network and its model card to the Hub as "user/name", and return the address.

    Needs the extra `mlprank[hub]` (an ImportError says so) and a log-in there; model, metrics and errors are those of
    `save_pretrained`.
    """
    api = _hub().HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, metrics=metrics)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))


def model_card(record: Artifact, metrics: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the text of a model card: the record, and by name the numbers of the dense and of the pruned network."""
    name = record.class_path.rpartition(".")[2]
    call = "" if record.model is not None else f", {name}(...)"
    table = ["| | dense | pruned |", "|---|---:|---:|"] if metrics else []
    table += [f"| {key} | {_shown(before)} | {_shown(after)} |" for key, (before, after) in metrics.items()]
    achieved = f"{record.achieved:.0%}".replace("%", " %")
    return "\n".join(
        [
            "---\nlibrary_name: mlprank\ntags: [pruning]\n---\n",
            f"# {name}, pruned\n",
            f"{achieved} of the neurons of its prunable layers were removed; the network is narrow and dense.\n",
            *table,
            *[""] * bool(table),
            "## How it was pruned\n",
            *(f"- `{key}`: `{value}`" for key, value in record.recipe.items()),
            "\n## Use\n\n```python\nimport mlprank\n",
            f'network = mlprank.load_pruned("hf://user/name"{call})  # inputs of shape {tuple(record.example_shape)}',
            "```\n",
        ]
    )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
