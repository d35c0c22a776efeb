"""A multilayer perceptron built from its widths."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
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
        ValueError: If a size is not positive, the activation is unknown or the dropout is out of range.
        TypeError: If a size is not an integer.
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
        super().__init__()
        check_sizes(
            in_features=in_features, num_classes=num_classes, **{f"widths[{i}]": w for i, w in enumerate(widths)}
        )
        if activation not in ACTIVATIONS:
            near = difflib.get_close_matches(activation, ACTIVATIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"activation={activation!r} is not one of {', '.join(sorted(ACTIVATIONS))}{hint}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} must lie in [0, 1): it is the share of activations dropped")
        self.in_features = in_features
        self.num_classes = num_classes
        self.init_args: dict[str, object] = {
            "in_features": in_features,
            "widths": list(widths),
            "num_classes": num_classes,
            "activation": activation,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "bias": bias,
        }
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


def check_sizes(**sizes: int) -> None:
    """Refuse layer sizes that are no positive integers, by the name they were given under.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name}={size!r} must be an integer: it counts features or neurons")
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1: it counts features or neurons")
