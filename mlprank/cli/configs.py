"""`mlprank configs`: the configs that come with mlprank, found by name, listed and copied."""

import textwrap
from pathlib import Path

from mlprank.cli.vocabulary import CommandParser
from mlprank.utils.errors import did_you_mean
from mlprank.utils.files import write_whole

FOLDER = Path(__file__).parent.parent / "configs"


PARSER = CommandParser(
    "configs",
    "List the configs that come with mlprank, or copy one into the current folder, to be changed; `--config NAME` "
    "finds them on every command.",
    "mlprank configs quickstart --out mine.yaml",
)
PARSER.add_argument("name", nargs="?", metavar="NAME", help="the config to copy; without it, all are listed")
PARSER.add("out", text="where to copy it to; default: the current folder")


def main(argv: list[str]) -> int:
    """List the configs, or copy one."""
    arguments = PARSER.parse_args(argv)
    if arguments.name is None:
        for name, path in known_configs().items():  # each with the first line that it says of itself
            about = path.read_text().partition("\n")[0].lstrip("# ")
            print(name, textwrap.fill(about, 76, initial_indent="    ", subsequent_indent="    "), sep="\n")
        print("\nmlprank configs NAME copies one; --config NAME uses it as it is")
        return 0
    source = find_config(arguments.name)
    target = Path(arguments.out or source.name)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another file with --out")
    write_whole(target, source.read_text())
    print(target)
    return 0


def find_config(name: str) -> Path:
    """Find a config."""
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


def with_files(arguments: list[str]) -> list[str]:
    """Put the files of configs in place of their names in a command line."""
    found: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if key in ("--config", "-c") and equals:
            argument = f"{key}={find_config(value)}"
        elif before in ("--config", "-c") and not argument.startswith("-"):
            argument = str(find_config(argument))
        found.append(argument)
    return found
