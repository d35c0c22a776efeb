"""Small convolutional classifiers for images of about 28 to 32 pixels."""

from collections.abc import Sequence

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
        previous = in_channels
        for index, (width, stride) in enumerate(zip(widths, (2, 1, 2, 1), strict=True), start=1):
            self.add_module(f"conv{index}", _conv3x3(previous, width, stride=stride))
            self.add_module(f"batchnorm{index}", nn.BatchNorm2d(width))
            self.add_module(f"act{index}", nn.ReLU())
            previous = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, in_channels, H, W)."""
        for layer in self.children():
            x = layer(x)
        return x


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
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

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
        previous = width
        for stage in range(4):
            channels = width * 2**stage
            blocks = [ResidualBlock(previous, channels, stride=2 if stage else 1), ResidualBlock(channels, channels)]
            self.add_module(f"stage{stage + 1}", nn.Sequential(*blocks))
            previous = channels
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, num_classes), of a batch of shape (N, in_channels, H, W)."""
        x = F.relu(self.batchnorm1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"stage{stage}")(x)
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def _conv3x3(in_channels: int, channels: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
