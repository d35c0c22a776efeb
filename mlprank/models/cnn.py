"""Small convolutional classifiers for images of about 28 to 32 pixels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from mlprank.models.mlp import Network
from mlprank.utils.errors import check_whole


class FourLayerCNN(Network):
    """Four convolutions of 3×3, each with a batch norm and a ReLU, then the mean over positions and a linear layer.

    The first and the third convolution halve height and width.

    Args:
        in_channels: Channels of an image: 1 for grey ones, 3 for colour.
        num_classes: Number of logits.
        widths: Channels of the four convolutions.

    Raises:
        ValueError: If a size is not a positive whole number, or there are not four widths.

    Examples:
        >>> import torch
        >>> FourLayerCNN()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 10, *, widths: Sequence[int] = (32, 64, 64, 128)
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, widths=list(widths))
        if len(widths) != 4:
            raise ValueError(f"widths={list(widths)} must be 4 numbers of channels, one for each convolution")
        for index, (size, width) in enumerate(pairwise((in_channels, *widths)), start=1):
            self.add_module(f"conv{index}", _conv3x3(size, width, stride=1 + index % 2))
            self.add_module(f"batchnorm{index}", nn.BatchNorm2d(width))
            self.add_module(f"act{index}", nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[-1], num_classes)


class ResidualBlock(nn.Module):
    """Two convolutions of 3×3, of which the first has the stride, beside a shortcut, as in ResNet-18.

    The shortcut is a convolution of 1×1 where the stride is not 1 or the channels change.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride=stride)
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.batchnorm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return a batch of shape (N, channels, H / stride, W / stride) from one of shape (N, in_channels, H, W)."""
        inner = self.batchnorm2(self.conv2(F.relu(self.batchnorm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet18(Network):
    """ResNet-18 for small images: a stem of one 3×3 convolution, four stages of two blocks, mean, linear.

    `width=64` gives the widths of the paper; the default is a quarter of it, with a sixteenth of the arithmetic.

    Args:
        in_channels: Channels of an image: 1 for grey ones, 3 for colour.
        num_classes: Number of logits.
        width: Channels of the stem and the first stage; every further stage has twice as many.

    Raises:
        ValueError: If a size is not a positive whole number.

    Source:
        He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385.

    Examples:
        >>> import torch
        >>> ResNet18(width=4)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, *, width: int = 16) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, width=width)
        check_whole(width=width)
        self.conv1 = _conv3x3(in_channels, width)
        self.batchnorm1 = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        for stage, (size, channels) in enumerate(pairwise(widths), start=1):
            first = ResidualBlock(size, channels, stride=1 if stage == 1 else 2)
            self.add_module(f"stage{stage}", nn.Sequential(first, ResidualBlock(channels, channels)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, in_channels, H, W)."""
        stem, norm, *rest = self.children()
        x = F.relu(norm(stem(x)))
        for layer in rest:
            x = layer(x)
        return x


def _conv3x3(in_channels: int, channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
