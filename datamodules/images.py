"""The part that all image data modules share: splits, fast batches, the cast on the model's device, calibration."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mlprank.datamodules.batches import Batch, EpochSampler, TensorBatches, derive_seed, generator, global_seed
from mlprank.datamodules.files import FileSet, resolve_data_dir
from mlprank.utils.errors import check_choice, check_whole

AutoAugmentName = Literal["cifar10", "randaugment", "augmix"]
_CAST_TOGETHER = 1024
"""Images that are cast together: 3 MB of 28×28 images."""
_AUGMENTED_TOGETHER = 4096
"""Images that are augmented together, in groups that share their draws: few calls of torch."""
_SHARE_OF_DEVICE = 0.25
"""An image set stays in the main memory where it would fill more of what is free on an accelerator."""


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

        auto = {
            "cifar10": partial(v2.AutoAugment, v2.AutoAugmentPolicy.CIFAR10),
            "randaugment": partial(v2.RandAugment, magnitude=self.randaugment_magnitude),
            "augmix": partial(v2.AugMix, severity=self.augmix_severity),
        }
        transforms: list[v2.Transform] = []
        if self.random_crop:
            transforms.append(v2.RandomCrop(images.shape[-2:], padding=self.random_crop))
        if self.random_flip:
            transforms.append(v2.RandomHorizontalFlip(self.random_flip))
        if self.auto_augment is not None:
            transforms.append(auto[self.auto_augment](interpolation=InterpolationMode.BILINEAR))
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
    """Transform images in 64 groups, as a transform draws once for all images that it gets; returns a new batch.

    Neighbours are in different groups: in a batch of up to 64 images every one has draws of its own.
    """
    result = torch.empty_like(images)
    with global_seed(seed, device=images.device):
        for first in range(min(64, len(images))):
            result[first::64] = transform(images[first::64])
    return result


class ImageDataModule(LightningDataModule):
    """A set of small images, in memory as one uint8 tensor.

    Images are indexed, augmented and cast as whole batches, on the trainer's device where there is a trainer: a set
    moves there as a whole where it fits. Batches come out of their loaders ready for the model.

    Args:
        batch_size: Images per batch and process, at least 1 and at most the number of training images.
        data_dir: Where the files are, or go. Default: the environment variable MLPRANK_DATA_DIR, else ~/.cache/mlprank.
        seed: Seed of the split, the shuffling and the augmentation.
        validation_fraction: Share of the training set that is kept for validation, in (0, 1).
        drop_last: Leave out the last training batch of an epoch where it is shorter than the others.
        download: Download files that are missing.
        random_crop: Put a black border of so many pixels around training images and cut out a window of the old size.
        random_flip: Probability of mirroring a training image left to right.
        auto_augment: `cifar10` (AutoAugment's policy for CIFAR-10), `randaugment` or `augmix`.
        randaugment_magnitude: Strength of `randaugment`, 0 to 30.
        augmix_severity: Strength of `augmix`, 1 to 10.
        random_erasing: Probability of setting a random rectangle of a training image to 0, after normalisation.
        mixup_alpha: Parameter of mixup, 0 for none. Training labels then are floats of shape (B, num_classes).
        cutmix_alpha: Parameter of cutmix, 0 for none; with both, every batch gets one of them.
        repeated_augmentation: How often an image stands in a training batch, each time augmented differently.
        train_transforms: Applied to every training batch, shape (B, C, H, W), uint8, on the model's device; a transform
            of `torchvision.transforms.v2` or anything that takes and returns such a batch. What it draws from torch's
            global generators is seeded.

    Attributes:
        num_classes: Number of classes.
        classes: Their names; () where the set does not say.
        in_shape: Shape (C, H, W) of an image.

    Examples:
        >>> from mlprank.datamodules import DigitsDataModule
        >>> data = DigitsDataModule(batch_size=32, random_crop=1)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype
        (torch.Size([32, 1, 8, 8]), torch.float32)
    """

    num_classes: ClassVar[int]
    classes: ClassVar[tuple[str, ...]] = ()
    in_shape: ClassVar[tuple[int, int, int]]
    mean: ClassVar[tuple[float, ...] | None] = None
    std: ClassVar[tuple[float, ...] | None] = None
    file_set: ClassVar[FileSet | None] = None

    def __init__(
        self,
        batch_size: int = 64,
        *,
        data_dir: str | None = None,
        seed: int = 0,
        validation_fraction: float = 0.2,
        drop_last: bool = False,
        download: bool = True,
        random_crop: int = 0,
        random_flip: float = 0.0,
        auto_augment: AutoAugmentName | None = None,
        randaugment_magnitude: int = 9,
        augmix_severity: int = 3,
        random_erasing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        repeated_augmentation: int = 1,
        train_transforms: torch.nn.Module | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        data_dir = None if data_dir is None else str(data_dir)
        check_whole(batch_size=batch_size, repeated_augmentation=repeated_augmentation)
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction}: must lie in (0, 1), such as 0.2")
        self.save_hyperparameters(ignore=["train_transforms"])
        self.augmentation = Augmentation(**{each.name: self.hparams[each.name] for each in fields(Augmentation)})
        self.name = type(self).__name__.removesuffix("DataModule")
        self.batch_size, self.seed, self.validation_fraction = batch_size, seed, validation_fraction
        self.data_dir, self.download = resolve_data_dir(data_dir), download
        self.drop_last, self.repeated_augmentation = drop_last, repeated_augmentation
        self.train_transforms = train_transforms
        self._loaded: dict[str, Batch] = {}
        self._moved: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """Download the files unless they are there or `download` is off."""
        if self.download and self.file_set is not None:
            self.file_set.ensure(self.data_dir)

    @abstractmethod
    def read(self, part: str) -> tuple[Tensor, Tensor, Path]:
        """Read one part of the set.

        Args:
            part: `train` for the official training set, `test` for the official test set.

        Returns:
            Images, shape (N, C, H, W), uint8; labels, shape (N,), int64; where they came from.

        Raises:
            FileNotFoundError: If the files are not there.
            ValueError: If a file is damaged; it names the file.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs, once; None reads everything."""
        for part in ("train", "test"):
            if stage is None or (part == "test") == (stage in ("test", "predict")):
                self._part(part)

    def train_dataloader(self) -> TensorBatches:
        """Return the training batches, shuffled anew in every epoch in an order that seed and epoch determine.

        Raises:
            ValueError: If `batch_size` exceeds the training images of this process.
        """
        plain = self.augmentation == Augmentation() and self.train_transforms is None
        batches = self._batches("train", self._split()[0], transform=self._augment)
        batches.at_once = max(1, (_CAST_TOGETHER if plain else _AUGMENTED_TOGETHER) // self.batch_size)
        sampler = batches.batch_sampler
        sampler.drop_last, sampler.seed, sampler.pad = self.drop_last, self.seed, True
        sampler.shuffle, sampler.repeats = not getattr(self.trainer, "overfit_batches", 0), self.repeated_augmentation
        if self.batch_size > sampler.num_entries:
            share = "" if sampler.world_size == 1 else f" of each of {sampler.world_size} processes"
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {sampler.num_entries} training images{share} of "
                f"{self.name}; lower it to at most {sampler.num_entries}"
            )
        return batches

    def val_dataloader(self) -> TensorBatches:
        """Return the validation batches: images, float, shape (B, C, H, W), and labels, int64, shape (B,)."""
        return self._batches("train", self._split()[1])

    def test_dataloader(self) -> TensorBatches:
        """Return the official test set's batches: images, float, shape (B, C, H, W), and labels, int64, shape (B,)."""
        return self._batches("test")

    def predict_dataloader(self) -> TensorBatches:
        """Return the official test set's images in batches: float, shape (B, C, H, W), no labels."""
        return self._batches("test", with_labels=False)

    def calibration_dataloader(self, num_samples: int = 1024, seed: int = 0) -> TensorBatches:
        """Return batches of training images, drawn without replacement and not augmented, the same on every process.

        Args:
            num_samples: Number of images, at least 1; all of the training split where it has fewer.
            seed: Seed of the draw.
        """
        check_whole(num_samples=num_samples)
        indices = self._split()[0]
        drawn = torch.randperm(len(indices), generator=generator(seed, "calibration"))[:num_samples]
        return self._batches("train", indices[drawn], shared=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the model's device, where the loader has put it unless the model moved."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        there = isinstance(images, Tensor) and images.device == device
        return batch if there else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def prepare(self, images: Tensor, labels: Tensor) -> Batch:
        """Return images, shape (B, C, H, W), uint8, as a model expects them, and their labels as they are.

        Pixels are floats in [0, 1], then normalised where the set is.
        """
        pixels = images.float().div_(255)
        if self.mean is not None and self.std is not None:
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
                pixels[:, channel].sub_(mean).div_(std)  # numbers, as a tensor of them would have to be moved to a GPU
        return pixels, labels

    def _augment(self, images: Tensor, labels: Tensor, seed: int) -> Batch:
        """Crop, flip, recolour, transform, cast, erase and mix the images of some training batches."""
        images = self.augmentation.on_bytes(images, seed=seed)
        if self.train_transforms is not None:
            with global_seed(derive_seed(seed, "transforms"), device=images.device):
                images = torch.cat([self.train_transforms(batch) for batch in torch.split(images, self.batch_size)])
        pixels, labels = self.prepare(images, labels)
        pixels = self.augmentation.on_pixels(pixels, seed=seed)
        return self.augmentation.on_batches(
            pixels, labels, num_classes=self.num_classes, batch_size=self.batch_size, seed=seed
        )

    def _batches(
        self, part: str, indices: Tensor | None = None, *, shared: bool = True, transform: Any = None, **options: Any
    ) -> TensorBatches:
        """Return batches of some rows of a part, prepared on the trainer's device, `shared` by its processes."""
        shares = self.trainer.distributed_sampler_kwargs if self.trainer and shared else None
        rank, world_size = (shares["rank"], shares["num_replicas"]) if shares else (0, 1)
        images, labels = self._part(part)
        rows = torch.arange(len(labels)) if indices is None else indices
        sampler = EpochSampler(rows, batch_size=self.batch_size, rank=rank, world_size=world_size, pad=False)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda" and images.nbytes <= _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
            if self._moved.get(part, images).device != device:
                self._moved[part] = images.to(device)
            images, labels = self._moved[part], labels.to(device)
        prepare = transform or (lambda images, labels, seed: self.prepare(images, labels))
        return TensorBatches(images, labels, sampler, device=device, transform=prepare, **options)

    def _part(self, part: str) -> Batch:
        """Return one part of the set, read and checked when it is first asked for."""
        if part not in self._loaded:
            if self.trainer is None:
                self.prepare_data()
            images, labels, place = self.read(part)
            if part == "train" and labels.min() == labels.max():
                raise ValueError(
                    f"{place}: all {len(labels)} images have label {int(labels[0])}; a classifier needs at least two "
                    "classes"
                )
            self._loaded[part] = images, labels
        return self._loaded[part]

    def _split(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the training set that are for training and those for validation, int64."""
        labels = self._part("train")[1]
        num_validation = round(self.validation_fraction * len(labels))
        if not 0 < num_validation < len(labels):
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {len(labels)} images of {self.name} leaves "
                "nothing to train on or nothing to validate on; choose another"
            )
        order = torch.randperm(len(labels), generator=generator(self.seed, "split"))
        return order[num_validation:], order[:num_validation]
