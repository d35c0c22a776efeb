"""The thesis: its entry point under its names and defaults, its conditions as published, its recipes."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlprank.compensation import Compensation
from mlprank.costs.metrics import count_nonzero, count_parameters, top_k_accuracy
from mlprank.graph.records import quoted
from mlprank.measures import LayerRecord, Measure, get_measure
from mlprank.measures.record import normalise_scores
from mlprank.methods import Global, Local, Method, get_method
from mlprank.methods.ranked import keep_largest
from mlprank.models import get_model, load_weights
from mlprank.pruning.pipeline import Pruning
from mlprank.pruning.recipe import Recipe
from mlprank.utils.errors import check_amount
from mlprank.utils.files import whole_file

RECIPES = {
    ("TwoLayerMLP", "MNIST"): "two_layer_mnist",
    ("ThreeLayerMLP", "FashionMNIST"): "three_layer_fashion_mnist",
    ("SixLayerMLP", "CIFAR10"): "six_layer_cifar10",
    ("TwelveLayerMLP", "CIFAR100"): "twelve_layer_cifar100",
}
"""The thesis's pairs of network and data, and the config under `configs/thesis/` that trains each."""

_IMAGES_AT_ONCE = 1024
"""Where no batch norm looks at the batch, its size changes nothing but the time."""

PUBLISHED = Recipe(
    amount=0.3,
    measure="WeightedPageRank",
    method="Local",
    compensation="constant",
    graph="chain",
    protect_output=False,
    num_samples=64,
)
"""What a recipe can say of the published conditions: a chain of linear layers; the rest is `PublishedConditions`."""


def prune_mlp(
    model_name: str,
    dataset_name: str,
    measure_name: str = "WeightedPageRank",
    method_name: str = "Local",
    measure_args: Mapping[str, Any] | None = None,
    amount: float = 0.3,
    top_k: Sequence[int] = (1, 5),
    device: str = "cpu",
    batch_size: int = 64,
    out_path: str | Path | None = None,
    *,
    published: bool = False,
    checkpoint: str | Path | None = None,
    data_dir: str | None = None,
    protect_output: bool = True,
    compensation: str | Compensation = "constant",
    seed: int = 0,
) -> tuple[dict[str, float], list[Tensor]]:
    """Prune a trained network of the thesis: chain scores, independent layers, one calibration batch.

    Positions and defaults are those of the thesis's function.

    Args:
        model_name: "TwoLayerMLP", "ThreeLayerMLP", "SixLayerMLP", "TwelveLayerMLP", a registered name or a class path.
        dataset_name: "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "Digits", a registered name or a class path.
        measure_name: "WeightedPageRank", "ModifiedPageRank", "ChannelRandom", "ChannelNorm", "ChannelActivation",
            "ChannelWandA", or a short name.
        method_name: "Local" or "Global" (without width normalisation, as published).
        measure_args: Parameters of the measure.
        amount: The share of neurons to remove, in [0, 1).
        top_k: Which accuracies to measure.
        device: Where to run.
        batch_size: Number of calibration images, and of images in a test batch.
        out_path: A directory for `pruned_model.pth`, the state dict of the network with zeroed rows, and beside it,
            unless `published`, the narrow network. A checkpoint is looked for below it, or below the current directory.
            None writes nothing.
        published: Do all that the published code did; see `PublishedConditions`.
        checkpoint: The trained network: any file that `mlprank.models.load_weights` reads. Otherwise a `.pth` as
            published, or the newest run of the thesis's recipe, is looked for.
        data_dir: Where the image files are.
        protect_output: Keep every output neuron. The published code did not; where `published`, none are protected.
        compensation: What a pruned neuron leaves behind; "constant" where `published`.
        seed: Seed of the calibration draw; the first images where `published`.

    Returns:
        The metrics, and the scores of every layer, each of shape (n_out,); no scores where `published` and `amount` is
        0. Metrics, as the thesis defines them: `size` and `size_nz` (parameters, and those that are not zero),
        `compression_ratio` (their quotient), `actual_amount` (1 - size_nz / size), `flops` and `flops_nz`
        (multiply-accumulates of the linear layers for one image, and those with non-zero weights),
        `theoretical_speedup` (their quotient), and `top1_acc` and the others of `top_k`, of the pruned network,
        between 0 and 1. Beside them `achieved_amount`, the share of neurons pruned in the prunable layers.

    Raises:
        FileNotFoundError: If there is no checkpoint or no data; the message names the command that makes it.
        ValueError: If a name is unknown or an argument out of range.

    Examples:
        >>> import mlprank
        >>> mlprank.prune_mlp("TwoLayerMLP", "MNIST")
        Traceback (most recent call last):
            ...
        FileNotFoundError: checkpoint: no trained TwoLayerMLP on MNIST below runs/two_layer_mnist; train one by
          mlprank fit --config configs/thesis/two_layer_mnist.yaml
        or name its file: checkpoint=..., or `checkpoints:` in the config of an experiment
    """
    from mlprank.datamodules import get_dataset  # Lightning takes seconds to import

    measure, method = get_measure(measure_name, **dict(measure_args or {})), get_method(method_name)
    root = Path(out_path or ".")
    network = get_model(model_name)()
    network = load_weights(checkpoint or find_trained(model_name, dataset_name, root), network).to(device)
    data: Any = get_dataset(dataset_name)(batch_size=batch_size, data_dir=data_dir)
    if published:
        conditions = PublishedConditions(network, data, batch_size=batch_size)
        narrow, scores, masks = conditions.prune(amount=amount, measure=measure, method=method)
        accuracies, masked = conditions.accuracies(narrow, top_k), narrow
    else:
        loader = data.calibration_dataloader(num_samples=batch_size, seed=seed)
        result = Pruning(network, loader, graph="chain").run(
            amount=amount, measure=measure, method=method, compensation=compensation, protect_output=protect_output
        )
        data.setup("test")
        accuracies = top_k_accuracy(result.model, data.test_dataloader(), top_k)
        narrow, masked, masks, scores = result.model, result.masked, result.masks, result.scores
        if out_path is not None:
            name = f"{model_name}-{dataset_name}-{method_name}-{measure_name}-{amount:g}.ckpt"
            result.save(root / name, seed=seed)
    if out_path is not None:
        with whole_file(root / "pruned_model.pth") as temporary:
            torch.save(masked.state_dict(), temporary)
    size, size_nz = count_parameters(network), count_nonzero(narrow)
    flops = sum(layer.weight.numel() for layer in _linears(network).values())
    flops_nz = sum(int(torch.count_nonzero(layer.weight)) for layer in _linears(narrow).values())
    metrics = {
        "size": size,
        "size_nz": size_nz,
        "compression_ratio": size / max(size_nz, 1),
        "actual_amount": 1 - size_nz / size,
        "flops": flops,
        "flops_nz": flops_nz,
        "theoretical_speedup": flops / max(flops_nz, 1),
        "achieved_amount": sum(int((~mask).sum()) for mask in masks.values()) / max(1, sum(map(len, masks.values()))),
        **{f"top{k}_acc": accuracy for k, accuracy in accuracies.items()},
    }
    return metrics, list(scores.values())


