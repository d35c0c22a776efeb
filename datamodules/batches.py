"""Batches of an image set that lives in memory as one tensor, fetched by index, resumable at any batch; seeds of every draw."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def derive_seed(seed: int, *path: int | str) -> int:
    """Return the seed of one random decision.

    A decision depends on the user's seed and on what it is for, never on what was drawn before it. So a resumed run
    draws what an uninterrupted one would have drawn.

    Args:
        seed: The user's seed, any integer.
        *path: What the decision is for, such as `("order", epoch)` or `("augment", epoch, batch, rank)`.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every Python.
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed(seed, *path)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *path))


@contextmanager
def global_seed(seed: int, *, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the duration of a block and restore them afterwards.

    `torchvision.transforms.v2` draws from the global generators only; this makes its draws reproducible without
    touching anybody else's.

    Args:
        seed: Seed in [0, 2**63).
        device: Where the tensors inside the block live. The CPU's generator is always seeded and restored, and this
            device's too where it is a CUDA one.

    Yields:
        Nothing.
    """
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


class EpochSampler:
    """The order in which one rank sees the images of an epoch.

    The order depends on the seed and the epoch alone, so a resumed run sees what an uninterrupted one sees.

    Args:
        indices: Rows of the image tensor that take part, shape (n,), int64.
        seed: Seed of the shuffling.
        shuffle: Draw a new order in every epoch; otherwise keep the order of `indices`.
        repeats: How often an image stands in a row; an epoch keeps its n entries and shows n / repeats images.
        rank: Which process this is, in [0, world_size).
        world_size: Number of processes that share an epoch.
        pad: Repeat the first entries until every rank has the same number, as for training; otherwise every entry is
            seen by exactly one rank, as for evaluation.
    """

    def __init__(
        self,
        indices: Tensor,
        *,
        seed: int = 0,
        shuffle: bool = False,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pad: bool = True,
    ) -> None:
        self.indices = indices
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self.pad = pad
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next. Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the largest number of entries that any rank sees in an epoch."""
        return -(-len(self.indices) // self.world_size)

    def share(self) -> Tensor:
        """Return this rank's entries of the current epoch in order, int64, one-dimensional.

        The entries are dealt out in turns: the k-th batches of all ranks together are the k-th batch of a single
        process with a `world_size` times larger batch.
        """
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=generator(self.seed, "order", self.epoch))]
        if self.repeats > 1:
            order = order.repeat_interleave(self.repeats)[: len(order)]
        if self.world_size == 1:
            return order
        if self.pad:
            order = order[torch.arange(len(self) * self.world_size) % len(order)]
        return order[self.rank :: self.world_size]


