"""Augmentation of training batches: whole batches on the model's device, every draw determined by one seed."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mlprank.datamodules.batches import derive_seed, global_seed

AutoAugmentName = Literal["cifar10", "randaugment", "augmix"]
ERASED_SHARE = (0.02, 0.33)
ERASED_ASPECT = (0.3, 3.3)
_ERASING_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to training batches, in this order.

    Attributes:
        random_crop: Pixels of black border from which a random window of the old size is cut; 0 cuts nothing.
        random_flip: Probability of mirroring an image left to right, in [0, 1].
        auto_augment: `cifar10` (AutoAugment's policy), `randaugment`, `augmix` or None.
        randaugment_magnitude: Strength of `randaugment`, 0 to 30.
        augmix_severity: Strength of `augmix`, 1 to 10.
        random_erasing: Probability of setting a random rectangle to 0 after normalisation, in [0, 1].
        mixup_alpha: Parameter of mixup's beta distribution; 0 turns it off.
        cutmix_alpha: Parameter of cutmix's beta distribution; 0 turns it off. With both, either is drawn per batch.
    """

    random_crop: int = 0
    random_flip: float = 0.0
    auto_augment: AutoAugmentName | None = None
    randaugment_magnitude: int = 9
    augmix_severity: int = 3
    random_erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            ValueError: If a value is out of its range.
        """
        for name in ("random_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a probability in [0, 1], such as 0.5")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 (off) or a positive number, such as 0.2")
        if self.auto_augment not in (None, *get_args(AutoAugmentName)):
            raise ValueError(
                f"auto_augment={self.auto_augment!r}: must be one of {', '.join(get_args(AutoAugmentName))} or null"
            )
        for name, low, high in (("random_crop", 0, 1024), ("randaugment_magnitude", 0, 30), ("augmix_severity", 1, 10)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name}={value!r}: must be an integer in [{low}, {high}]")

    def on_bytes(self, images: Tensor, *, seed: int) -> Tensor:
        """Crop, flip and recolour images before they are cast.

        Args:
            images: Shape (B, C, H, W) with C 1 or 3, uint8.
            seed: Seed of this batch.

        Returns:
            A batch of the same shape, type and device; `images` itself where nothing is to be done.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "bytes"))
        if self.random_crop:
            images = random_crop(images, padding=self.random_crop, generator=generator)
        if self.random_flip:
            images = random_flip(images, probability=self.random_flip, generator=generator)
        if self.auto_augment is not None:
            from mlprank.datamodules import policies  # imports torchvision, which is heavy

            if self.auto_augment == "cifar10":
                images = policies.auto_augment(images, generator=generator)
            elif self.auto_augment == "randaugment":
                images = policies.rand_augment(images, generator=generator, magnitude=self.randaugment_magnitude)
            else:
                images = policies.aug_mix(images, generator=generator, severity=self.augmix_severity)
        return images

    def on_pixels(self, pixels: Tensor, labels: Tensor, *, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
        """Erase and mix images after they are cast and normalised.

        Args:
            pixels: Shape (B, C, H, W), float.
            labels: Shape (B,), int64.
            num_classes: Number of classes.
            seed: Seed of this batch.

        Returns:
            Images, same shape and type, and labels: as given, or with mixup or cutmix of shape (B, num_classes), float,
            every row non-negative and summing to 1.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "pixels"))
        if self.random_erasing:
            pixels = random_erase(pixels, probability=self.random_erasing, generator=generator)
        if self.mixup_alpha or self.cutmix_alpha:
            from torchvision.transforms import v2  # heavy

            mixes = []
            if self.mixup_alpha:
                mixes.append(v2.MixUp(alpha=self.mixup_alpha, num_classes=num_classes))
            if self.cutmix_alpha:
                mixes.append(v2.CutMix(alpha=self.cutmix_alpha, num_classes=num_classes))
            mix = mixes[int(torch.randint(len(mixes), (), generator=generator))]
            with global_seed(derive_seed(seed, "mix"), device=torch.device("cpu")):  # both draw on the CPU
                pixels, labels = mix(pixels, labels)
        return pixels, labels


def random_flip(images: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """Mirror every image left to right with a probability.

    Args:
        images: Shape (n, C, H, W), any type.
        probability: In [0, 1].
        generator: CPU generator of the draws.

    Returns:
        A new batch, same shape, type and device.
    """
    flipped = (torch.rand(len(images), generator=generator) < probability).view(-1, 1, 1, 1)
    return torch.where(flipped.to(images.device), images.flip(-1), images)


def random_crop(images: Tensor, *, padding: int, generator: torch.Generator) -> Tensor:
    """Cut from every image, after a black border was put around it, a random window of the old size.

    Args:
        images: Shape (n, C, H, W), any type.
        padding: Width of the border in pixels.
        generator: CPU generator of the draws.

    Returns:
        A new batch, same shape, type and device.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4).flatten(2)
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    places = (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).view(count, 1, height * width)
    return padded.gather(2, places.to(images.device).expand(-1, channels, -1)).view(images.shape)


def random_erase(pixels: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """Set a random rectangle of every image to 0 with a probability.

    A rectangle covers 2 to 33 % of the image and is 0.3 to 3.3 times as high as wide. Where ten draws give none that fits,
    an image is left alone.

    Args:
        pixels: Shape (n, C, H, W), any type.
        probability: In [0, 1].
        generator: CPU generator of the draws.

    Returns:
        A new batch, same shape, type and device.

    Source:
        Zhong et al. 2020, "Random Erasing Data Augmentation", arXiv:1708.04896.
    """
    count, _, height, width = pixels.shape
    chosen = torch.rand(count, generator=generator) < probability
    low, high = ERASED_SHARE
    areas = (low + (high - low) * torch.rand(count, _ERASING_TRIES, generator=generator)) * height * width
    low, high = (math.log(aspect) for aspect in ERASED_ASPECT)
    aspects = (low + (high - low) * torch.rand(count, _ERASING_TRIES, generator=generator)).exp()
    heights, widths = (areas * aspects).sqrt().round(), (areas / aspects).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)  # the first that fits
    tall, wide = heights.gather(1, first), widths.gather(1, first)
    chosen &= fits.any(1)
    top = (torch.rand(count, 1, generator=generator) * (height - tall + 1)).floor()
    left = (torch.rand(count, 1, generator=generator) * (width - wide + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + tall) & chosen.unsqueeze(1)
    in_columns = (columns >= left) & (columns < left + wide)
    erased = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
    return pixels.masked_fill(erased.to(pixels.device), 0)
