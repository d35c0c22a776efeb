"""State dicts with masks and without: a module takes both."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlprank.surgery.masks import match_masks, refresh_masked


def accept_masks(module: nn.Module) -> list[RemovableHandle]:
    """Let a module load state dicts of its masked self and of its dense self, whichever it is.

    Args:
        module: The module; changed in place whenever it loads a state dict.

    Returns:
        Handles to take that back.
    """
    return [
        module.register_load_state_dict_pre_hook(_match),  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(_refresh),  # type: ignore[no-untyped-call]
    ]


def _match(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    match_masks(
        module, {name.removeprefix(prefix): value for name, value in state.items() if isinstance(value, Tensor)}
    )


def _refresh(module: nn.Module, incompatible: object) -> None:
    refresh_masked(module)
