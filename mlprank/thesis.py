"""The thesis's entry point, under its names and with its defaults: one trained network, one pruning, its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from mlprank.artifact.checkpoint import read_checkpoint
from mlprank.compensation import Compensation
from mlprank.costs.metrics import top_k_accuracy
from mlprank.measures import get_measure
from mlprank.methods import get_method
from mlprank.models import get_model, load_published
from mlprank.pruning.pipeline import Pruning

RECIPES = {
    ("TwoLayerMLP", "MNIST"): "two_layer_mnist",
    ("ThreeLayerMLP", "FashionMNIST"): "three_layer_fashion_mnist",
    ("SixLayerMLP", "CIFAR10"): "six_layer_cifar10",
    ("TwelveLayerMLP", "CIFAR100"): "twelve_layer_cifar100",
}
"""The thesis's pairs of network and data, and the config under `configs/thesis/` that trains each."""


def prune_mlp(
    model_name: str,
    dataset_name: str,
    method_name: str,
    measure_name: str,
    amount: float,
    out_path: str | Path,
    measure_args: Mapping[str, Any] | None = None,
    top_k: Sequence[int] = (1, 5),
    device: str = "cpu",
    batch_size: int = 64,
    *,
    checkpoint: str | Path | None = None,
    data_dir: str | None = None,
    protect_output: bool = True,
    compensation: str | Compensation = "constant",
    seed: int = 0,
) -> tuple[dict[str, float], list[Tensor]]:
    """Prune a trained network of the thesis as it was published: chain scores, independent layers, one calibration batch.

    Args:
        model_name: "TwoLayerMLP", "ThreeLayerMLP", "SixLayerMLP" or "TwelveLayerMLP".
        dataset_name: "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100" or "Digits".
        method_name: "Local" or "Global" (without width normalisation, as published).
        measure_name: "WeightedPageRank", "ModifiedPageRank", "ChannelRandom", "ChannelNorm", "ChannelActivation", "ChannelWandA", or a
            short name.
        amount: The share of neurons to remove, in [0, 1).
        out_path: Where the narrow network is written, and below which a checkpoint is looked for.
        measure_args: Parameters of the measure.
        top_k: Which accuracies to measure.
        device: Where to run.
        batch_size: Number of calibration images, drawn from the training split, and of images in a test batch.
        checkpoint: The trained network: a `.pth` as published, or a checkpoint of `mlprank fit`. Otherwise the newest run of the thesis's
            recipe below `out_path` is taken.
        data_dir: Where the image files are.
        protect_output: Keep every output neuron. The published code did not.
        compensation: What a pruned neuron leaves behind.
        seed: Seed of the calibration draw.

    Returns:
        The metrics, and the scores of every layer, each of shape (n_out,). Metrics: `size` and `size_nz` (parameters, and those that are
        not zero), `compression_ratio` (their quotient), `actual_amount` (share of neurons pruned in the prunable layers), `flops` and
        `flops_nz` (of one image, and without products with zeros), `theoretical_speedup` (their quotient), and `top1_acc` and the others
        of `top_k`, of the pruned network, in [0, 1].

    Raises:
        FileNotFoundError: If there is no checkpoint or no data; the message names the command that makes it.
        ValueError: If a name is unknown or an argument out of range.

    Examples:
        >>> import mlprank
        >>> mlprank.prune_mlp("TwoLayerMLP", "MNIST", "Local", "ChannelNorm", 0.3, ".")
        Traceback (most recent call last):
            ...
        FileNotFoundError: checkpoint: no trained TwoLayerMLP on MNIST below runs/two_layer_mnist; train one by
          mlprank fit --config configs/thesis/two_layer_mnist.yaml
        or give checkpoint=...
    """
    network = _trained(model_name, dataset_name, Path(out_path), checkpoint).to(device)
    data = _datamodule(dataset_name, batch_size=batch_size, data_dir=data_dir)
    loader = data.calibration_dataloader(num_samples=batch_size, seed=seed)
    pruning = Pruning(network, loader, graph="chain")
    result = pruning.run(
        amount=amount,
        measure=get_measure(measure_name, **dict(measure_args or {})),
        method=get_method(method_name),
        compensation=compensation,
        protect_output=protect_output,
    )
    data.setup("test")
    accuracies = top_k_accuracy(result.model, data.test_dataloader(), top_k)
    result.save(Path(out_path) / f"{model_name}-{dataset_name}-{method_name}-{measure_name}-{amount:g}.ckpt", seed=seed)
    before, after = result.metrics.before, result.metrics.after
    metrics = {
        "size": before.num_parameters,
        "size_nz": after.num_nonzero,
        "compression_ratio": before.num_parameters / after.num_nonzero,
        "actual_amount": result.achieved,
        "flops": before.flops,
        "flops_nz": after.flops_nonzero,
        "theoretical_speedup": before.flops / after.flops_nonzero,
        **{f"top{k}_acc": accuracy for k, accuracy in accuracies.items()},
    }
    return metrics, list(result.scores.values())


def find_trained(model_name: str, dataset_name: str, root: Path) -> Path:
    """Find the checkpoint of the newest run of a recipe.

    Args:
        model_name: A network of the thesis.
        dataset_name: A data set.
        root: Directory that holds `runs/`, or a published `<model>_<dataset>.pth`.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none; the message names the command that makes one.
    """
    published = root / f"{model_name}_{dataset_name}.pth"
    if published.is_file():
        return published
    recipe = RECIPES.get((model_name, dataset_name))
    if recipe is None:
        raise FileNotFoundError(
            f"checkpoint: there is no recipe for {model_name} on {dataset_name} and no {published}; give checkpoint=..., a file that"
            " `mlprank fit` wrote"
        )
    found = sorted((root / "runs" / recipe).glob("*/checkpoints/best*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"checkpoint: no trained {model_name} on {dataset_name} below {root / 'runs' / recipe}; train one by\n"
            f"  mlprank fit --config configs/thesis/{recipe}.yaml\nor give checkpoint=..."
        )
    return found[-1]


def load_trained(path: str | Path, network: nn.Module) -> nn.Module:
    """Load a trained network from a published `.pth` or from a dense checkpoint of `mlprank fit`.

    Args:
        path: The file.
        network: A network of the class and sizes that were trained; changed in place.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of another network.
    """
    content = read_checkpoint(path)
    if "state_dict" not in content:
        return load_published(path, network)
    state = {name.removeprefix("model."): tensor for name, tensor in content["state_dict"].items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"{path} is no checkpoint of {type(network).__name__}: {first}") from error
    return network.eval()


def _trained(model_name: str, dataset_name: str, root: Path, checkpoint: str | Path | None) -> nn.Module:
    network = get_model(model_name)()
    return load_trained(checkpoint or find_trained(model_name, dataset_name, root), network)


def _datamodule(dataset_name: str, *, batch_size: int, data_dir: str | None) -> Any:
    from mlprank import datamodules

    names = sorted(name.removesuffix("DataModule") for name in datamodules.__all__ if name.endswith("DataModule"))
    if dataset_name not in names:
        raise ValueError(f"dataset_name={dataset_name!r} is not one of {', '.join(names)}")
    return cast(Any, getattr(datamodules, f"{dataset_name}DataModule"))(batch_size=batch_size, data_dir=data_dir)
