"""Files that are whole or absent, and locks that die with their holder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


class BusyError(RuntimeError):
    """Another process holds the directory; the text names it."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, the file is synced and takes its place.

    Whatever happens, `path` is whole: the old file or the new one. Directories are made.

    Args:
        path: The file to write.

    Raises:
        IsADirectoryError: If `path` is a directory.
        OSError: If the file cannot be written; it is named.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_file(f"{folder}/numbers.txt") as draft:
        ...         _ = draft.write_text("1 2 3")
        ...     Path(f"{folder}/numbers.txt").read_text()
        '1 2 3'
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield draft
        _sync(draft, os.O_RDWR)
        os.replace(draft, target)
        with suppress(OSError):  # a directory cannot be opened everywhere, Windows for one
            _sync(target.parent, os.O_RDONLY)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | Path, data: bytes | str) -> None:
    """Write a file so that it is whole or absent, and on the disk when this returns.

    Args:
        path: Where; directories are made.
        data: Its content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    try:
        with whole_file(path) as draft:
            draft.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        if isinstance(error, IsADirectoryError):
            raise
        raise type(error)(error.errno, f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def locked(path: str | Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock for the time of a block; the death of the process gives it back.

    Args:
        path: The lock's file; beside it, with the ending `.holder`, stands the process id of its holder.
        busy: Text of the error where another process holds it, with `{holder}` for its id; None waits instead.

    Raises:
        BusyError: If another process holds it and `busy` is given.
    """
    path = Path(path)
    holder = path.with_name(f"{path.name}.holder")
    lock = FileLock(path, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except Timeout as error:
        name = holder.read_text().strip() if holder.is_file() else "unknown"
        raise BusyError(str(busy).format(holder=name or "unknown")) from error
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
