"""Multilayer perceptrons: one built from its widths, and the thesis's four, which load its checkpoints."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.utils.errors import check_choice, check_whole

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class Network(nn.Module):
    """A classifier that records the arguments of its constructor, of which all sizes are positive whole numbers."""

    num_classes: int

    def __init__(self, **init_args: Any) -> None:
        super().__init__()
        self.init_args = init_args
        widths = {f"widths[{index}]": width for index, width in enumerate(init_args.get("widths", ()))}
        sizes = {name: init_args[name] for name in ("in_features", "in_channels", "num_classes") if name in init_args}
        check_whole(**sizes, **widths)
        for name, size in sizes.items():
            setattr(self, name, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …): the layers, one after the other."""
        for layer in self.children():
            x = layer(x)
        return x


class MLP(Network):
    """Fully connected classifier: `flatten`, then linear, norm, activation and dropout per hidden layer, then a linear.

    The layers are called `fc1`, `batchnorm1`, `act1`, `dropout1`, `fc2`, …, `fc_last`; a batch norm or a dropout that
    is switched off is absent.

    Args:
        in_features: Number of input features after flattening, e.g. 64 for 8×8 images.
        widths: Neurons of each hidden layer, from the input to the output; empty gives a linear classifier.
        num_classes: Number of logits.
        activation: One of `ACTIVATIONS`.
        batch_norm: Whether a batch norm follows each hidden linear layer.
        dropout: Probability in [0, 1) of dropping a hidden activation while training.
        bias: Whether the linear layers have biases.

    Raises:
        ValueError: If a size is not a positive whole number, the activation is unknown or the dropout is out of range.

    Examples:
        >>> import torch
        >>> MLP(64, [128, 64], 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        num_classes: int,
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        options = {"activation": activation, "batch_norm": batch_norm, "dropout": dropout, "bias": bias}
        super().__init__(in_features=in_features, widths=list(widths), num_classes=num_classes, **options)
        check_choice("activation", activation, list(ACTIVATIONS))
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} must lie in [0, 1): it is the share of activations dropped")
        self.flatten = nn.Flatten()
        sizes = [in_features, *widths]
        for index, width in enumerate(widths, start=1):
            self.add_module(f"fc{index}", nn.Linear(sizes[index - 1], width, bias=bias))
            if batch_norm:
                self.add_module(f"batchnorm{index}", nn.BatchNorm1d(width))
            self.add_module(f"act{index}", ACTIVATIONS[activation]())
            if dropout > 0.0:
                self.add_module(f"dropout{index}", nn.Dropout(dropout))
        self.fc_last = nn.Linear(sizes[-1], num_classes, bias=bias)


class TwoLayerMLP(Network):
    """784-256-10, the network for MNIST."""

    _widths: tuple[int, ...] = (256,)

    def __init__(self, in_features: int = 784, num_classes: int = 10) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        self.flatten = nn.Flatten()
        sizes = zip((in_features, *self._widths), self._widths, strict=False)
        hidden = [layer for size, width in sizes for layer in (nn.Linear(size, width), nn.ReLU())]
        self.linear_relu_stack = nn.Sequential(*hidden, nn.Linear(self._widths[-1], num_classes))


class ThreeLayerMLP(TwoLayerMLP):
    """784-512-512-10, the network for FashionMNIST."""

    _widths = (512, 512)


class _NormedMLP(Network):
    """Linear layers, of which all of one width share one batch norm, which follows the ReLU."""

    _widths: tuple[int, ...]
    _norms: ClassVar[dict[int, str]]  # their names by width
    _added: tuple[int, ...] = ()  # layers to whose outputs their inputs are added, counted from 1

    def __init__(self, in_features: int = 3072, num_classes: int = 10) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        self.flatten = nn.Flatten()
        for index, size in enumerate((in_features, *self._widths[:-1]), start=1):
            self.add_module(f"fc{index}", nn.Linear(size, self._widths[index - 1]))
        self.fc_last = nn.Linear(self._widths[-1], num_classes)
        for width, name in self._norms.items():
            self.add_module(name, nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        x = self.flatten(x)
        for index, width in enumerate(self._widths, start=1):
            linear, norm = getattr(self, f"fc{index}"), getattr(self, self._norms[width])
            output = norm(F.relu(linear(x)))
            x = output + x if index in self._added else output
        logits: Tensor = self.fc_last(x)
        return logits


class SixLayerMLP(_NormedMLP):
    """3072-512-512-256-256-128-10 with a batch norm per width and two residual additions, the network for CIFAR10."""

    _widths = (512, 512, 256, 256, 128)
    _norms: ClassVar[dict[int, str]] = {512: "batchnorm", 256: "batchnorm2", 128: "batchnorm3"}
    _added = (2, 4)


class TwelveLayerMLP(_NormedMLP):
    """3072-2048-2048-1024-1024-1024-1024-512-512-256-256-256-100 with a batch norm per width, for CIFAR100."""

    _widths = (2048, 2048, 1024, 1024, 1024, 1024, 512, 512, 256, 256, 256)
    _norms: ClassVar[dict[int, str]] = {width: f"batchnorm{width}" for width in (2048, 1024, 512, 256)}

    def __init__(self, in_features: int = 3072, num_classes: int = 100) -> None:
        super().__init__(in_features, num_classes)
