"""Batches of an image set that is one tensor in memory, resumable at any batch; seeds of every draw."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


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


@dataclass(eq=False, repr=False)
class EpochSampler:
    """The order in which one rank sees the images of an epoch, cut into batches.

    The order depends on the seed and the epoch alone, so a resumed run sees what an uninterrupted one sees. Every rank
    gets the same number of batches and none is empty.
    """

    indices: Tensor  # rows of the image tensor that take part, shape (n,), int64
    _: KW_ONLY
    batch_size: int  # largest number of entries in a batch, at least 1
    drop_last: bool = False  # leave out a last batch that is shorter than the others
    seed: int = 0  # seed of the shuffling
    shuffle: bool = False  # draw a new order in every epoch; otherwise keep the order of `indices`
    repeats: int = 1  # how often an image stands in a row; an epoch keeps its n entries and shows n / repeats images
    rank: int = 0  # which process this is, in [0, world_size)
    world_size: int = 1  # number of processes that share an epoch
    # Repeat the first entries until every rank has the same number, as for training; otherwise every entry is seen by
    # exactly one rank, as for evaluation.
    pad: bool = True
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next. Lightning calls this before every epoch."""
        self.epoch = epoch

    @property
    def sampler(self) -> "EpochSampler":
        """Itself: where Lightning looks for `set_epoch` in a loader's `batch_sampler`."""
        return self

    @property
    def num_entries(self) -> int:
        """The largest number of entries that any rank sees in an epoch."""
        return -(-len(self.indices) // self.world_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        full, rest = divmod(self.num_entries, self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def batches(self) -> tuple[Tensor, ...]:
        """Return this rank's batches of the current epoch, each one-dimensional, int64.

        Entries are dealt out in turns: the k-th batches of all ranks together are the k-th batch of a single process
        with a `world_size` times larger batch.
        """
        order = self.indices
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
            share = torch.cat([share, self.indices[: len(self) - len(share)]])
        return torch.tensor_split(share, len(self))


@dataclass(eq=False, repr=False)
class TensorBatches:
    """An iterable of `(images, labels)` batches, as fast as indexing a tensor.

    Lightning takes any sized iterable as a dataloader. This one has no worker processes and no per-image Python, finds
    its epoch through `batch_sampler.sampler`, and saves its place in the epoch in Lightning's checkpoints, so that a
    run killed within an epoch goes on with the very batch it would have seen next.

    A step costs the more calls of torch the fewer images it works on. So some batches are fetched together, which the
    place in the epoch alone decides: a resumed run augments them as an uninterrupted one.
    """

    images: Tensor  # the whole image set, shape (N, C, H, W), uint8, on any device
    labels: Tensor  # class of every image, shape (N,), int64, on the same device
    batch_sampler: EpochSampler  # which rows make up the batches
    _: KW_ONLY
    device: torch.device | None = None  # where batches are prepared and handed out; the images' own by default
    at_once: int = 1  # fetch so many batches together
    # Applied to the images and labels that were fetched together and a seed; returns as many.
    transform: Callable[[Tensor, Tensor, int], Batch] = lambda images, labels, seed: (images, labels)
    with_labels: bool = True  # hand out images alone when False

    def __post_init__(self) -> None:
        self.batch_size = self.batch_sampler.batch_size
        self._position = (0, 0)  # the epoch, and how many of its batches were handed out
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on every rank."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of the current epoch, from where a loaded checkpoint stood in it.

        The epoch is read when the first batch is asked for: Lightning sets it after it has called `iter`.
        """
        epoch = self.batch_sampler.epoch
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        batches = self.batch_sampler.batches()
        for first in range(start - start % self.at_once, len(batches), self.at_once):
            indices = batches[first : first + self.at_once]
            index = torch.cat(indices).to(self.images.device)
            device = self.device or self.images.device
            images, labels = (rows.index_select(0, index).to(device) for rows in (self.images, self.labels))
            seed = derive_seed(self.batch_sampler.seed, "together", epoch, first, self.batch_sampler.rank)
            together = self.transform(images, labels, seed)
            split = (torch.split(rows, [len(each) for each in indices]) for rows in together)
            for number, batch in enumerate(zip(*split, strict=True), first):
                if number >= start:
                    self._position = (epoch, number + 1)
                    yield batch if self.with_labels else batch[0]

    def state_dict(self) -> dict[str, int]:
        """Return the place in the epoch, and what the place depends on, as plain integers."""
        return {"epoch": self._position[0], "batches": self._position[1], **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that `state_dict` returned."""
        epoch, batches, mine = state["epoch"], state["batches"], self._identity()
        changed = ", ".join(f"{name} was {state[name]}, is {own}" for name, own in mine.items() if state[name] != own)
        if changed and 0 < batches < state["num_batches"]:
            raise ValueError(
                f"the checkpoint stopped within epoch {epoch} after batch {batches} of {state['num_batches']}, and "
                f"this run's batches differ ({changed}); resume with the same settings or from a checkpoint written "
                "at the end of an epoch"
            )
        self._resume = self._position = (epoch, len(self) if batches >= state["num_batches"] else batches)

    def _identity(self) -> dict[str, int]:
        own = {name: getattr(self.batch_sampler, name) for name in ("batch_size", "world_size", "repeats", "seed")}
        return {"num_batches": len(self), **own}
