"""Seeds for every random decision, derived from the user's one seed by a stable hash."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
