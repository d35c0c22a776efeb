"""Random numbers for a reader that leaves everybody else's as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class OwnRandomness:
    """A random state of one's own: swapped in for a while, and the caller's put back afterwards, whatever happens.

    Covers torch, numpy and Python, and generators that a dataloader or its samplers hold.

    Args:
        seed: Where the own state starts.
        loader: A dataloader whose generators are covered too.
    """

    def __init__(self, seed: int, loader: Any = None) -> None:
        samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        held = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
        self.generators = list({id(each): each for each in held if isinstance(each, torch.Generator)}.values())
        with self._kept():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            for generator in self.generators:
                generator.manual_seed(seed)
            self.state = self._state()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Draw from the own state inside the block."""
        with self._kept():
            self._restore(self.state)
            try:
                yield
            finally:
                self.state = self._state()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        before = self._state()
        try:
            yield
        finally:
            self._restore(before)

    def _state(self) -> tuple[Any, ...]:
        accelerator = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        own = [generator.get_state() for generator in self.generators]
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), accelerator, own

    def _restore(self, state: tuple[Any, ...]) -> None:
        python, numpy, torch_state, accelerator, own = state
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_state)
        if accelerator:
            torch.cuda.set_rng_state_all(accelerator)
        for generator, each in zip(self.generators, own, strict=True):
            generator.set_state(each)
