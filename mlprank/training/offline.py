"""W&B without an account or a network: offline, at once, instead of a question or a wait."""

from __future__ import annotations

import netrc
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlparse

_CONNECT_TIMEOUT_S = 3.0


def reason_for_offline() -> str | None:
    """Say why W&B cannot be reached from here, or None where it can or where the user has chosen a mode."""
    if os.environ.get("WANDB_MODE"):
        return None
    url = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = url.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _has_login(host)):
        return f"no login for {host} (`wandb login` or WANDB_API_KEY)"
    try:
        socket.create_connection((host, url.port or (80 if url.scheme == "http" else 443)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"{host} cannot be reached ({error})"
    return None


def prepare_wandb() -> None:
    """Put W&B into offline mode where it would ask, wait or fail, and say so."""
    reason = reason_for_offline()
    if reason is not None:
        os.environ["WANDB_MODE"] = "offline"
        print(f"mlprank: W&B runs offline: {reason}; `wandb sync` sends the run later", file=sys.stderr)


def wandb_is_running() -> bool:
    """Whether this process has a W&B run, without importing wandb."""
    wandb = sys.modules.get("wandb")
    return wandb is not None and wandb.run is not None


def finish_wandb(*, failed: bool) -> None:
    """End the W&B run of this process, where there is one, so that its files are whole."""
    if wandb_is_running():
        sys.modules["wandb"].finish(exit_code=1 if failed else 0)


def _has_login(host: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
