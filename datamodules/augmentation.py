"""Augmentation of training batches by torchvision's transforms, on the model's device, seeded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mlprank.datamodules.batches import derive_seed, global_seed
from mlprank.utils.errors import check_choice, check_whole

AutoAugmentName = Literal["cifar10", "randaugment", "augmix"]
_GROUPS = 64
"""A transform draws once for all images that it gets; so they are dealt out to so many groups.

Neighbours are in different groups: in a batch of up to 64 images every one has draws of its own.
"""


@dataclass(frozen=True)
class Augmentation:
    """What is done to training batches, in this order; the fields are arguments of `ImageDataModule`."""

    random_crop: int = 0
    random_flip: float = 0.0
    auto_augment: AutoAugmentName | None = None
    randaugment_magnitude: int = 9
    augmix_severity: int = 3
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        """Raise a ValueError if a value is out of its range."""
        for name in ("random_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a probability in [0, 1], such as 0.5")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 (off) or a positive number, such as 0.2")
        if self.auto_augment is not None:
            check_choice("auto_augment", self.auto_augment, get_args(AutoAugmentName))
        for name, low, high in (("random_crop", 0, 1024), ("randaugment_magnitude", 0, 30), ("augmix_severity", 1, 10)):
            check_whole(least=low, most=high, **{name: getattr(self, name)})

    def on_bytes(self, images: Tensor, *, seed: int) -> Tensor:
        """Crop, flip and recolour images, shape (n, C, H, W) with C 1 or 3, uint8, where that is asked for."""
        if not (self.random_crop or self.random_flip or self.auto_augment):
            return images
        from torchvision.transforms import InterpolationMode, v2  # heavy

        smooth = InterpolationMode.BILINEAR
        transforms: list[v2.Transform] = []
        if self.random_crop:
            transforms.append(v2.RandomCrop(images.shape[-2:], padding=self.random_crop))
        if self.random_flip:
            transforms.append(v2.RandomHorizontalFlip(self.random_flip))
        if self.auto_augment == "cifar10":
            transforms.append(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, interpolation=smooth))
        elif self.auto_augment == "randaugment":
            transforms.append(v2.RandAugment(magnitude=self.randaugment_magnitude, interpolation=smooth))
        elif self.auto_augment == "augmix":
            transforms.append(v2.AugMix(severity=self.augmix_severity, interpolation=smooth))
        return by_group(images, v2.Compose(transforms), seed=derive_seed(seed, "bytes"))

    def on_pixels(self, pixels: Tensor, *, seed: int) -> Tensor:
        """Erase rectangles of normalised images, shape (n, C, H, W), float, where that is asked for."""
        if not self.random_erasing:
            return pixels
        from torchvision.transforms import v2  # heavy

        return by_group(pixels, v2.RandomErasing(self.random_erasing), seed=derive_seed(seed, "pixels"))

    def on_batches(
        self, pixels: Tensor, labels: Tensor, *, num_classes: int, batch_size: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Mix images within every batch; labels, shape (n,), become shares of classes, shape (n, num_classes)."""
        if not (self.mixup_alpha or self.cutmix_alpha):
            return pixels, labels
        from torchvision.transforms import v2  # heavy

        mixes = [v2.MixUp(alpha=self.mixup_alpha, num_classes=num_classes)] if self.mixup_alpha else []
        mixes += [v2.CutMix(alpha=self.cutmix_alpha, num_classes=num_classes)] if self.cutmix_alpha else []
        mix = v2.RandomChoice(mixes)
        with global_seed(derive_seed(seed, "mix"), device=torch.device("cpu")):  # both draw on the CPU
            split = (torch.split(rows, batch_size) for rows in (pixels, labels))
            batches = [mix(*batch) for batch in zip(*split, strict=True)]
        return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def by_group(images: Tensor, transform: Callable[[Tensor], Tensor], *, seed: int) -> Tensor:
    """Transform images in groups, each with draws of its own that the seed determines; returns a new batch."""
    result = torch.empty_like(images)
    with global_seed(seed, device=images.device):
        for first in range(min(_GROUPS, len(images))):
            result[first::_GROUPS] = transform(images[first::_GROUPS])
    return result
