"""Find the files of a data set, or download them whole, or say what is missing and how to get it."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATA_DIR_VARIABLE = "MLPRANK_DATA_DIR"
TIMEOUT_S = 30.0


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of the data sets.

    Args:
        data_dir: What the user asked for. Without it, the environment variable MLPRANK_DATA_DIR, and without that
            `$XDG_CACHE_HOME/mlprank`, which is `~/.cache/mlprank` on most machines.

    Returns:
        The directory, which need not exist yet.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mlprank"
    return Path(data_dir or os.environ.get(DATA_DIR_VARIABLE) or cache).expanduser()


@dataclass(frozen=True)
class FileSet:
    """The files of one data set, the places where they may lie, and how they are downloaded.

    Attributes:
        name: Name of the data set.
        files: Names of all files; a set counts as found in a folder that holds all of them.
        folders: Where to look inside the data directory, in this order; a download goes into the first.
        download: Downloads the set below a directory, into the first of `folders`.
        suffixes: What may follow a file's name, such as `.gz`.
        system_folders: Where to look after the data directory.
        remedy: How else to get the files.
    """

    name: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    download: Callable[[Path], None]
    suffixes: tuple[str, ...] = ("",)
    system_folders: tuple[Path, ...] = ()
    remedy: str = ""

    def find(self, data_dir: Path) -> dict[str, Path] | None:
        """Return the paths of all files by their names, or None where no folder holds them all."""
        for folder in (*(data_dir / folder for folder in self.folders), *self.system_folders):
            found = {name: path for name in self.files if (path := self._present(folder, name)) is not None}
            if len(found) == len(self.files):
                return found
        return None

    def locate(self, data_dir: Path) -> dict[str, Path]:
        """Return the paths of all files by their names.

        Args:
            data_dir: The data directory.

        Raises:
            FileNotFoundError: If no folder holds them all; it names the directory, the files and how to get them.
        """
        found = self.find(data_dir)
        if found is None:
            raise self._missing(data_dir, "nothing was downloaded")
        return found

    def ensure(self, data_dir: Path) -> None:
        """Download the set unless it is there. Every file appears whole or not at all.

        Args:
            data_dir: The data directory; created where needed.

        Raises:
            FileNotFoundError: If the download fails; it names the directory, the files and how to get them.
        """
        if self.find(data_dir) is not None:
            return
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary, _network_timeout():
                self.download(Path(temporary))
                fetched, target = Path(temporary) / self.folders[0], data_dir / self.folders[0]
                target.mkdir(parents=True, exist_ok=True)
                for name in self.files:
                    os.replace(fetched / name, target / name)
        except (OSError, RuntimeError) as error:
            raise self._missing(data_dir, f"the download failed: {error}") from error

    def _present(self, folder: Path, name: str) -> Path | None:
        return next((path for suffix in self.suffixes if (path := folder / (name + suffix)).is_file()), None)

    def _missing(self, data_dir: Path, reason: str) -> FileNotFoundError:
        either = f" (each may end in {' or '.join(filter(None, self.suffixes))})" if any(self.suffixes) else ""
        folders = ", ".join(str(data_dir / folder) for folder in self.folders)
        return FileNotFoundError(
            f"{self.name} is not in {data_dir} and {reason}. Expected the files {', '.join(self.files)}{either} in one "
            f"of {folders}. Put them there, or set data_dir or the environment variable {DATA_DIR_VARIABLE} to where "
            f"they are{self.remedy and ', or ' + self.remedy}."
        )


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    """Let a connection that stays silent fail instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
