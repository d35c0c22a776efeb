"""`mlprank configs`: the configs that come with mlprank, found by name, listed and copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlprank.utils.errors import OptionError, did_you_mean
from mlprank.utils.files import write_whole

FOLDER = Path(__file__).parent.parent / "configs"
_USAGE = """\
mlprank configs [NAME [--out FILE]]

Without a name, the configs that come with mlprank are listed; `--config NAME` finds them on every command. With a name, the
config is copied into the current folder, to be changed.

examples:
  mlprank configs
  mlprank configs quickstart --out mine.yaml
"""


def main(argv: list[str]) -> int:
    """List the configs, or copy one.

    Args:
        argv: The name of a config, and `--out`.

    Returns:
        The exit code, 0.

    Raises:
        OptionError: If there is no such config.
        FileExistsError: If the copy would replace a file.
    """
    arguments = [word for argument in argv for word in (argument.split("=", 1) if "=" in argument else [argument])]
    if {"-h", "--help"} & set(arguments):
        print(_USAGE, end="")
        return 0
    out = None
    if "--out" in arguments:
        place = arguments.index("--out")
        if place + 1 == len(arguments):
            raise OptionError("--out needs a value: the file to write")
        out = arguments[place + 1]
        arguments = arguments[:place] + arguments[place + 2 :]
    unknown = [word for word in arguments if word.startswith("-")]
    if unknown:
        raise OptionError(f"there is no option {unknown[0]!r}{did_you_mean(unknown[0], ['--out', '--help'])}")
    if not arguments:
        width = max(len(name) for name, _ in described())
        for name, about in described():
            print(f"{name:<{width}}  {about}")
        print("\nmlprank configs NAME copies one; --config NAME uses it as it is")
        return 0
    if len(arguments) > 1:
        raise OptionError(f"one name is copied at a time, and {len(arguments)} are given")
    source = find_config(arguments[0])
    target = Path(out or source.name)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another file with --out")
    write_whole(target, source.read_text())
    print(target)
    return 0


def find_config(name: str) -> Path:
    """Find a config.

    Args:
        name: A file, else the name of a config that comes with mlprank: `quickstart`, `thesis/two_layer_mnist`, or
            `two_layer_mnist` where only one folder has it first; `configs/quickstart.yaml` outside a clone, too.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none; the nearest name is in the message.

    Example:
        >>> find_config("quickstart").name
        'quickstart.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    wanted = name.removeprefix("configs/").removesuffix(".yaml")
    known = dict(_known())
    for candidate, path in known.items():
        if candidate == wanted or (candidate.rpartition("/")[2] == wanted and "/" not in wanted):
            return path
    here = [path.name for path in Path().glob("*.yaml")]
    raise FileNotFoundError(
        f"config {name} is neither a file nor a config of mlprank{did_you_mean(name, [*known, *here])}; `mlprank configs` "
        "lists them"
    )


def described() -> list[tuple[str, str]]:
    """Return every config that comes with mlprank, with the first line that it says of itself."""
    return [(name, path.read_text().partition("\n")[0].lstrip("# ")) for name, path in _known()]


def with_files(arguments: list[str]) -> list[str]:
    """Put the files of configs in place of their names in a command line."""
    found: list[str] = []
    for place, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key in ("--config", "-c") and equals:
            found.append(f"{key}={find_config(value)}")
        elif place and arguments[place - 1] in ("--config", "-c") and not argument.startswith("-"):
            found.append(str(find_config(argument)))
        else:
            found.append(argument)
    return found


def _known() -> Iterator[tuple[str, Path]]:
    """The configs by name: those of the top first, then thesis, tune and the others."""
    files = [path for path in FOLDER.rglob("*.yaml") if "sweeps" not in path.parts]
    order = {"quickstart.yaml": 0, "thesis": 1, "experiments": 2, "tune": 3}

    def place(path: Path) -> tuple[int, str]:
        relative = path.relative_to(FOLDER)
        return order.get(relative.parts[0], 9), relative.as_posix()

    for path in sorted(files, key=place):
        yield path.relative_to(FOLDER).with_suffix("").as_posix(), path
