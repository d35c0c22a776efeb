"""What all image data modules share: splits, batches that are resumable at any place, seeds of every draw."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mlprank.datamodules.files import FileSet, resolve_data_dir
from mlprank.utils.errors import check_choice, check_whole

Batch = tuple[Tensor, Tensor]
AutoAugmentName = Literal["cifar10", "randaugment", "augmix"]
_CAST_TOGETHER = 1024
"""Images that are cast together: 3 MB of 28×28 images."""
_AUGMENTED_TOGETHER = 4096
"""Images that are augmented together, in groups that share their draws: few calls of torch."""
_SHARE_OF_DEVICE = 0.25
"""An image set stays in the main memory where it would fill more of what is free on an accelerator."""


def derive_seed(seed: int, *path: int | str) -> int:
    """Return the seed of one random decision, in [0, 2**63), the same on every machine and in every Python.

    A decision depends on the user's seed and on what it is for, such as `("order", epoch)`, never on what was drawn
    before it. So a resumed run draws what an uninterrupted one would have drawn.
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(seed, *path)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextmanager
def global_seed(seed: int, *, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for a block, as `torchvision.transforms.v2` draws from no others."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def by_group(images: Tensor, transform: Callable[[Tensor], Tensor], *, seed: int) -> Tensor:
    """Transform images in 64 groups, as a transform draws once for all images that it gets; returns a new batch.

    Neighbours are in different groups: in a batch of up to 64 images every one has draws of its own.
    """
    result = torch.empty_like(images)
    with global_seed(seed, device=images.device):
        for first in range(min(64, len(images))):
            result[first::64] = transform(images[first::64])
    return result


@dataclass(eq=False, repr=False)
class TensorBatches:
    """An iterable of `(images, labels)` batches, as fast as indexing a tensor, and the order of an epoch.

    Lightning takes any sized iterable as a dataloader. This one has no worker processes and no per-image Python, and
    saves its place in the epoch in Lightning's checkpoints, so that a run killed within an epoch goes on with the very
    batch it would have seen next: the order depends on the seed and the epoch alone. Every rank gets the same number of
    batches and none is empty.

    A step costs the more calls of torch the fewer images it works on. So some batches are fetched together, which the
    place in the epoch alone decides: a resumed run augments them as an uninterrupted one.
    """

    images: Tensor  # the whole image set, shape (N, C, H, W), uint8, on any device
    labels: Tensor  # class of every image, shape (N,), int64, on the same device
    rows: Tensor  # those of the images that take part, shape (n,), int64
    _: KW_ONLY
    batch_size: int  # largest number of images in a batch, at least 1
    drop_last: bool = False  # leave out a last batch that is shorter than the others
    seed: int = 0  # seed of the shuffling
    shuffle: bool = False  # draw a new order in every epoch; otherwise keep the order of `rows`
    repeats: int = 1  # how often an image stands in a row; an epoch keeps its n entries and shows n / repeats images
    rank: int = 0  # which process this is, in [0, world_size)
    world_size: int = 1  # number of processes that share an epoch
    # Repeat the first entries until every rank has the same number, as for training; otherwise every entry is seen by
    # exactly one rank, as for evaluation.
    pad: bool = True
    device: torch.device | None = None  # where batches are prepared and handed out; the images' own by default
    at_once: int = 1  # fetch so many batches together
    # Applied to the images and labels that were fetched together and a seed; returns as many.
    transform: Callable[[Tensor, Tensor, int], Batch] = lambda images, labels, seed: (images, labels)
    with_labels: bool = True  # hand out images alone when False
    epoch: int = 0
    _position: tuple[int, int] = field(default=(0, 0), init=False)  # epoch, and how many of its batches were handed out
    _resume: tuple[int, int] | None = field(default=None, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next. Lightning calls this before every epoch."""
        self.epoch = epoch

    @property
    def batch_sampler(self) -> Any:
        """Where Lightning looks for `sampler.set_epoch`."""
        return SimpleNamespace(sampler=self)

    @property
    def num_entries(self) -> int:
        """The largest number of entries that any rank sees in an epoch."""
        return -(-len(self.rows) // self.world_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        full, rest = divmod(self.num_entries, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def _order(self) -> tuple[Tensor, ...]:
        """Return the rows of this rank's batches in the current epoch.

        Entries are dealt out in turns: the k-th batches of all ranks together are the k-th batch of a single process
        with a `world_size` times larger batch.
        """
        order = self.rows
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=generator(self.seed, "order", self.epoch))]
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)[: len(order)]
        if self.pad:
            order = order[torch.arange(self.num_entries * self.world_size) % len(order)]
        share = order[self.rank :: self.world_size]
        if self.pad or self.world_size == 1:
            return torch.split(share, self.batch_size)[: len(self)]
        if len(share) < len(self):  # a rank without an entry for its last batch repeats one, or the others would wait
            share = torch.cat([share, self.rows[: len(self) - len(share)]])
        return torch.tensor_split(share, len(self))

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of the current epoch, from where a loaded checkpoint stood in it.

        The epoch is read when the first batch is asked for: Lightning sets it after it has called `iter`.
        """
        epoch = self.epoch
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        batches = self._order()
        device = self.device or self.images.device
        for first in range(start - start % self.at_once, len(batches), self.at_once):
            rows = batches[first : first + self.at_once]
            index = torch.cat(rows).to(self.images.device)
            images, labels = (each.index_select(0, index).to(device) for each in (self.images, self.labels))
            together = self.transform(images, labels, derive_seed(self.seed, "together", epoch, first, self.rank))
            split = (torch.split(each, [len(own) for own in rows]) for each in together)
            for number, batch in enumerate(zip(*split, strict=True), first):
                if number >= start:
                    self._position = (epoch, number + 1)
                    yield batch if self.with_labels else batch[0]

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch, and what the place depends on, as plain integers."""
        own = {name: getattr(self, name) for name in ("batch_size", "world_size", "repeats", "seed")}
        return {"epoch": self._position[0], "batches": self._position[1], "num_batches": len(self), **own}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` returned."""
        epoch, batches, mine = state["epoch"], state["batches"], list(self.state_dict().items())[2:]
        changed = ", ".join(f"{name} was {state[name]}, is {own}" for name, own in mine if state[name] != own)
        if changed and 0 < batches < state["num_batches"]:
            raise ValueError(
                f"the checkpoint stopped within epoch {epoch} after batch {batches} of {state['num_batches']}, and "
                f"this run's batches differ ({changed}); resume with the same settings or from a checkpoint written "
                "at the end of an epoch"
            )
        self._resume = self._position = (epoch, len(self) if batches >= state["num_batches"] else batches)


class ImageDataModule(LightningDataModule):
    """A set of small images, in memory as one uint8 tensor.

    Images are indexed, augmented and cast as whole batches, on the trainer's device where there is a trainer: a set
    moves there as a whole where it fits. Batches come out of their loaders ready for the model. A set has `num_classes`
    classes, of the names `classes` (() where it does not say), and images of the shape `in_shape`, (C, H, W).

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
        check_whole(least=0, most=1024, random_crop=random_crop)
        check_whole(least=0, most=30, randaugment_magnitude=randaugment_magnitude)
        check_whole(most=10, augmix_severity=augmix_severity)
        if auto_augment is not None:
            check_choice("auto_augment", auto_augment, get_args(AutoAugmentName))
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction}: must lie in (0, 1), such as 0.2")
        for name, share in (("random_flip", random_flip), ("random_erasing", random_erasing)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: must be a probability in [0, 1], such as 0.5")
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not 0 <= alpha < math.inf:
                raise ValueError(f"{name}={alpha}: must be 0 (off) or a positive number, such as 0.2")
        self.save_hyperparameters(ignore=["train_transforms"])
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
        """Read the official training set, `train`, or the official test set, `test`.

        Returns images, shape (N, C, H, W), uint8; labels, shape (N,), int64; and where they came from. A file that is
        not there is a FileNotFoundError, a damaged one a ValueError that names it.
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
        batches = self._batches(
            "train",
            self._split()[0],
            transform=self.augment,
            at_once=max(1, (_AUGMENTED_TOGETHER if self._augments() else _CAST_TOGETHER) // self.batch_size),
            drop_last=self.drop_last,
            seed=self.seed,
            pad=True,
            shuffle=not getattr(self.trainer, "overfit_batches", 0),
            repeats=self.repeated_augmentation,
        )
        if self.batch_size > batches.num_entries:
            share = "" if batches.world_size == 1 else f" of each of {batches.world_size} processes"
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {batches.num_entries} training images{share} of "
                f"{self.name}; lower it to at most {batches.num_entries}"
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

        They are `num_samples` images, at least 1, or all of the training split where it has fewer.
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

    def _augments(self) -> bool:
        names = ("random_crop", "random_flip", "auto_augment", "random_erasing", "mixup_alpha", "cutmix_alpha")
        return self.train_transforms is not None or any(self.hparams[name] for name in names)

    def augment(self, images: Tensor, labels: Tensor, seed: int) -> Batch:
        """Crop, flip, recolour, transform, cast, erase and mix training images, shape (n, C, H, W), uint8, C 1 or 3.

        Where images are mixed, within every batch, labels become shares of classes, shape (n, num_classes).
        """
        if not self._augments():
            return self.prepare(images, labels)
        from torchvision.transforms import InterpolationMode, v2  # heavy

        asked = SimpleNamespace(**self.hparams)
        auto = {
            "cifar10": partial(v2.AutoAugment, v2.AutoAugmentPolicy.CIFAR10),
            "randaugment": partial(v2.RandAugment, magnitude=asked.randaugment_magnitude),
            "augmix": partial(v2.AugMix, severity=asked.augmix_severity),
        }
        on_bytes = [v2.RandomCrop(images.shape[-2:], padding=asked.random_crop)] if asked.random_crop else []
        on_bytes += [v2.RandomHorizontalFlip(asked.random_flip)] if asked.random_flip else []
        if asked.auto_augment is not None:
            on_bytes.append(auto[asked.auto_augment](interpolation=InterpolationMode.BILINEAR))
        if on_bytes:
            images = by_group(images, v2.Compose(on_bytes), seed=derive_seed(seed, "bytes"))
        if self.train_transforms is not None:
            with global_seed(derive_seed(seed, "transforms"), device=images.device):
                images = torch.cat([self.train_transforms(batch) for batch in torch.split(images, self.batch_size)])
        pixels, labels = self.prepare(images, labels)
        if asked.random_erasing:
            pixels = by_group(pixels, v2.RandomErasing(asked.random_erasing), seed=derive_seed(seed, "pixels"))
        mixes = [v2.MixUp(alpha=asked.mixup_alpha, num_classes=self.num_classes)] if asked.mixup_alpha else []
        mixes += [v2.CutMix(alpha=asked.cutmix_alpha, num_classes=self.num_classes)] if asked.cutmix_alpha else []
        if mixes:
            mix = v2.RandomChoice(mixes)
            with global_seed(derive_seed(seed, "mix"), device=torch.device("cpu")):  # both draw on the CPU
                split = (torch.split(rows, self.batch_size) for rows in (pixels, labels))
                pixels, labels = (torch.cat(rows) for rows in zip(*map(mix, *split), strict=True))
        return pixels, labels

    def _batches(self, part: str, rows: Tensor | None = None, *, shared: bool = True, **options: Any) -> TensorBatches:
        """Return batches of some rows of a part, prepared on the trainer's device, `shared` by its processes."""
        shares = self.trainer.distributed_sampler_kwargs if self.trainer and shared else None
        if shares:
            options |= {"rank": shares["rank"], "world_size": shares["num_replicas"]}
        images, labels = self._part(part)
        rows = torch.arange(len(labels)) if rows is None else rows
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda" and images.nbytes <= _SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
            if self._moved.get(part, images).device != device:
                self._moved[part] = images.to(device)
            images, labels = self._moved[part], labels.to(device)
        options = {"pad": False, "transform": lambda *batch: self.prepare(*batch[:2]), **options}
        return TensorBatches(images, labels, rows, batch_size=self.batch_size, device=device, **options)

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
