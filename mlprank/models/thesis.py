"""The four networks of the thesis; parameter names and arithmetic match the published checkpoints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.models.mlp import check_sizes


class _ThesisNetwork(nn.Module):
    """What the four share: a flatten and the record of their constructor's arguments."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_sizes(in_features=in_features, num_classes=num_classes)
        self.in_features = in_features
        self.num_classes = num_classes
        self.init_args: dict[str, object] = {"in_features": in_features, "num_classes": num_classes}
        self.flatten = nn.Flatten()


class TwoLayerMLP(_ThesisNetwork):
    """784-256-10, the network for MNIST.

    Args:
        in_features: Number of input features after flattening.
        num_classes: Number of logits.
    """

    def __init__(self, in_features: int = 784, num_classes: int = 10) -> None:
        super().__init__(in_features, num_classes)
        self.linear_relu_stack = nn.Sequential(nn.Linear(in_features, 256), nn.ReLU(), nn.Linear(256, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        logits: Tensor = self.linear_relu_stack(self.flatten(x))
        return logits


class ThreeLayerMLP(_ThesisNetwork):
    """784-512-512-10, the network for FashionMNIST.

    Args:
        in_features: Number of input features after flattening.
        num_classes: Number of logits.
    """

    def __init__(self, in_features: int = 784, num_classes: int = 10) -> None:
        super().__init__(in_features, num_classes)
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(in_features, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, …)."""
        logits: Tensor = self.linear_relu_stack(self.flatten(x))
        return logits


class SixLayerMLP(_ThesisNetwork):
    """3072-512-512-256-256-128-10 with two residual additions, the network for CIFAR10.

    Layers of one width share one batch norm, which follows the ReLU.

    Args:
        in_features: Number of input features after flattening.
        num_classes: Number of logits.
    """

    def __init__(self, in_features: int = 3072, num_classes: int = 10) -> None:
        super().__init__(in_features, num_classes)
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


class TwelveLayerMLP(_ThesisNetwork):
    """3072-2048-2048-1024-1024-1024-1024-512-512-256-256-256-100, the network for CIFAR100.

    Layers of one width share one batch norm, which follows the ReLU; there is no residual addition.

    Args:
        in_features: Number of input features after flattening.
        num_classes: Number of logits.
    """

    def __init__(self, in_features: int = 3072, num_classes: int = 100) -> None:
        super().__init__(in_features, num_classes)
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
