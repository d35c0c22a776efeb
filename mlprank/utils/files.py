"""Files that are whole or absent, locks that die with their holder, and configs."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from mlprank.utils.errors import OptionError, did_you_mean

FOLDER = Path(__file__).parent.parent / "configs"


class BusyError(RuntimeError):
    """Another process holds the directory; the text names it."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, the file is synced and takes its place.

    Whatever happens, `path` is whole: the old file or the new one. Directories are made.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory; name a file in it")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file)
        os.replace(draft, target)
        with suppress(OSError), ExitStack() as stack:  # a directory cannot be opened everywhere, Windows for one
            folder = os.open(target.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            os.fsync(folder)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: str | Path, data: bytes | str) -> None:
    """Write a file, text as UTF-8, so that it is whole or absent, and on the disk when this returns."""
    try:
        with whole_file(path) as draft:
            draft.write_bytes(data.encode() if isinstance(data, str) else data)
    except IsADirectoryError:
        raise
    except OSError as error:
        raise type(error)(error.errno, f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def locked(path: str | Path, *, busy: str | None) -> Iterator[None]:
    """Hold a lock for the time of a block; the death of the process gives it back.

    Beside `path`, the lock's file, stands the process id of its holder, with the ending `.holder`. Where another
    process holds the lock, `busy` is the text of a BusyError, with `{holder}` for its id; None waits instead.
    """
    path = Path(path)
    holder = path.with_name(f"{path.name}.holder")
    try:
        lock = FileLock(path, timeout=-1 if busy is None else 0).acquire()
    except Timeout as error:
        name = holder.read_text().strip() if holder.is_file() else ""
        raise BusyError(str(busy).format(holder=name or "unknown")) from error
    with lock:
        try:
            holder.write_text(f"{os.getpid()}\n")
            yield
        finally:
            holder.unlink(missing_ok=True)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def find_config(name: str) -> Path:
    """Find a config, a file or one of those that come with mlprank."""
    if Path(name).is_file():
        return Path(name)
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    known = known_configs()
    for candidate, path in known.items():
        if wanted in (candidate, path.stem):
            return path
    here = [path.name for path in Path().glob("*.yaml")]
    raise FileNotFoundError(
        f"config {name} is neither a file nor a config of mlprank{did_you_mean(name, [*known, *here])}; `mlprank "
        "configs` lists them"
    )


def known_configs() -> dict[str, Path]:
    """The configs that come with mlprank by name: those of the top first, then thesis, tune and the others."""
    folders = (FOLDER / folder for folder in (".", "thesis", "cnn", "experiments", "tune", "logging"))
    paths = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in paths}


def load_config(text: str, *, of: str = "options such as trainer, model and data") -> dict[str, Any]:
    """Read a config, a file, a name or YAML as text, which holds a mapping `of` something."""
    inline = "\n" in text or text.lstrip().startswith("{")
    try:
        content = yaml.load(text if inline else find_config(text).read_text("utf-8"), Loader=_Loader)
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