class PublishedPruning(NamedTuple):
    """A network pruned as published."""

    network: nn.Module  # a copy whose pruned rows are zeroed; biases stay
    scores: Mapping[str, Tensor]  # of every linear layer in forward order, shape (n_out,), sum 1
    masks: Mapping[str, Tensor]  # shape (n_out,), True for kept neurons


class PublishedConditions:
    """The conditions that the published numbers were measured under, where ours differ.

    - The calibration data are the first images of the official training set.
    - Batch norms are in training mode, while calibrating and while testing: they normalise by the batch.
    - Images are not normalised, although SixLayerMLP and TwelveLayerMLP were trained on normalised ones.
    - Every linear layer is pruned, the output too: classes disappear. No neuron of a layer need stay. Convolutions and
      other layers with weights stay whole, of which a warning tells.

    The linear layers of `network`, which is left untouched, run in the order of its modules; `data` is an
    `ImageDataModule`; `batch_size` counts calibration images, and images in a test batch.
    """

    def __init__(self, network: nn.Module, data: Any, *, batch_size: int = 64) -> None:
        self.network = copy.deepcopy(network).train()
        linears = _linears(self.network)
        whole = [
            name
            for name, module in network.named_modules()
            if name not in linears and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        ]
        if whole:
            warnings.warn(
                f"published: of {type(network).__name__} the linear layers alone are pruned, as in the published code: "
                f"{', '.join(quoted(list(linears)))}; {', '.join(quoted(whole))} stay whole",
                stacklevel=2,
            )
        self.batch_size = batch_size
        self._test = data.read("test")[:2]
        images = _pixels(data.read("train")[0][:batch_size], self.network)
        self._norms: dict[str, tuple[Tensor, Tensor]] = {}

        def measure(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._norms[name] = (torch.linalg.vector_norm(inputs[0], dim=0), output.clamp(min=0).norm(dim=0))

        hooks = [layer.register_forward_hook(partial(measure, name)) for name, layer in linears.items()]
        with torch.no_grad():
            self.network(images)  # moves the running statistics, as published; training mode does not read them
        for hook in hooks:
            hook.remove()

    def prune(self, *, amount: float, measure: Measure, method: Method) -> PublishedPruning:
        """Zero the rows of a share of the neurons, the least important; 0 returns the network as it is, with no scores.

        Every linear layer is scored from the one before it. Local and global go without our guards: a layer may lose
        all its neurons. A ValueError says what is out of range, or what a measure needs that was not published.
        """
        check_amount(amount)
        pruned = copy.deepcopy(self.network)
        if amount == 0:
            return PublishedPruning(pruned, {}, {})
        scores: dict[str, Tensor] = {}
        previous: Tensor | None = None
        for name, layer in _linears(pruned).items():
            read, made = self._norms[name]
            record = LayerRecord(
                name=name,
                weight=layer.weight.detach(),
                previous=normalise_scores(read) if previous is None else previous,
                input_norms=read,
                output_norms=made,
                amount=amount,
            )
            previous = scores[name] = normalise_scores(measure(record))
        if isinstance(method, Local):
            masks = {name: keep_largest(own, len(own) - round(amount * len(own))) for name, own in scores.items()}
        elif isinstance(method, Global):
            flat = torch.cat(list(scores.values()))
            mask = keep_largest(flat, len(flat) - math.ceil(amount * len(flat)))
            masks = dict(zip(scores, mask.split([len(own) for own in scores.values()]), strict=True))
        else:
            masks = method(scores, dict.fromkeys(scores, amount))
        with torch.no_grad():
            for name, layer in _linears(pruned).items():
                layer.weight[~masks[name]] = 0
        return PublishedPruning(pruned, scores, masks)

    def accuracies(self, network: nn.Module, top_k: Sequence[int] = (1, 5)) -> dict[int, float]:
        """Return the top-k accuracies on the official test images, in [0, 1], by k; batch norms go by the batch."""
        right, total = torch.zeros(max(top_k)), 0
        by_batch = any(isinstance(module, _BatchNorm) for module in network.modules())
        size = self.batch_size if by_batch else max(self.batch_size, _IMAGES_AT_ONCE)
        with torch.no_grad():
            for images, labels in zip(*(part.split(size) for part in self._test), strict=True):
                logits = network(_pixels(images, network))
                ranked = logits.topk(min(max(top_k), logits.shape[1]), dim=1).indices.cpu()
                right[: ranked.shape[1]] += (ranked == labels.unsqueeze(1)).sum(0)
                total += len(labels)
        return {k: float(right[:k].sum()) / total for k in top_k}


def _linears(network: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}


def _pixels(images: Tensor, network: nn.Module) -> Tensor:
    parameter = next(network.parameters())
    return images.to(parameter.device).to(parameter.dtype).div_(255)


def find_trained(model_name: str, dataset_name: str, root: Path) -> Path:
    """Find the checkpoint of the newest run of a recipe, or raise a FileNotFoundError with the command that makes one.

    `root` holds `runs/`, a published `<model>_<dataset>.pth`, or `artifacts/models/<model>/` with the
    `model_<epoch>.pth` of the thesis's training script, of which the last epoch is taken.
    """
    published = root / f"{model_name}_{dataset_name}.pth"
    if published.is_file():
        return published
    recipe = RECIPES.get((model_name, dataset_name))
    if recipe is None:
        raise FileNotFoundError(
            f"checkpoint: there is no recipe for {model_name} on {dataset_name} and no {published}; give "
            "checkpoint=..., a file that `mlprank fit` wrote"
        )
    artifacts = (root / "artifacts" / "models" / model_name).glob("model_*.pth")
    if numbered := [path for path in artifacts if path.stem.removeprefix("model_").isdecimal()]:
        return max(numbered, key=lambda path: int(path.stem.removeprefix("model_")))
    if found := list((root / "runs" / recipe).glob("*/checkpoints/best*.ckpt")):
        return max(found, key=lambda path: (path.stat().st_mtime, path))
    raise FileNotFoundError(
        f"checkpoint: no trained {model_name} on {dataset_name} below {root / 'runs' / recipe}; train one by\n"
        f"  mlprank fit --config configs/thesis/{recipe}.yaml\n"
        "or name its file: checkpoint=..., or `checkpoints:` in the config of an experiment"
    )
