"""Multilayer perceptrons: one built from its widths, and the thesis's four, which load its checkpoints."""

from collections.abc import Sequence
from typing import Any

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
        super().__init__(
            in_features=in_features,
            widths=list(widths),
            num_classes=num_classes,
            activation=activation,
            batch_norm=batch_norm,
            dropout=dropout,
            bias=bias,
        )
        check_choice("activation", activation, list(ACTIVATIONS))
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} must lie in [0, 1): it is the share of activations dropped")
        self.flatten = nn.Flatten()
        previous = in_features
        for index, width in enumerate(widths, start=1):
            self.add_module(f"fc{index}", nn.Linear(previous, width, bias=bias))
            if batch_norm:
                self.add_module(f"batchnorm{index}", nn.BatchNorm1d(width))
            self.add_module(f"act{index}", ACTIVATIONS[activation]())
            if dropout > 0.0:
                self.add_module(f"dropout{index}", nn.Dropout(dropout))
            previous = width
        self.fc_last = nn.Linear(previous, num_classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …) with in_features values a sample."""
        for layer in self.children():
            x = layer(x)
        return x


class TwoLayerMLP(Network):
    """784-256-10, the network for MNIST."""

    _widths: tuple[int, ...] = (256,)

    def __init__(self, in_features: int = 784, num_classes: int = 10) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        self.flatten = nn.Flatten()
        sizes = zip((in_features, *self._widths), self._widths, strict=False)
        hidden = [layer for size, width in sizes for layer in (nn.Linear(size, width), nn.ReLU())]
        self.linear_relu_stack = nn.Sequential(*hidden, nn.Linear(self._widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        logits: Tensor = self.linear_relu_stack(self.flatten(x))
        return logits


class ThreeLayerMLP(TwoLayerMLP):
    """784-512-512-10, the network for FashionMNIST."""

    _widths = (512, 512)


class SixLayerMLP(Network):
    """3072-512-512-256-256-128-10 with two residual additions, the network for CIFAR10.

    Layers of one width share one batch norm, which follows the ReLU.
    """

    def __init__(self, in_features: int = 3072, num_classes: int = 10) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_features, 512)
        self.fc2 = nn.Linear(512, 512)
        self.fc3 = nn.Linear(512, 256)
        self.fc4 = nn.Linear(256, 256)
        self.fc5 = nn.Linear(256, 128)
        self.fc_last = nn.Linear(128, num_classes)
        self.batchnorm = nn.BatchNorm1d(512)
        self.batchnorm2 = nn.BatchNorm1d(256)
        self.batchnorm3 = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        first = self.batchnorm(F.relu(self.fc1(self.flatten(x))))
        second = self.batchnorm(F.relu(self.fc2(first))) + first
        third = self.batchnorm2(F.relu(self.fc3(second)))
        fourth = self.batchnorm2(F.relu(self.fc4(third))) + third
        fifth = self.batchnorm3(F.relu(self.fc5(fourth)))
        logits: Tensor = self.fc_last(fifth)
        return logits


_TWELVE_WIDTHS = (2048, 2048, 1024, 1024, 1024, 1024, 512, 512, 256, 256, 256)


class TwelveLayerMLP(Network):
    """3072-2048-2048-1024-1024-1024-1024-512-512-256-256-256-100, the network for CIFAR100.

    Layers of one width share one batch norm, which follows the ReLU; there is no residual addition.
    """

    def __init__(self, in_features: int = 3072, num_classes: int = 100) -> None:
        super().__init__(in_features=in_features, num_classes=num_classes)
        self.flatten = nn.Flatten()
        previous = in_features
        for index, width in enumerate(_TWELVE_WIDTHS, start=1):
            self.add_module(f"fc{index}", nn.Linear(previous, width))
            previous = width
        self.fc_last = nn.Linear(previous, num_classes)
        for width in dict.fromkeys(_TWELVE_WIDTHS):
            self.add_module(f"batchnorm{width}", nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        x = self.flatten(x)
        for index, width in enumerate(_TWELVE_WIDTHS, start=1):
            linear, norm = getattr(self, f"fc{index}"), getattr(self, f"batchnorm{width}")
            x = norm(F.relu(linear(x)))
        logits: Tensor = self.fc_last(x)
        return logits
