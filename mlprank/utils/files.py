"""Files that are whole or absent, locks that die with their holder, and configs."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mlprank.utils.errors import OptionError


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


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(text: str, *, of: str = "options such as trainer, model and data") -> dict[str, Any]:
    """Read a config, a file or YAML as text, which holds a mapping `of` something."""
    inline = "\n" in text or text.lstrip().startswith("{")
    if not inline and not Path(text).is_file():
        raise FileNotFoundError(f"config {text} does not exist; `mlprank configs` lists those that come with mlprank")
    try:
        content = yaml.load(text if inline else Path(text).read_text("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise OptionError(f"config {'' if inline else text} cannot be read: {what}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise OptionError(f"config {text} holds a {type(content).__name__}, not {of}")
    return content


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows with the columns of all of them, in order of first appearance; returns the path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
    return Path(path)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
