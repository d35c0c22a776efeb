"""Files that are whole or absent and on the disk, and locks that die with their holder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(RuntimeError):
    """Another process holds the directory; the text names it."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent, and on the disk when this returns.

    Args:
        path: Where; directories are made.
        data: Its content.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise type(error)(error.errno, f"{path} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock (flock) for the time of a block; the death of the process gives it back.

    Args:
        path: The lock's file; it holds the process id of its holder.
        busy: Text of the error where another process holds it, with `{holder}` for its id; None waits instead.

    Raises:
        BusyError: If another process holds it and `busy` is given.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode().strip() or "unknown"
            raise BusyError(str(busy).format(holder=holder)) from error
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