class IndexBatches:
    """Cut a sampler's entries into batches; every rank gets the same number of them and none is empty.

    Args:
        sampler: The entries of an epoch.
        batch_size: Largest number of entries in a batch, at least 1.
        drop_last: Leave out a last batch that is shorter than the others.
    """

    def __init__(self, sampler: EpochSampler, *, batch_size: int, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def batches(self) -> tuple[Tensor, ...]:
        """Return the current epoch's batches of indices, each one-dimensional, int64."""
        share = self.sampler.share()
        count = len(self)
        if self.sampler.pad or self.sampler.world_size == 1:
            return torch.split(share, self.batch_size)[:count]
        if len(share) < count:  # a rank without an entry for its last batch repeats one, or the others would wait
            share = torch.cat([share, self.sampler.indices[: count - len(share)]])
        return torch.tensor_split(share, count)


class TensorBatches:
    """An iterable of `(images, labels)` batches, as fast as indexing a tensor.

    Lightning takes any sized iterable as a dataloader. This one has no worker processes and no per-image Python, finds
    its epoch through `batch_sampler.sampler.set_epoch`, and saves its place in the epoch in Lightning's checkpoints, so
    that a run killed within an epoch goes on with the very batch it would have seen next.

    A step costs the more calls of torch the fewer images it works on. So some batches are fetched together, which the
    place in the epoch alone decides: a resumed run augments them as an uninterrupted one.

    Args:
        images: The whole image set, shape (N, C, H, W), uint8, on any device.
        labels: Class of every image, shape (N,), int64, on the same device.
        batch_sampler: Which rows make up the batches.
        device: Where batches are prepared and handed out; the images' own by default.
        at_once: Fetch so many batches together.
        augment: Applied to the images that were fetched together and a seed; returns as many of the same shape.
        prepare: Applied to the images and labels that were fetched together, after `augment`.
        finish: Applied to the images and labels of every batch and a seed, after `prepare`.
        with_labels: Hand out images alone when False.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_sampler: IndexBatches,
        *,
        device: torch.device | None = None,
        at_once: int = 1,
        augment: Callable[[Tensor, int], Tensor] | None = None,
        prepare: Callable[[Tensor, Tensor], Batch] | None = None,
        finish: Callable[[Tensor, Tensor, int], Batch] | None = None,
        with_labels: bool = True,
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_sampler = batch_sampler
        self.device = images.device if device is None else device
        self.at_once = at_once
        self.augment = augment
        self.prepare = prepare
        self.finish = finish
        self.with_labels = with_labels
        self._position = (0, 0)  # the epoch, and how many of its batches were handed out
        self._resume: tuple[int, int] | None = None

    @property
    def batch_size(self) -> int:
        """Largest number of images in a batch."""
        return self.batch_sampler.batch_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of the current epoch, from where a loaded checkpoint stood in it.

        The epoch is read when the first batch is asked for: Lightning sets it after it has called `iter`.

        Yields:
            `(images, labels)` with shapes (B, C, H, W) and (B,), or images alone without labels.
        """
        sampler = self.batch_sampler.sampler
        epoch = sampler.epoch
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        batches = self.batch_sampler.batches()
        for first in range(start - start % self.at_once, len(batches), self.at_once):
            seed = derive_seed(sampler.seed, "together", epoch, first, sampler.rank)
            together = self._fetch(batches[first : first + self.at_once], seed)
            for number, batch in enumerate(together, first):
                if number < start:
                    continue
                if self.finish is not None:
                    batch = self.finish(*batch, derive_seed(sampler.seed, "batch", epoch, number, sampler.rank))
                self._position = (epoch, number + 1)
                yield batch if self.with_labels else batch[0]

    def _fetch(self, indices: Sequence[Tensor], seed: int) -> Iterable[Batch]:
        """Return the batches of some indices, augmented and prepared together."""
        index = indices[0] if len(indices) == 1 else torch.cat(tuple(indices))
        index = index.to(self.images.device)
        images, labels = (rows.index_select(0, index).to(self.device) for rows in (self.images, self.labels))
        if self.augment is not None:
            images = self.augment(images, seed)
        if self.prepare is not None:
            images, labels = self.prepare(images, labels)
        if len(indices) == 1:
            return [(images, labels)]
        sizes = [len(each) for each in indices]
        return zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch, and what the place depends on, as plain integers."""
        return {"epoch": self._position[0], "batches": self._position[1], **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` returned.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If the place lies within an epoch and the batches of this run are other ones.
        """
        epoch, batches = state["epoch"], state["batches"]
        mine = self._identity()
        saved = {name: state[name] for name in mine}
        if saved != mine and 0 < batches < saved["num_batches"]:
            changed = ", ".join(
                f"{name} was {saved[name]}, is {mine[name]}" for name in mine if saved[name] != mine[name]
            )
            raise ValueError(
                f"the checkpoint stopped within epoch {epoch} after batch {batches} of {saved['num_batches']}, and "
                f"this run's batches differ ({changed}); resume with the same settings or from a checkpoint written at "
                "the end of an epoch"
            )
        self._position = (epoch, len(self) if batches >= saved["num_batches"] else batches)
        self._resume = self._position

    def _identity(self) -> dict[str, int]:
        sampler = self.batch_sampler.sampler
        return {
            "num_batches": len(self),
            "batch_size": self.batch_size,
            "world_size": sampler.world_size,
            "repeats": sampler.repeats,
            "seed": sampler.seed,
        }
