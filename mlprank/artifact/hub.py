"""Pruned networks in folders and on the Hugging Face Hub: the file, and a model card made from what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from mlprank.artifact.pruned import load_pruned, save_pruned
from mlprank.artifact.record import Artifact, record_of
from mlprank.utils.files import write_whole

FILE = "pruned.ckpt"
CARD = "README.md"


def save_pretrained(
    model: nn.Module, folder: str | Path, *, metrics: Mapping[str, tuple[Any, Any]] | None = None
) -> Path:
    """Write a narrow network and its model card into a folder, as the Hub lays them out.

    Args:
        model: A narrow network: pruned, loaded, or trained since.
        folder: The folder; it is made.
        metrics: What to show in the card: name to the numbers of the dense and of the pruned network.

    Returns:
        The folder.

    Raises:
        ValueError: If the network was never pruned.
        OSError: If a file cannot be written.

    Examples:
        >>> import mlprank, torch
        >>> from mlprank.models import MLP
        >>> result = mlprank.prune(MLP(8, [16], 2), torch.randn(64, 8), amount=0.25)
        >>> folder = save_pretrained(result.model, "net", metrics={"Parameters": (178, 134)})
        >>> from_pretrained(folder).fc1.out_features
        12
    """
    folder = Path(folder)
    save_pruned(model, folder / FILE)
    record = record_of(getattr(model, "_orig_mod", model))
    assert record is not None
    write_whole(folder / CARD, model_card(record, metrics or {}))
    return folder


def from_pretrained(source: str | Path, model: nn.Module | type[nn.Module] | None = None) -> nn.Module:
    """Load a narrow network from a folder, or from the Hub.

    Args:
        source: A folder that `save_pretrained` wrote, or "hf://user/name", which needs the extra `mlprank[hub]`.
        model: As for `mlprank.load_pruned`.

    Returns:
        The narrow network, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the extra is missing.
        ValueError: As `mlprank.load_pruned`.
    """
    return load_pruned(source if str(source).startswith("hf:") else Path(source) / FILE, model)


def push_to_hub(
    model: nn.Module, name: str, *, metrics: Mapping[str, tuple[Any, Any]] | None = None, private: bool = False
) -> str:
    """Upload a narrow network and its model card to the Hub; needs the extra `mlprank[hub]` and a log-in there.

    Args:
        model: A narrow network.
        name: "user/name".
        metrics: As for `save_pretrained`.
        private: Whether only the user sees it.

    Returns:
        The address of the upload.

    Raises:
        ImportError: If the extra is missing.
        ValueError: If the network was never pruned.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError('huggingface_hub is not installed; install with: pip install "mlprank[hub]"') from error
    api = HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, metrics=metrics)
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))


def model_card(record: Artifact, metrics: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the text of a model card.

    Args:
        record: What the network was made by.
        metrics: Name to the numbers of the dense and of the pruned network.
    """
    name = record.class_path.rpartition(".")[2]
    lines = [
        "---",
        "library_name: mlprank",
        "tags: [pruning]",
        "---",
        "",
        f"# {name}, pruned",
        "",
        f"{record.achieved:.0%} of the neurons of its prunable layers were removed; the network is narrow and dense.".replace(
            "%", " %"
        ),
        "",
    ]
    if metrics:
        lines += ["| | dense | pruned |", "|---|---:|---:|"]
        lines += [f"| {key} | {_shown(before)} | {_shown(after)} |" for key, (before, after) in metrics.items()]
        lines.append("")
    lines += ["## How it was pruned", "", *(f"- `{key}`: `{value}`" for key, value in record.recipe.items()), ""]
    given = record.model is not None
    call = "" if given else f", {name}(...)"
    lines += [
        "## Use",
        "",
        "```python",
        "import mlprank",
        "",
        f'network = mlprank.load_pruned("hf://user/name"{call})  # inputs of shape {tuple(record.example_shape)}',
        "```",
        "",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
